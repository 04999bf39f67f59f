"""One optimiser step of every trainee on every family: a gradient reaches the parameters that are named here, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training import models
from unnoise.errors import ArgumentError, UnknownName
from unnoise.pipeline.model import Model
from unnoise.training import loop
from unnoise.training.objective import Denoising
from unnoise.training.settings import FinetuneSettings
from unnoise.training.trainee import Trainee
from unnoise.training.trainees.controlnet import controlnet
from unnoise.training.trainees.full import full
from unnoise.training.trainees.lora import lora
from unnoise.training.trainees.words import words

PROJECTIONS = [f"{attention}.to_{name}" for attention in ("attn1", "attn2") for name in ("q", "k", "v", "out")]


def layers(transformers: Iterable[str]) -> list[str]:
    return [f"network.{transformer}.transformer_blocks.{projection}" for transformer in transformers for projection in PROJECTIONS]


def deep(attention: str, depth: int) -> list[str]:
    return [name for i in range(depth) for name in (f"network.{attention}.transformer_blocks.{i}.{p}" for p in PROJECTIONS)]


XL = ["down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1"]
SD1 = ["down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]
LORA = {  # the layers beside which there are factors
    "sd1": [name for attention in SD1 for name in deep(attention, 1)],
    "sdxl": [name for attention in XL for name in deep(attention, 2)],
    "sd3": [
        "network.joint_blocks.0.context_block.attn.qkv",
        "network.joint_blocks.0.context_block.attn.proj",
        "network.joint_blocks.0.x_block.attn.qkv",
        "network.joint_blocks.0.x_block.attn.proj",
        "network.joint_blocks.1.context_block.attn.qkv",  # the text ends here, and has no projection
        "network.joint_blocks.1.x_block.attn.qkv",
        "network.joint_blocks.1.x_block.attn.proj",
    ],
    "dit": [f"network.blocks.{i}.attn.{name}" for i in range(2) for name in ("qkv", "proj")],
}
WORDS = {"sd1": ["text_encoder.<cat>"], "sdxl": ["text_encoder.<cat>", "text_encoder_2.<cat>"]}
WORDS["sd3"] = WORDS["sdxl"]
ZERO = {  # a new ControlNet's layers that start at zero: only these have a gradient in the first step
    "sd1": [f"controlnet_{name}" for name in ("down_blocks.0", "down_blocks.1", "down_blocks.2", "down_blocks.3", "mid_block")],
    "sd3": ["controlnet_blocks.0"],
}
ZERO["sdxl"] = ZERO["sd1"]
SILENT = {  # weights that can change nothing: queries of the last block's text, which no one reads
    "sd3": ["network.joint_blocks.1.context_block.attn.ln_q.weight"],
}
MAKERS: dict[str, Callable[[Model], Trainee]] = {
    "full": full,
    "lora": lora,
    "words": lambda model: words(model, "<cat>", "cat", 2),
    "controlnet": controlnet,
}
CASES = [(family, kind) for family in models.FAMILIES for kind in MAKERS if family != "dit" or kind in ("full", "lora")]


def expected(family: str, kind: str, model: Model) -> list[str]:
    """The names of the parameters that a gradient other than zero reaches in the first step."""
    if kind == "full":
        every = [f"network.{name}" for name, _ in model.networks["network"].named_parameters()]
        return [name for name in every if name not in SILENT.get(family, [])]
    if kind == "lora":
        return [f"{layer}.up" for layer in LORA[family]]  # up is zero yet, so nothing reaches down
    return WORDS[family] if kind == "words" else [f"{layer}.{leaf}" for layer in ZERO[family] for leaf in ("weight", "bias")]


def hint(family: str, kind: str) -> Tensor | None:
    if kind != "controlnet":
        return None
    return torch.randn(2, 4, 16, 16) if family == "sd3" else torch.rand(2, 3, 128, 128)


def run(trainee: Trainee, shown: Tensor | None, folder: Path, steps: int) -> loop.Run:
    settings = FinetuneSettings(output_dir=folder, max_train_steps=steps, lr_warmup_steps=0, learning_rate=1e-3)
    return loop.begin(settings, trainee, Denoising(trainee), lambda number: models.batch(trainee, hint=shown))


@pytest.mark.parametrize("family, kind", CASES)
def test_a_gradient_reaches_what_is_trained_and_nothing_else(fresh: models.Models, family: str, kind: str) -> None:
    model = fresh(family)
    trainee = MAKERS[kind](model)
    Denoising(trainee)(models.batch(trainee, hint=hint(family, kind)), loop.seeded(0, 0)).backward()
    reached = [name for name, p in trainee.parameters.items() if p.grad is not None and p.grad.any()]
    assert sorted(reached) == sorted(expected(family, kind, model))
    ours = set(map(id, trainee.parameters.values()))
    assert [name for name, p in model.networks.named_parameters() if id(p) not in ours and (p.grad is not None or p.requires_grad)] == []


@pytest.mark.parametrize("family, kind", CASES)
def test_a_step_changes_what_is_trained_and_nothing_else(fresh: models.Models, family: str, kind: str, tmp_path: Path) -> None:
    model = fresh(family)
    trainee, before = MAKERS[kind](model), models.digest(model)
    kept = {name: p.detach().clone() for name, p in trainee.parameters.items()}
    (step,) = loop.train(run(trainee, hint(family, kind), tmp_path, 1))
    assert step.loss > 0 and step.grad_norm > 0 and step.checkpoint is not None
    moved = [name for name, p in trainee.parameters.items() if not torch.equal(p, kept[name])]
    assert set(expected(family, kind, model)) <= set(moved)
    changed = [name for name, value in models.digest(model).items() if not torch.equal(value, before[name])]
    assert all(kind == "full" and name in trainee.parameters for name in changed) and (kind != "full" or changed)


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_a_controlnet_wakes_up_from_its_zeros(fresh: models.Models, family: str, tmp_path: Path) -> None:
    """In the second step the copied layers have a gradient, in the third all that a hint passes through."""
    trainee = controlnet(fresh(family))
    steps = loop.train(run(trainee, hint(family, "controlnet"), tmp_path, 3))
    reached: dict[str, bool] = {}
    for name, p in trainee.parameters.items():
        p.register_hook(lambda gradient, name=name: reached.__setitem__(name, reached.get(name, False) or bool(gradient.any())))
    list(steps)
    asleep = [name for name in trainee.parameters if not reached.get(name)]
    end = "transformer_blocks.0.context_block."  # the text leaves a joint net behind its last block
    assert [name for name in asleep if not name.startswith(end)] == []


REFUSED: dict[str, tuple[Callable[[Model], Trainee], type[Exception], str]] = {
    "controlnet": (controlnet, ArgumentError, "got dit, whose blocks take no residuals of a ControlNet"),
    "words": (lambda model: words(model, "<cat>", "cat"), ArgumentError, "reads no prompts by CLIP"),
    "a place": (lambda model: full(model, ("network", "text_encoder")), UnknownName, "unknown network 'text_encoder'"),
    "lora's place": (lambda model: lora(model, places=("text_encoder",)), UnknownName, "unknown network for LoRA 'text_encoder'"),
    "no layer": (lambda model: lora(model, targets="nowhere"), ArgumentError, "got targets 'nowhere'"),
    "no rank": (lambda model: lora(model, 0), ArgumentError, "got rank 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(fresh: models.Models, case: str) -> None:
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as refused:
        make(fresh("dit"))
    assert "\n" not in str(refused.value)


def test_half_precision_is_not_trained_in_full(fresh: models.Models) -> None:
    model = fresh("dit")
    model.networks["network"].half()
    with pytest.raises(ArgumentError, match=r'expected float32 to train it, load the model with dtype="float32"'):
        full(model)


def test_a_hint_goes_to_a_controlnet_only(fresh: models.Models) -> None:
    shown = torch.rand(2, 3, 128, 128)
    for trainee, given, message in ((lora(fresh("sd1")), shown, "with a hint"), (controlnet(fresh("sd1")), None, "without a hint")):
        with pytest.raises(ArgumentError, match=message):
            Denoising(trainee)(models.batch(trainee, hint=given), loop.seeded(0, 0))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_text_encoders_are_trained_where_they_are_named(fresh: models.Models, family: str) -> None:
    places = ["network", *(place for place in ("text_encoder", "text_encoder_2") if place in fresh(family).networks)]
    for make in (full, lambda model, places: lora(model, places=places)):
        trainee = make(fresh(family), places)
        Denoising(trainee)(models.batch(trainee), loop.seeded(0, 0)).backward()
        reached = {name.partition(".")[0] for name, p in trainee.parameters.items() if p.grad is not None and p.grad.any()}
        assert reached == set(places)
