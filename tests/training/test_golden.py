"""Training runs and losses against what the authors' own code computed, with every random number recorded (golden/training)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from checkpoints.adapters import models as lora_models
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions, schedules
from unnoise.diffusion.losses import Loss, TimeSampling
from unnoise.diffusion.predictions import Prediction
from unnoise.diffusion.schedules import Schedule
from unnoise.families.spec import ModelSpec, ScheduleSpec
from unnoise.networks.controlnet import ControlNetConfig
from unnoise.pipeline.model import Model
from unnoise.runtime.denoise import NetworkDenoiser
from unnoise.training import loop
from unnoise.training.batch import Batch
from unnoise.training.objective import Denoising, WithPrior
from unnoise.training.settings import FinetuneSettings
from unnoise.training.trainee import Trainee
from unnoise.training.trainees import words as words_file
from unnoise.training.trainees.controlnet import controlnet
from unnoise.training.trainees.full import full
from unnoise.training.trainees.lora import lora
from unnoise.training.trainees.words import words

SD1 = ScheduleSpec(kind="vp", betas="scaled_linear", beta_start=0.00085, beta_end=0.012)
SCALE = 0.18215  # of the latents, which are recorded unscaled


class Recorded:
    """Draws what was recorded."""

    def __init__(self, noise: Tensor, t: Tensor):
        self.kept, self.t = noise, t

    def noise(self, like: Tensor) -> Tensor:
        return self.kept

    def times(self, rows: int, sampling: TimeSampling, schedule: Schedule) -> Tensor:
        return self.t.double()


class Record:
    """A fixture: tensors by name, its settings, and how far the float32 run is from the same in float64."""

    def __init__(self, folder: Path, name: str):
        self.io = load_file(folder / "golden" / "training" / name / "io.safetensors")
        described = json.loads((folder / "golden" / "training" / name / "config.json").read_text())
        self.config: dict[str, Any] = described["config"]
        self.table: dict[str, Any] = described.get("table") or {}

    def __getitem__(self, name: str) -> Tensor:
        return self.io[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.io.items() if name.startswith(prefix)}


def close(mine: Tensor, golden: Tensor, tolerance: float, what: str = "") -> None:
    """Within a share of the golden tensor's root mean square."""
    error = (mine.double() - golden.double()).abs().max() / golden.double().square().mean().sqrt()
    assert error <= tolerance, f"{what}: {float(error):.1e} of the rms, expected {tolerance:.1e}"


def model(shared: Path) -> Model:
    """The tiny Stable Diffusion 1 of the fixtures."""
    networks = lora_models.sd15(shared / "golden" / "lora")
    sizes = {"network": lora_models.SD15, "text_encoder": lora_models.CLIP_L}
    spec = ModelSpec(name="tiny", prediction="eps", schedule=SD1, size=128, networks=sizes, conditioning="clip")
    return Model(spec, {}, nn.ModuleDict(networks))


def run(record: Record, trainee: Trainee, folder: Path, loss: Loss, clip: float, more: Callable[[int], dict[str, Any]]) -> loop.Run[Batch]:
    """The recorded run in our loop, with the constant rate that a cosine has which ends where it begins."""
    config = record.config
    settings = FinetuneSettings(
        output_dir=folder,
        max_train_steps=config["steps"],
        learning_rate=config["lr"],
        lr_warmup_steps=0,
        lr_end=1.0,
        adam_beta2=config["betas"][1],
        weight_decay=config["weight_decay"],
        max_grad_norm=clip,
        ema_decay=0.9999,
    )

    def batches(number: int) -> Batch:
        return Batch(SCALE * record["in.latents"][number], **more(number))

    return loop.begin(settings, trainee, Denoising(trainee, loss), batches, lambda n: Recorded(record["in.noise"][n], record["in.t"][n]))


def told(record: Record) -> Callable[[int], dict[str, Any]]:
    return lambda number: {"cond": Cond(tokens=record["in.states"][number])}


def losses(steps: list[loop.Step]) -> Tensor:
    return torch.tensor([step.loss for step in steps])


@pytest.mark.parametrize("case", ["script", "clipped"])
def test_twenty_steps_of_lora(shared: Path, tmp_path: Path, case: str) -> None:
    """diffusers' train_text_to_image_lora.py with PEFT: as it is shipped, where it never clips, and with the clipping that it promises."""
    record = Record(shared, "traj_lora")
    trainee = lora(model(shared), record.config["rank"])
    ours = {name: _ours(name) for name in record.under("in.lora.")}
    assert sorted(ours.values()) == sorted(trainee.parameters)
    for name, value in record.under("in.lora.").items():
        trainee.parameters[ours[name]].data.copy_(value)
    clip = record.config["max_grad_norm"] if case == "clipped" else 1e9
    steps = list(loop.train(run(record, trainee, tmp_path, Loss(), clip, told(record))))
    torch.testing.assert_close(losses(steps), record[f"out.{case}.loss"], rtol=1e-4, atol=0)
    assert any(step.grad_norm > record.config["max_grad_norm"] for step in steps)
    tolerance = max(1e-3, 4 * record.table["float32_vs_float64"][case]["lora"])
    for name, golden in record.under(f"out.{case}.lora.").items():
        close(trainee.parameters[ours[name]], golden, tolerance, name)


def _ours(name: str) -> str:
    """PEFT's name of a factor -> ours."""
    path, side = name.removesuffix(".weight").rsplit(".", 1)
    return f"network.{path.replace('.to_out.0', '.to_out')}.{'down' if side == 'lora_A' else 'up'}"


def test_twenty_steps_of_all_weights(shared: Path, tmp_path: Path) -> None:
    """diffusers' train_text_to_image.py with min-SNR weights and an average. Its average is the weights themselves after the first step,
    where ours still has a tenth of the start; from then on both are one formula."""
    record = Record(shared, "traj_full_ema")
    trainee = full(model(shared))
    going = run(record, trainee, tmp_path, Loss(min_snr=record.config["snr_gamma"]), record.config["max_grad_norm"], told(record))
    steps = []
    for step in loop.train(going):
        steps.append(step)
        if step.step == 1:
            for name, average in going.ema.weights.items():
                average.copy_(trainee.parameters[name].detach())
    torch.testing.assert_close(losses(steps), record["out.loss"], rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.tensor([step.grad_norm for step in steps]), record["out.grad_norm"], rtol=1e-4, atol=0)
    found = {"final": dict(trainee.parameters), "ema": going.ema.weights}
    for group, values in found.items():
        tolerance = max(1e-4, 4 * record.table["float32_vs_float64"][group])
        for kind in (group, f"{group}_head"):
            for name, golden in record.under(f"out.{kind}.").items():
                close(_flat(values, name)[: golden.numel()], golden.flatten(), tolerance, name)


def _flat(values: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight by diffusers' name, as one row."""
    path = _named(name).replace("upsamplers.0", "upsample")
    return values[f"network.{path}"].detach().flatten()


def test_twenty_steps_of_a_controlnet(shared: Path, tmp_path: Path) -> None:
    """diffusers' train_controlnet.py, from the recorded first weights of what is no copy."""
    record = Record(shared, "traj_controlnet")
    widths = tuple(record.config["conditioning"])
    trainee = controlnet(model(shared), ControlNetConfig(lora_models.SD15, hint_widths=widths))
    for name, value in record.under("in.init.").items():
        trainee.parameters[_named(name)].data.copy_(value)
    first: dict[str, Tensor] = {}
    for name, p in trainee.parameters.items():
        p.register_hook(lambda gradient, name=name: kept(name, gradient))

    def kept(name: str, gradient: Tensor) -> None:
        first.setdefault(name, gradient.clone())

    def more(number: int) -> dict[str, Any]:
        return {"cond": Cond(tokens=record["in.states"][number]), "hint": F.interpolate(record["in.hint"][number], scale_factor=8)}

    steps = list(loop.train(run(record, trainee, tmp_path, Loss(), record.config["max_grad_norm"], more)))
    assert sorted(name for name, gradient in first.items() if gradient.any()) == sorted(map(_named, record.table["first_step_nonzero"]))
    for name, golden in record.under("out.grad_first.").items():
        close(first[_named(name)], golden, max(1e-3, 4 * record.table["float32_vs_float64"]["grad_first"]), name)
    torch.testing.assert_close(losses(steps), record["out.loss"], rtol=1e-4, atol=0)
    for name, golden in record.under("out.final.").items():
        close(trainee.parameters[_named(name)], golden, 1e-3, name)


def _named(name: str) -> str:
    """diffusers' name of a ControlNet's parameter -> ours."""
    path = name.replace(".to_out.0", ".to_out").replace("ff.net.0.proj", "ff.proj").replace("ff.net.2", "ff.out")
    return path.replace("downsamplers.0", "downsample")


def test_eight_steps_of_a_word(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' textual_inversion.py, which trains the whole table and puts the old rows back; here they are no parameters at all."""
    record = Record(shared, "textual_inversion")
    tiny = model(shared)
    table = tiny.networks["text_encoder"].get_parameter(words_file.TABLE)
    monkeypatch.setattr(words_file, "_initial", lambda *_: table[record.config["initializer"]][None].detach())
    tiny.tokenizers["text_encoder"] = NoWords()  # pyright: ignore[reportArgumentType]
    trainee = words(tiny, "<cat>", "unused")
    (vectors,) = trainee.parameters.values()

    def encoded(ids: Tensor) -> Cond:
        return Cond(tokens=tiny.networks["text_encoder"](ids, vectors).last)

    rows: list[Tensor] = []
    steps = []
    for step in loop.train(run(record, trainee, tmp_path, Loss(), 1e9, lambda n: {"cond": lambda: encoded(record["in.ids"][n])})):
        steps.append(step)
        rows.append(vectors.detach().clone())
    torch.testing.assert_close(losses(steps), record["out.loss"], rtol=1e-4, atol=0)
    for mine, golden in zip(rows, record["out.rows"], strict=True):
        close(mine, golden, 1e-4)
    assert torch.equal(table, record["out.table_end"][: len(table)])


class NoWords:
    """Stands for a tokenizer: the fixture has ids, not prompts."""

    words: Mapping[str, tuple[int, ...]] = {}

    def with_words(self, words: Mapping[str, Any]) -> NoWords:
        return self


# Losses


class Wave(nn.Module):
    """The fixtures' closed form: a 1x1 convolution and b sin(t / s + c) a channel."""

    def __init__(self, record: Record, divisor: float, prefix: str = ""):
        super().__init__()
        self.w, self.b, self.c = (nn.Parameter(record[f"in.{prefix}{name}"].clone()) for name in "wbc")
        self.divisor = divisor

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        wave = self.b * torch.sin(t[:, None].float() / self.divisor + self.c)
        return F.conv2d(x, self.w[:, :, None, None]) + wave[:, :, None, None]


def alone(network: nn.Module, schedule: Schedule, prediction: Prediction) -> Trainee:
    """A denoiser without a model around it."""
    nothing: Any = None
    return Trainee(nothing, NetworkDenoiser(network, schedule, prediction), dict(network.named_parameters()), nothing, nothing)


@pytest.mark.parametrize("case, sigma_data", [("edm", 0.5), ("edm_sigma1", 1.0)])
def test_edm_losses(shared: Path, case: str, sigma_data: float) -> None:
    """EDMLoss: weight 1/out² on the x_0 error is weight 1 on that of F. Gradients there are of sums over c, h, w."""
    record = Record(shared, "edm_losses")
    sigma = (record["in.normal"] * record.config["P_std"] + record.config["P_mean"]).exp().flatten()
    schedule = schedules.edm()
    network = Wave(record, 1.0)
    objective = Denoising(alone(network, schedule, predictions.edm(sigma_data)))
    images = record["in.images"]
    drawn = Recorded(record["in.noise"], schedule.time(-2 * sigma.double().log()))
    found = objective.losses(Batch(images, Cond(labels=torch.zeros(len(images)))), drawn)
    close(found, record[f"out.{case}.mean"], 2e-5)
    (found.mean() * images[0].numel()).backward()
    for name, p in network.named_parameters():
        assert p.grad is not None
        close(p.grad, record[f"out.{case}.grad.{name}"], 2e-5, name)


@pytest.mark.parametrize("weight, key", [("loss", "out.loss"), ("both", "out.right.loss_both_weighted")])
def test_prior_preservation(shared: Path, weight: str, key: str) -> None:
    """train_dreambooth.py: both halves' means; and with min-SNR weights, each half by its own times, which the script gets wrong."""
    record = Record(shared, "dreambooth_prior")
    prediction = record["in.pred"].clone().requires_grad_()

    class Fixed(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
            return prediction

    loss = Loss(min_snr=record.config["snr_gamma"]) if weight == "both" else Loss()
    trainee = alone(Fixed(), SD1.build(), predictions.eps)
    objective = WithPrior(Denoising(trainee, loss), record.config["n"], record.config["prior_loss_weight"])
    batch = Batch(torch.zeros_like(prediction), Cond(labels=torch.zeros(len(prediction))))
    found = objective(batch, Recorded(record["in.target"], record["in.t"]))
    torch.testing.assert_close(found.detach(), record[key], rtol=1e-5, atol=0)
    if weight == "loss":
        found.backward()
        assert prediction.grad is not None
        close(prediction.grad, record["out.grad"], 1e-5)


MIN_SNR = {
    "EPSILON.min_snr_5.0": (predictions.eps, Loss(min_snr=5.0)),
    "VELOCITY.vmin_snr_5.0": (predictions.v, Loss(min_snr=5.0)),
    "START_X.min_snr_5.0": (predictions.x0, Loss(min_snr=5.0)),
    "START_X.snr": (predictions.x0, Loss("eps", floor=1e-12)),
    "EPSILON.constant": (predictions.eps, Loss()),
    "START_X.constant": (predictions.x0, Loss()),
}


@pytest.mark.parametrize("name", MIN_SNR)
def test_weights_of_the_papers(shared: Path, name: str) -> None:
    record = Record(shared, "paper_weights")
    prediction, loss = MIN_SNR[name]
    schedule = ScheduleSpec(kind="vp", betas="linear").build()
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in (schedule.alpha(record["in.t"].double()), schedule.sigma(record["in.t"].double())))
    torch.testing.assert_close(loss.weight(alpha, sigma, prediction).flatten().float(), record[f"out.{name}"].float(), rtol=1e-4, atol=1e-7)
