"""M-LSD: the released weights find the lines that were drawn; the decoding finds the lines that were put into a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from unnoise.networks.mlsd import MLSD, MLSD_LARGE, MLSD_TINY, segments


def released(shared: Path) -> MLSD:
    network = MLSD().eval()
    network.load_state_dict(torch.load(shared / "weights/annotators/mlsd_tiny_512_fp32.pth", weights_only=True))
    return network


DRAWN = [(180, 160, 180, 380), (180, 380, 330, 380), (330, 380, 330, 160), (330, 160, 180, 160)]  # a box


def box() -> Tensor:
    """A dark box on light ground, (1, 3, 512, 512)."""
    page = Image.new("RGB", (512, 512), (200, 190, 180))
    ImageDraw.Draw(page).rectangle((180, 160, 330, 380), fill=(60, 80, 110))
    return torch.from_numpy(np.asarray(page) / np.float32(127.5) - 1).permute(2, 0, 1)[None]


def apart(line: Tensor, other: tuple[int, int, int, int]) -> float:
    """The farther pair of ends, in pixels; a line has no direction."""
    a, b = line.view(2, 2), torch.tensor(other, dtype=torch.float32).view(2, 2)
    return min((a - b).norm(dim=1).max().item(), (a - b.flip(0)).norm(dim=1).max().item())


@torch.no_grad()
def test_a_drawn_box_is_found(shared: Path) -> None:
    lines = segments(released(shared)(box())[0])
    assert len(lines) == 4
    assert all(min(apart(line, side) for line in lines) < 8 for side in DRAWN)


@torch.no_grad()
def test_plain_ground_has_no_lines(shared: Path) -> None:
    assert len(segments(released(shared)(torch.full((1, 3, 256, 384), 0.4))[0])) == 0


@pytest.mark.parametrize("config", [MLSD_TINY, MLSD_LARGE], ids=["tiny", "large"])
@torch.no_grad()
def test_shapes(config) -> None:
    assert MLSD(config).eval()(torch.zeros(2, 3, 64, 96)).shape == (2, 9, 32, 48)


def test_names_of_the_large_file() -> None:
    """Its fusing blocks are 15 to 23; the backbone ends with block 13."""
    names = MLSD(MLSD_LARGE).state_dict()
    assert {name.split(".")[0] for name in names} == {"backbone", *(f"block{i}" for i in range(15, 24))}
    assert names["backbone.features.13.conv.2.weight"].shape == (96, 576, 1, 1) and "backbone.features.14.conv.2.weight" not in names
    assert names["block15.conv1.0.weight"].shape == (64, 96, 1, 1) and names["block21.conv2.0.weight"].shape == (64, 16, 1, 1)


def field(*lines: tuple[int, int, float, tuple[float, float, float, float]]) -> Tensor:
    """A map (9, 40, 60) that says: centre x, y, logit, and where its ends are from there."""
    found = torch.full((9, 40, 60), -20.0)
    found[1:] = 0
    for x, y, logit, ends in lines:
        found[0, y, x], found[1:5, y, x] = logit, torch.tensor(ends)
    return found


def test_segments_are_centre_and_ends_in_pixels() -> None:
    found = field((30, 20, 3.0, (-15, -5, 15, 5)), (10, 35, 1.0, (0, -12, 0, 12)))
    assert segments(found).tolist() == [[30, 30, 90, 50], [20, 46, 20, 94]]  # the surer first, at twice the map's size


def test_unsure_short_and_second_best_lines_are_left_out() -> None:
    sure, beside = (30, 20, 3.0, (-15, 0, 15, 0)), (31, 20, 2.0, (-15, 0, 15, 0))
    short, unsure = (10, 10, 3.0, (-5, 0, 5, 0)), (50, 30, -3.0, (0, -15, 0, 15))
    assert len(segments(field(sure, beside, short, unsure))) == 1
    assert len(segments(field(sure, beside, short, unsure), length=5, score=0.01)) == 3
    assert len(segments(field(sure, short), length=5, most=1)) == 1
    assert segments(field()).shape == (0, 4)
