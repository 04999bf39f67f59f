"""Pictures and ControlNets that a caller gives: what is taken, and what is refused in one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from unnoise.errors import ArgumentError
from unnoise.pipeline import inputs
from unnoise.pipeline.inputs import Control
from unnoise.runtime.placement import Networks, Placement

COLOURS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def net(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """As much of a ControlModel as a request looks at."""
    return SimpleNamespace(network=nn.Linear(2, 2), check=lambda network, name: None, placement=Placement(torch.device(device), dtype))


@pytest.mark.parametrize(
    "wrong, expected",
    [
        ({"scale": "x"}, "got scale 'x' of a Control: expected a number"),
        ({"scale": [1, 2]}, "got scale"),
        ({"scale": float("nan")}, "got scale nan"),
        ({"scale": True}, "got scale True"),
        ({"start": -0.1}, "from 0 to 1"),
        ({"end": 1.1}, "from 0 to 1"),
        ({"end": None}, "got end None"),
        ({"start": 0.8, "end": 0.2}, "expected start <= end"),
        ({"guess": "yes"}, "expected True or False"),
    ],
)
def test_a_control_checks_its_numbers_when_it_is_made(wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(ArgumentError, match=expected) as refused:
        Control(net(), COLOURS[0], **wrong)
    assert "\n" not in str(refused.value)


def test_numbers_of_numpy_are_numbers_of_a_control() -> None:
    control = Control(net(), COLOURS[0], scale=np.float32(0.5), start=0, end=np.int64(1))  # pyright: ignore[reportArgumentType]
    record = inputs.control_to_json(control)
    assert (record["scale"], record["start"], record["end"]) == (0.5, 0.0, 1.0)
    assert {type(record[name]) for name in ("scale", "start", "end")} == {float}


@pytest.mark.parametrize(("own", "named"), [(net(torch.bfloat16), "torch.bfloat16 on cpu"), (net(device="meta"), "torch.float32 on meta")])
def test_a_controlnet_of_another_type_or_place_is_refused(own: Any, named: str) -> None:
    model = Networks({"network": nn.Linear(2, 2)}, {"network": None})
    inputs.check_controls([Control(net(), COLOURS[0])], model, "sd1")
    with pytest.raises(ArgumentError, match=f"got a ControlNet in {named} for a model in torch.float32 on cpu: load it with"):
        inputs.check_controls([Control(net(), COLOURS[0]), Control(own, COLOURS[0])], model, "sd1")


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((0, 0, 3)),
        np.zeros((0, 8), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((8, 8, 5), np.uint8),
        torch.zeros(2, 8, 8),
        torch.zeros(1, 2, 8, 8),
        torch.zeros(3, 0, 8),
        torch.zeros(8),
    ],
)
def test_shapes_that_are_no_picture_are_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match=r"got image of shape .* expected") as refused:
        inputs.pixels(wrong, 8, 8)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("wrong", [np.full((8, 8, 3), "x"), np.full((8, 8, 3), None)])
def test_arrays_of_other_things_are_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="expected a PIL image"):
        inputs.pixels(wrong, 8, 8)


@pytest.mark.parametrize("one", [COLOURS[:1], COLOURS], ids=["one", "two"])
def test_what_generate_gives_is_taken_as_images(one: np.ndarray) -> None:
    """Every output_type: PIL images, (b, h, w, 3) and (b, 3, h, w) in 0..1."""
    n, exact = len(one), torch.from_numpy(one.astype(np.float32) / 255).permute(0, 3, 1, 2)
    for given in ([Image.fromarray(row) for row in one], one, one.astype(np.float32) / 255, exact):
        assert torch.equal(inputs.stack(given, n, 8, 8), exact)
    assert inputs.digest(one) == inputs.digest(list(one)) == inputs.digest([Image.fromarray(row) for row in one])


@pytest.mark.parametrize("gray", [COLOURS[0, :, :, 0], COLOURS[0, :, :, :1], torch.from_numpy(COLOURS[0, :, :, 0] / 255)[None]])
def test_gray_pictures_have_one_channel_or_none(gray: Any) -> None:
    expected = torch.from_numpy(COLOURS[0, :, :, 0].astype(np.float32) / 255).expand(1, 3, 8, 8)
    assert torch.equal(inputs.pixels(gray, 8, 8), expected)
