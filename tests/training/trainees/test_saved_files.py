"""What a trainee writes is read back by unnoise as what was trained, and opened by diffusers."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import unnoise
from peers import tiny
from training import models
from unnoise.conditioning import Cond
from unnoise.pipeline.model import Model
from unnoise.training import loop
from unnoise.training.trainee import Trainee, denoiser
from unnoise.training.trainees.controlnet import controlnet
from unnoise.training.trainees.full import full
from unnoise.training.trainees.lora import lora
from unnoise.training.trainees.words import words

PROMPTS = ["a photo of <cat>"]


def moved(trainee: Trainee) -> Trainee:
    """As after some steps: no parameter is where it started."""
    for parameter in trainee.parameters.values():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return trainee


def answered(trainee: Trainee, cond: Cond | None = None, hint: Tensor | None = None) -> Tensor:
    """The estimate of x_0 that the trainee's denoiser gives at one point."""
    batch = models.batch(trainee, PROMPTS, hint)
    with torch.no_grad():
        x0 = trainee.denoiser(batch.x0, torch.tensor([trainee.model.schedule.start * 0.5]), cond or trainee.condition(batch))
    return x0 if isinstance(x0, Tensor) else x0.x0


def as_trainee(model: Model) -> Trainee:
    """A model as it samples, in the same seam."""
    trainee = full(model)
    return Trainee(model, denoiser(model), {}, trainee.save, trainee.encode)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("family", models.FAMILIES)
def test_lora_beside_the_layers_is_the_merged_file(fresh: models.Models, family: str, tmp_path: Path) -> None:
    """The live form that was trained, and the file of it merged by `with_lora`; without it the model is the one that it was."""
    model = fresh(family)
    places = ["network", *(place for place in ("text_encoder", "text_encoder_2") if place in model.networks)]
    targets = r"(to_q|to_k|to_v|to_out|qkv|proj|q_proj|conv1|conv_in|downsamplers\.0\.conv)$"
    before, plain = models.digest(model), answered(as_trainee(model))
    trainee = moved(lora(model, 3, 2.0, targets=targets, places=places))
    trainee.save(tmp_path / "a.safetensors")
    on = model.with_lora(str(tmp_path / "a.safetensors"))
    close(answered(trainee), answered(as_trainee(on)))
    assert (answered(trainee) - plain).abs().max() > 0.01 * plain.abs().max()
    assert torch.equal(answered(as_trainee(model)), plain)
    assert all(torch.equal(value, before[name]) for name, value in models.digest(model).items())


def test_lora_that_averages_writes_the_averages(fresh: models.Models, tmp_path: Path) -> None:
    trainee = moved(lora(fresh("dit")))
    halves = {name: 0.5 * p.detach() for name, p in trainee.parameters.items()}
    kept = {name: p.detach().clone() for name, p in trainee.parameters.items()}
    trainee.save(tmp_path / "a.safetensors", halves)
    assert all(torch.equal(p, kept[name]) for name, p in trainee.parameters.items())
    for name, p in trainee.parameters.items():
        p.data = halves[name]
    on = trainee.model.with_lora(str(tmp_path / "a.safetensors"))
    close(answered(trainee), answered(as_trainee(on)))


def unmatched(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_diffusers_opens_the_lora_with_no_key_unmatched(
    fresh: models.Models, shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load_lora_weights` of diffusers with PEFT, U-Net and text encoder, at tiny Stable Diffusion 1."""
    pytest.importorskip("peft")
    diffusers: ModuleType = pytest.importorskip("diffusers")
    model = fresh("sd1")
    trainee = moved(lora(model, 3, 2.0, places=("network", "text_encoder")))
    trainee.save(tmp_path / "a.safetensors")
    model.save(tmp_path / "folder")
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(str(tmp_path / "folder"), local_files_only=True, safety_checker=None)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        pipe.load_lora_weights(str(tmp_path), weight_name="a.safetensors", local_files_only=True)
    assert unmatched(caplog) == []
    wrapped = [name for part in (pipe.unet, pipe.text_encoder) for name, _ in part.named_modules() if name.endswith("lora_A.default_0")]
    assert len(wrapped) == len(trainee.parameters) // 2
    ids = pipe.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    x, t = models.batch(trainee, PROMPTS).x0, torch.tensor([500])
    with torch.no_grad():
        theirs = pipe.unet(x, t, pipe.text_encoder(ids).last_hidden_state).sample
        mine = trainee.denoiser.output(x, t, trainee.encode(PROMPTS)).output
    close(mine, theirs)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
@torch.no_grad()  # with a gradient, attention runs another kernel
def test_a_word_is_read_back(fresh: models.Models, family: str, tmp_path: Path) -> None:
    model = fresh(family)
    trainee = moved(words(model, "<cat>", "cat", 2))
    path = tmp_path / "<cat>.safetensors"
    trainee.save(path)
    knows = model.with_embedding(path)
    mine, read = trainee.encode(PROMPTS), full(knows).encode(PROMPTS)
    assert mine.tokens is not None and read.tokens is not None and torch.equal(mine.tokens, read.tokens)
    if mine.pooled is not None and read.pooled is not None:
        assert torch.equal(mine.pooled, read.pooled)
    plain = full(model).encode(PROMPTS).tokens
    assert plain is not None and not torch.equal(plain, mine.tokens)


@torch.no_grad()
def test_words_start_as_the_initializer(fresh: models.Models) -> None:
    model = fresh("sd1")
    said, plain = words(model, "<cat>", "cat").encode(["a <cat> runs"]).tokens, full(model).encode(["a cat runs"]).tokens
    assert said is not None and plain is not None and torch.equal(said, plain)


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_a_controlnet_is_read_back(fresh: models.Models, family: str, tmp_path: Path) -> None:
    """At its start it adds nothing; trained and written, `load_control` reads the same weights."""
    model = fresh(family)
    shown = torch.randn(1, 4, 16, 16) if family == "sd3" else torch.rand(1, 3, 128, 128)
    plain = answered(as_trainee(model))
    trainee = controlnet(model)
    torch.testing.assert_close(answered(trainee, hint=shown), plain, rtol=0, atol=1e-6)
    moved(trainee).save(tmp_path / "net.safetensors")
    assert (answered(trainee, hint=shown) - plain).abs().max() > 0.01 * plain.abs().max()
    sizes = {"heads": 2, "form": "joint"} if family == "sd3" else {"heads": 4, "groups": 32}
    read = unnoise.load_control(tmp_path / "net.safetensors", dtype="float32", device="cpu", config=sizes).network
    for name, value in read.named_parameters():
        assert torch.equal(value, trainee.parameters[name]), name


def test_diffusers_reads_the_controlnet(fresh: models.Models, tmp_path: Path) -> None:
    diffusers: ModuleType = pytest.importorskip("diffusers")
    from safetensors.torch import load_file

    model = fresh("sd1")
    trainee = moved(controlnet(model))
    trainee.save(tmp_path / "net.safetensors")
    theirs = diffusers.ControlNetModel.from_unet(tiny._unet(), conditioning_embedding_out_channels=(16, 32, 96, 256)).eval()
    theirs.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)
    x, t, shown = models.batch(trainee, PROMPTS).x0, torch.tensor([500]), torch.rand(1, 3, 128, 128)
    cond = trainee.encode(PROMPTS)
    with torch.no_grad():
        down, middle = theirs(x, t, cond.tokens, shown, return_dict=False)
        assert trainee.hints is not None
        mine = trainee.hints(shown)[0].net(x, t.float(), cond, shown)
    for one, other in zip(mine, [*down, middle], strict=True):
        close(one, other)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_a_whole_model_is_read_back(fresh: models.Models, family: str, tmp_path: Path) -> None:
    trainee = moved(full(fresh(family)))
    trainee.save(tmp_path / "folder")
    model = unnoise.load(tmp_path / "folder", dtype="float32", device="cpu")
    for name, value in model.networks["network"].named_parameters():
        assert torch.equal(value, trainee.parameters[f"network.{name}"]), name


def test_a_killed_lora_goes_on_to_the_same_end(fresh: models.Models, tmp_path: Path) -> None:
    """The loop's checkpoints hold any trainee: stopped after two of four steps and begun again, to the last bit."""
    from training.trainees.test_one_step import run

    whole = run(lora(fresh("dit")), None, tmp_path / "whole", 4)
    list(loop.train(whole))
    cut = run(lora(fresh("dit")), None, tmp_path / "cut", 4)
    for step in loop.train(cut):
        if step.step == 2:
            loop.save(cut)
            break
    resumed = run(lora(fresh("dit"), seed=5), None, tmp_path / "cut", 4)
    assert resumed.taken == 2
    list(loop.train(resumed))
    for name, p in whole.trainee.parameters.items():
        assert torch.equal(p, resumed.trainee.parameters[name]) and torch.equal(whole.ema.weights[name], resumed.ema.weights[name]), name
