"""What a request refuses, and what it takes, of models of every kind of conditioning."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unnoise
from unnoise.checkpoints import native
from unnoise.errors import ArgumentError
from unnoise.families import table
from unnoise.pipeline import adapters
from unnoise.pipeline.conditionings import CONDITIONINGS
from unnoise.pipeline.job import Job, resolve
from unnoise.pipeline.locating import BUILTIN
from unnoise.pipeline.request import Request


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["x", 0.5], r"got 0.5 in lora \['x', 0.5\]: expected a file, a pair \(FILE, SCALE\), or a list of either"),
        (("x", "y"), r"got lora \('x', 'y'\): expected a file"),
        (("x", float("nan")), "nan"),
        (("x", True), "True"),
        ([("x", 1, 2)], r"got \('x', 1, 2\) in lora"),
    ],
)
def test_a_lora_that_is_none_is_named_as_it_was_given(given: Any, expected: str) -> None:
    with pytest.raises(ArgumentError, match=expected):
        adapters.pairs(given)


def test_what_names_loras() -> None:
    assert adapters.pairs("x") == [("x", 1.0)]
    assert adapters.pairs(["x", (Path("y"), 2)]) == [("x", 1.0), (Path("y"), 2.0)]


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, hashed = tmp_path / "model.safetensors", []
    sha256 = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda: hashed.append(1) or sha256())
    path.write_bytes(b"one")
    first = native.file_hash(path)
    assert native.file_hash(path) == first and len(hashed) == 1
    path.write_bytes(b"another")
    assert native.file_hash(path) != first and len(hashed) == 2


def test_a_model_says_what_it_is() -> None:
    name = next(BUILTIN.glob("*.safetensors")).stem
    model = unnoise.load(name, dtype="float32", device="cpu")
    assert repr(model) == f"Model({name!r}, family={model.spec.family!r}, dtype=torch.float32, device='cpu')"


# A family of each kind of conditioning.
NAMES = {
    "none": "ldm-uncond",
    "labels": "dit-xl-2",
    "label_tokens": "ldm-class",
    "bert": "ldm-text",
    "clip": "sd1",
    "clip_penultimate": "sd2",
    "sdxl": "sdxl",
    "refiner": "sdxl-refiner",
    "sd3": "sd3-medium",
    "pixart": "pixart-sigma",
}
GIVEN: dict[str, Any] = {  # of every argument of the table a value that is not its default
    "aesthetic_score": 7.0,
    "negative_aesthetic_score": 1.0,
    "original_size": (64, 64),
    "crops_coords_top_left": (1, 2),
    "target_size": (64, 64),
    "max_sequence_length": 128,
    "clip_skip": 1,
    "negative_prompt": "blue",
    "guidance_scale": 2.0,
}


def asked(kind: str, **given: Any) -> Job:
    """Of a published family, without its weights."""
    own: dict[str, Any] = {"labels": {"class_labels": 3}, "label_tokens": {"class_labels": 3}, "none": {}}.get(kind, {"prompt": "an apple"})
    return resolve(Request(**{**own, **given}), table.FAMILIES[NAMES[kind]])


def test_every_argument_of_the_table_is_tried() -> None:
    assert GIVEN.keys() == {name for kind in CONDITIONINGS.values() for name in kind.reads}
    assert NAMES.keys() == CONDITIONINGS.keys() - {"draft"}  # the built-in model's, which has no row in the table of published families
    for kind, name in NAMES.items():
        assert table.FAMILIES[name].conditioning == kind


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("name", GIVEN)
def test_what_a_model_does_not_read_is_refused(kind: str, name: str) -> None:
    assert asked(kind)
    if name in CONDITIONINGS[kind].reads:
        assert asked(kind, **{name: GIVEN[name]})
        return
    with pytest.raises(ArgumentError, match=f"got {name} .* {NAMES[kind]} does not read: leave it out, it is for ") as refused:
        asked(kind, **{name: GIVEN[name]})
    assert "\n" not in str(refused.value)


def test_what_is_harmless_is_left_alone() -> None:
    assert asked("sd3", guidance_scale=1, negative_prompt="blue", guidance_rescale=0.5).negative_prompts == ("blue",)
    assert asked("none", negative_prompt="", guidance_scale=1.0, aesthetic_score=6)


def test_the_base_of_a_refiner_carries_the_scores() -> None:
    assert asked("sdxl", aesthetic_score=7.0, denoising_end=0.8).request.aesthetic_score == 7.0


def test_a_classifiers_scale_wants_a_classifier() -> None:
    with pytest.raises(ArgumentError, match=r"got classifier_scale 2 without a classifier"):
        asked("clip", classifier_scale=2.0)


@pytest.mark.parametrize("layers", [[24], [-1], [0, 30]])
def test_blocks_that_do_not_exist_are_refused(layers: list[int]) -> None:
    assert table.FAMILIES["sd3-medium"].joint_blocks == 24
    with pytest.raises(ArgumentError, match=r"got skip_guidance_layers (24|-1|30): expected a whole number from 0 to 23"):
        asked("sd3", skip_guidance_layers=layers)
    assert asked("sd3", skip_guidance_layers=[0, 23]).request.skip_guidance_layers == (0, 23)


def test_two_places_to_start_from() -> None:
    assert asked("sdxl", denoising_start=0.8).request.strength is None
    with pytest.raises(ArgumentError, match=r"got strength 0.5 with denoising_start"):
        asked("sdxl", denoising_start=0.8, strength=0.5)


@pytest.mark.parametrize("labels", [[1, 2], (1, 2), range(1, 3), torch.tensor([1, 2]), np.array([1, 2], np.uint8)])
def test_class_labels_of_any_library(labels: Any) -> None:
    found = asked("labels", class_labels=labels).labels
    assert found == (1, 2) and {type(label) for label in found} == {int}


@pytest.mark.parametrize("label", [7, np.int64(7), torch.tensor(7)])
def test_one_class_label(label: Any) -> None:
    assert asked("label_tokens", class_labels=label).labels == (7,)


@pytest.mark.parametrize("wrong", [1.5, [], "cat", True, [1.0], [None], torch.tensor([0.5]), np.zeros((1, 2), int), torch.zeros(0), 1000])
def test_what_is_no_class_label(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match=r"expected a whole number from 0 to 999") as refused:
        asked("labels", class_labels=wrong)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_loras_tag_is_no_text(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"got <lora:style> in the {name}: leave it out"):
        asked("clip", **{name: "blue <lora:style:0.5>"})
    assert asked("clip", **{name: "blue <lora:style:0.5>"}, prompt_weights=False)
