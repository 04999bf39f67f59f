"""The loop against closed forms: accumulation, learning rate, averages, refusal of what is not finite, every loss on both backbones."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from training import tiny
from unnoise.diffusion.losses import Loss, TimeSampling
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import NonFiniteError
from unnoise.training import loop, publish
from unnoise.training.batch import Draw
from unnoise.training.ema import EMA
from unnoise.training.objective import Denoising, Objective
from unnoise.training.recipes import emoji
from unnoise.training.recipes.captions import CaptionBatches
from unnoise.training.recipes.draft import Emoji, EmojiBatch

# Accumulation


class ByPicture:
    """Noise and times that depend on the pictures alone, so that how a batch is cut changes no draw."""

    def __init__(self, pictures: Tensor):
        self.parts = [torch.Generator().manual_seed(int(1e3 * picture.double().abs().sum())) for picture in pictures]

    def noise(self, like: Tensor) -> Tensor:
        return torch.stack([torch.randn(like.shape[1:], generator=part) for part in self.parts])

    def times(self, rows: int, sampling: TimeSampling, schedule: Schedule) -> Tensor:
        return torch.cat([sampling.draw(1, schedule, part) for part in self.parts])


def by_picture(objective: Objective[EmojiBatch]) -> Objective[EmojiBatch]:
    def asked(batch: EmojiBatch, draw: Draw) -> Tensor:
        assert batch.noisy is not None
        return objective(batch, ByPicture(batch.noisy.x0))

    return asked


def weights(run: loop.Run[EmojiBatch]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.trainee.parameters.values()])


def descend(folder, parts: int, **more) -> tuple[torch.Tensor, list[loop.Step]]:
    """The change of all weights over three steps of gradient descent on the eight pictures, in `parts` parts; and the steps."""
    source = tiny.pictures(folder / "whole texts")
    rows = [{"file_name": f"{index}.png", "text": name} for index, name in enumerate(tiny.NAMES)]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"source": str(source), "size": 16}
    given = {"max_train_steps": 3, "lr_warmup_steps": 1, "learning_rate": 0.1, "caption_dropout": 0.0, "data": data, **more}
    place = str(folder / f"run-{parts}")
    run = emoji.prepare(tiny.config(folder, output_dir=place, train_batch_size=8 // parts, gradient_accumulation_steps=parts, **given))
    # plain descent is linear in the gradient; AdamW turns a gradient of 1e-12, which is rounding, into a whole step
    run = replace(run, objective=by_picture(run.objective), optimizer=torch.optim.SGD(run.trainee.parameters.values()))
    before = weights(run)
    steps = list(loop.train(run))
    return weights(run) - before, steps


@pytest.mark.parametrize("clip", [1e9, 0.01], ids=["unclipped", "clipped"])
def test_small_batches_gathered_are_one_big_batch(tmp_path, clip):
    whole, steps = descend(tmp_path, 1, max_grad_norm=clip)
    assert (steps[0].grad_norm > clip) == (clip == 0.01) and whole.norm() > 0
    for parts in (2, 4, 8):
        gathered, others = descend(tmp_path, parts, max_grad_norm=clip)
        assert (gathered - whole).norm() <= 1e-6 * whole.norm()
        for step, other in zip(steps, others, strict=True):
            assert other.learning_rate == step.learning_rate and other.step == step.step
            assert other.loss == pytest.approx(step.loss, rel=1e-6) and other.grad_norm == pytest.approx(step.grad_norm, rel=1e-5)


def test_clipping_bounds_the_update(tmp_path):
    """With one step of descent the change is learning rate times gradient, and the gradient is at most max_grad_norm long."""
    change, steps = descend(tmp_path, 1, max_grad_norm=0.01, max_train_steps=1)
    assert change.norm().item() == pytest.approx(steps[0].learning_rate * 0.01, rel=1e-4)


# Learning rate


def test_the_learning_rate_warms_up_and_falls_along_a_cosine_to_its_target(tmp_path):
    config = tiny.config(tmp_path, max_train_steps=110, lr_warmup_steps=10, learning_rate=0.5, lr_end=0.1)
    rates = [loop.learning_rate(config, step) for step in range(111)]
    np.testing.assert_allclose(rates[:10], 0.05 * np.arange(1, 11))  # a straight line that reaches the full rate
    assert rates[10] == 0.5
    assert rates[60] == pytest.approx(0.5 * 0.55)  # half way: the mean of both ends
    assert rates[110] == pytest.approx(0.05) and rates[109] == pytest.approx(0.05, rel=1e-2)
    assert rates[10:] == sorted(rates[10:], reverse=True) and len(set(rates)) > 100
    assert loop.learning_rate(config, 500) == pytest.approx(0.05)


def test_the_rate_of_a_step_is_what_the_optimiser_used(tmp_path):
    """AdamW's first step moves a weight with a gradient by rate * g / (|g| + 1e-8), which is the rate itself."""
    run = emoji.prepare(tiny.config(tmp_path, weight_decay=0.0, caption_dropout=0.0))
    before = run.trainee.model.networks["network"].conv_out.bias.detach().clone()
    step = next(loop.train(run))
    moved = (run.trainee.model.networks["network"].conv_out.bias - before).abs()
    assert step.learning_rate == loop.learning_rate(run.settings, 0) == pytest.approx(2e-3 / 3)
    torch.testing.assert_close(moved, torch.full_like(moved, step.learning_rate), rtol=1e-3, atol=0)


# Averages


def test_the_average_equals_its_closed_form():
    """average_n = prod(d) w_0 + sum_i (1 - d_i) prod(d after i) w_i, with d_i = min(decay, (1 + i) / (10 + i))."""
    model = torch.nn.Linear(3, 2)
    ema, history = EMA(dict(model.named_parameters()), 0.7), [model.weight.detach().clone().double()]
    for step in range(40):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ema.update(step)
        history.append(model.weight.detach().clone().double())
    d = [min(0.7, (1 + i) / (10 + i)) for i in range(40)]
    assert d[0] == 0.1 and d[-1] == 0.7
    share = [math.prod(d)] + [(1 - d[i]) * math.prod(d[i + 1 :]) for i in range(40)]
    assert sum(share) == pytest.approx(1)
    expected = sum(part * weight for part, weight in zip(share, history, strict=True))
    torch.testing.assert_close(ema.weights["weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_loop_averages_after_every_step(tmp_path):
    run = emoji.prepare(tiny.config(tmp_path, max_train_steps=6))
    name, weight = next((name, p) for name, p in run.trainee.parameters.items() if "conv_out.bias" in name)
    expected = weight.detach().clone()
    for index, _ in enumerate(loop.train(run)):
        rate = 1 - min(0.9, (1 + index) / (10 + index))
        expected = expected + rate * (weight.detach() - expected)
        torch.testing.assert_close(run.ema.weights[name], expected, rtol=1e-5, atol=1e-8)


def test_sampling_from_the_average_leaves_the_run_as_it_was(tmp_path):
    run = emoji.prepare(tiny.config(tmp_path))
    steps = loop.train(run)
    next(steps)
    before = tiny.everything(run)
    model = emoji.averaged(run)
    assert torch.isfinite(model.generate("red apple", seed=1).latents).all()
    assert torch.equal(model.networks["network"].conv_in.weight, run.ema.weights["networks.network.conv_in.weight"]) and not torch.equal(
        model.networks["network"].conv_in.weight, run.trainee.model.networks["network"].conv_in.weight
    )
    tiny.assert_equal(tiny.everything(run), before)
    live = run.trainee.model.networks
    assert all(network.training for network in live.values())
    assert all(p.requires_grad for _, p in live.named_parameters())
    next(steps)


def test_published_weights_are_the_average_in_half_precision(tmp_path):
    import unnoise

    run = emoji.prepare(tiny.config(tmp_path, max_train_steps=2))
    list(loop.train(run))
    publish.publish(run, tmp_path / "tiny.safetensors")
    model = unnoise.load(tmp_path / "tiny.safetensors", dtype="float16")
    for name, p in model.networks.named_parameters():
        assert torch.equal(p, run.ema.weights[f"networks.{name}"].half()), name
    live = run.trainee.model
    assert model.spec == live.spec and model.spec.size == 16
    assert model.tokenizer(["red apple 빨간"]).ids.tolist() == live.tokenizer(["red apple 빨간"]).ids.tolist()


# What is not finite


@pytest.mark.parametrize(
    "poison, named", [("loss", "the loss is not finite at step 4"), ("gradient", "the gradient of networks.network.conv_in")]
)
def test_the_first_step_that_is_not_finite_stops_the_run_and_nothing_holds_it(tmp_path, poison, named):
    run = emoji.prepare(tiny.config(tmp_path, checkpointing_steps=1))
    steps = loop.train(run)
    for _ in range(3):
        next(steps)
    before = tiny.everything(run)
    if poison == "loss":
        assert isinstance(run.objective, Emoji) and isinstance(run.objective.denoising, Denoising)
        nan = Loss("eps", floor=float("nan"))
        run.objective = replace(run.objective, denoising=replace(run.objective.denoising, loss=nan))
    else:
        run.trainee.model.networks["network"].conv_in.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match=named) as stopped:
        next(steps)
    assert "\n" not in str(stopped.value) and "at step 4" in str(stopped.value)
    tiny.assert_equal(tiny.everything(run), before)
    assert sorted(path.name for path in run.settings.checkpoint_folder.iterdir()) == ["step-00000002", "step-00000003"]


# Captions


def dropped(run: loop.Run[EmojiBatch], number: int) -> Tensor:
    """Which captions of batch `number` are empty, (b,), as the text encoder sees them."""
    assert isinstance(run.batches, CaptionBatches)
    empty, seen = run.batches.tokenizer([""]).ids, []
    hook = run.batches.text_encoder.register_forward_pre_hook(lambda _, given: seen.append((given[0] == empty).all(dim=1)))
    batch = run.batches(number).noisy
    assert batch is not None
    batch.condition()
    hook.remove()
    return seen[0]


def test_dropped_captions_have_their_share(tmp_path):
    run = emoji.prepare(tiny.config(tmp_path, caption_dropout=0.25, train_batch_size=20))
    share = torch.cat([dropped(run, number) for number in range(100)]).float().mean().item()
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 2000) ** 0.5)


@pytest.mark.parametrize("dropout, share", [(0.0, 0.0), (1.0, 1.0)])
def test_no_dropout_and_nothing_but(tmp_path, dropout, share):
    run = emoji.prepare(tiny.config(tmp_path, caption_dropout=dropout, train_batch_size=50))
    assert dropped(run, 0).float().mean() == share


# Losses

LEARNING = [
    (prediction, network, kind)
    for prediction, kind in (("eps", "vp"), ("v", "vp"), ("x0", "flow"), ("flow", "flow"))
    for network in ("unet", "dit")
]


@pytest.mark.parametrize("prediction, network, kind", LEARNING)
def test_every_prediction_is_learnt_by_both_backbones(tmp_path, prediction, network, kind):
    """Some steps on eight pictures with the same noise for each picture: the error must fall by a fifth at least."""
    config = tiny.config(
        tmp_path,
        prediction=prediction,
        schedule={"kind": kind},
        network=tiny.UNET if network == "unet" else tiny.DIT,
        max_train_steps=24,
        train_batch_size=8,
        gradient_accumulation_steps=1,
        learning_rate=5e-3,
        checkpointing_steps=1000,
        caption_dropout=0.0,
    )
    run = emoji.prepare(config)
    run.objective = by_picture(run.objective)
    found = [step.loss for step in loop.train(run)]
    assert all(map(math.isfinite, found))
    assert sum(found[-4:]) < 0.8 * sum(found[:4]), found


def test_bfloat16_multiplies_and_float32_weights(tmp_path):
    """The networks see bfloat16; weights, gradients, loss and everything that is kept stay float32."""
    run = emoji.prepare(tiny.config(tmp_path, mixed_precision="bf16", max_train_steps=2))
    exact = emoji.prepare(tiny.config(tmp_path, mixed_precision="no", output_dir=str(tmp_path / "exact"), max_train_steps=2))
    seen = []
    run.trainee.model.networks["network"].mid_block.resnets[0].conv1.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    losses = [[step.loss for step in loop.train(each)] for each in (run, exact)]
    assert set(seen) == {torch.bfloat16} and {value.dtype for value in tiny.everything(run).values()} == {torch.float32}
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def test_steps_say_where_they_stand(tmp_path):
    run = emoji.prepare(tiny.config(tmp_path, max_train_steps=6))
    steps = list(loop.train(run))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6] and {step.steps for step in steps} == {6}
    assert [step.checkpoint and step.checkpoint.name for step in steps] == [None] * 4 + ["step-00000005", "step-00000006"]
    assert all(step.seconds > 0 and step.grad_norm > 0 for step in steps)
    assert list(loop.train(run)) == []  # max_train_steps is a total
