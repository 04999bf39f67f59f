"""Request: each field once, with one line for every kind of wrong value; what it takes is plain Python, ready for JSON."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from unnoise.errors import ArgumentError, UnknownName
from unnoise.pipeline.arguments import Arguments
from unnoise.pipeline.request import Request


def test_the_arguments_for_editors_are_the_fields() -> None:
    """In the same order, so that the two read alike; the prompt is the one that stands in front."""
    assert list(Arguments.__annotations__) == [name for name in Request.model_fields if name != "prompt"]


def test_every_field_has_a_line_of_help() -> None:
    for name, field in Request.model_fields.items():
        assert field.description and "\n" not in field.description and len(field.description) < 90, name


WRONG: dict[str, tuple[type[ArgumentError], dict[str, Any], str]] = {
    "no text": (ArgumentError, {"prompt": 3}, "got prompt 3: expected a text or a list of texts"),
    "an empty list": (ArgumentError, {"negative_prompt": []}, "got negative_prompt []: expected a text or a list of texts"),
    "a number as text": (
        ArgumentError,
        {"num_inference_steps": "3"},
        "got num_inference_steps '3': expected a whole number from 1 to 1000",
    ),
    "a whole number out of range": (ArgumentError, {"height": 0}, "got height 0: expected a whole number from 1 to 2048"),
    "no whole number": (ArgumentError, {"seed": 1.5}, "got seed 1.5: expected a whole number from -1 to 9223372036854775807"),
    "a bool": (ArgumentError, {"clip_skip": True}, "got clip_skip True: expected a whole number from 0 to 100"),
    "a number out of range": (ArgumentError, {"guidance_scale": 101}, "got guidance_scale 101: expected a number from -100 to 100"),
    "no number": (ArgumentError, {"guidance_rescale": None}, "got guidance_rescale None: expected a number from 0 to 1"),
    "not a number": (ArgumentError, {"guidance_scale": float("nan")}, "got guidance_scale nan: expected a number from -100 to 100"),
    "no bool": (ArgumentError, {"prompt_weights": 1}, "got prompt_weights 1: expected True or False"),
    "no options": (ArgumentError, {"sampler_options": "eta"}, "got sampler_options 'eta': expected a dict such as {'eta': 0.5}"),
    "one number for two": (
        ArgumentError,
        {"original_size": 16},
        "got original_size 16: expected two whole numbers, the vertical one first",
    ),
    "a wrong one of two": (ArgumentError, {"target_size": (16, -1)}, "got target_size -1: expected a whole number from 0 to 65536"),
    "a share out of range": (ArgumentError, {"guidance_interval": (0, 2)}, "got guidance_interval 2: expected a number from 0 to 1"),
    "shares in disorder": (
        ArgumentError,
        {"guidance_interval": (0.9, 0.1)},
        "got guidance_interval (0.9, 0.1): expected the lower share of noise first",
    ),
    "no list of blocks": (
        ArgumentError,
        {"skip_guidance_layers": 3},
        "got skip_guidance_layers 3: expected a list of block numbers, such as [7, 8, 9]",
    ),
    "a text as blocks": (
        ArgumentError,
        {"skip_guidance_layers": "7"},
        "got skip_guidance_layers '7': expected a list of block numbers, such as [7, 8, 9]",
    ),
    "a block that is no number": (
        ArgumentError,
        {"skip_guidance_layers": [7, 1.5]},
        "got skip_guidance_layers 1.5: expected whole numbers",
    ),
    "no name": (UnknownName, {"sampler": 3}, "unknown sampler 3: expected the name of a sampler"),
    "no blocks": (
        ArgumentError,
        {"skip_guidance_layers": []},
        "got skip_guidance_layers []: expected a list of block numbers, such as [7, 8, 9]",
    ),
    "no choice": (UnknownName, {"output_type": "PIL"}, "unknown output_type 'PIL': known: latent, numpy, pil, pt"),
    "no field": (UnknownName, {"steps": 3}, "unknown argument 'steps': did you mean 'num_inference_steps'?"),
    "strength alone": (
        ArgumentError,
        {"strength": 0.5},
        "got strength or mask_image without an image: expected image=... to start from",
    ),
    "two places to start from": (
        ArgumentError,
        {"strength": 0.5, "denoising_start": 0.8},
        "got strength 0.5 with denoising_start, which says where to start: leave one of them out",
    ),
    "a scale of nothing": (
        ArgumentError,
        {"classifier_scale": 2},
        "got classifier_scale 2 without a classifier: leave it out, or give classifier=...",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_refused_in_one_line(case: str) -> None:
    kind, fields, expected = WRONG[case]
    with pytest.raises(kind) as refused:
        Request(**fields)
    assert str(refused.value) == expected


def test_the_first_of_several_faults_is_named() -> None:
    with pytest.raises(ArgumentError, match="got height 0"):
        Request(prompt="x", height=0, width=0)


def test_a_request_is_frozen() -> None:
    request = Request(prompt="x")
    with pytest.raises(ValidationError, match="frozen"):
        request.prompt = "y"


def test_other_libraries_numbers_become_pythons() -> None:
    request = Request(
        num_inference_steps=np.int64(3),
        guidance_scale=np.float32(2),
        class_labels=torch.tensor([1, 2]),
        sampler_options={"eta": np.float64(0.5)},
        spacing_options={},
    )
    assert request.fields() == {"num_inference_steps": 3, "guidance_scale": 2.0, "class_labels": (1, 2), "sampler_options": {"eta": 0.5}}
    assert type(request.num_inference_steps) is int and type(request.guidance_scale) is float


def test_fields_are_those_that_differ_from_the_defaults() -> None:
    assert Request().fields() == Request(**{name: field.default for name, field in Request.model_fields.items()}).fields() == {}
    given = {"prompt": ("x", "y"), "seed": 0, "guidance_scale": 1.0, "crops_coords_top_left": (1, 0), "latents": torch.zeros(1)}
    assert Request(**given).fields() == given


def test_a_changed_request_is_checked_again() -> None:
    request = Request(prompt="x", height=64)
    assert request.changed(height=None, seed=3).fields() == {"prompt": "x", "seed": 3} and request.height == 64
    with pytest.raises(ArgumentError, match="got height 0"):
        request.changed(height=0)


def test_a_request_needs_no_torch() -> None:
    code = "import sys; from unnoise.pipeline.request import Request; Request(prompt='x', height=64); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
