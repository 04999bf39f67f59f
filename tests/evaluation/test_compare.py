"""The comparison against figures that were counted on the authors' networks, closed forms, and what the papers print."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluation.sizes import SIZES
from unnoise.errors import UnknownName
from unnoise.evaluation import compare
from unnoise.families.papers import FAMILIES, PUBLISHED, published
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig
from unnoise.networks.dit import DiTConfig


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    parameters, macs = SIZES[name]
    (row,) = compare.table([name])
    assert row.parameters == parameters
    if macs is not None:
        assert row.giga_macs == pytest.approx(macs, rel=2e-3)


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("patch", [2, 8])
def test_dit_closed_form(patch: int, side: int) -> None:
    d, width, n = 3, 48, (side // patch) ** 2
    found = compare.count(DiTConfig(patch=patch, width=width, depth=d, heads=4, num_classes=1000), side)
    ends = 2 * patch**2 * 4 * width  # the final layer has twice the channels
    blocks = d * (12 * n * width**2 + 2 * n**2 * width + 6 * width**2)
    assert found.macs == n * ends / 2 + 256 * width + width**2 + blocks + 2 * width**2 + n * ends
    assert (
        found.parameters
        == (ends // 2 + width)
        + (256 * width + width**2 + 2 * width)
        + 1001 * width
        + d * (18 * width**2 + 15 * width)
        + (2 * width**2 + 2 * width)
        + (width + 1) * 2 * patch**2 * 4
    )
    assert (found.depth, found.tokens) == (d, n)


# transformer blocks, and the picture's tokens: SDXL's paper counts 70 against 16
DEPTHS = {
    "sd1": (16, 64**2),
    "sd2-v": (16, 96**2),
    "sdxl": (70, 64**2),
    "sdxl-refiner": (44, 64**2),
    "dit-l-2": (24, 16**2),
    "dit-xl-2-512": (28, 32**2),
    "sd3-medium": (24, 64**2),
    "sd3.5-large": (38, 64**2),
    "clip-l": (12, 77),
    "t5-xxl": (24, 77),
    "ddpm-cifar": (6, 16**2),  # attention blocks at 16x16: two on the way down, one in the middle, three on the way up; its 4x4 has one
}


@pytest.mark.parametrize("name", DEPTHS)
def test_depth_and_tokens(name: str) -> None:
    (row,) = compare.table([name])
    assert (row.depth, row.tokens) == DEPTHS[name]


def number(printed: str) -> tuple[float, float]:
    """What "2.6B" says, and one of its last digit."""
    digits, unit = printed[:-1], {"M": 1e6, "B": 1e9}[printed[-1]]
    return float(digits) * unit, unit * 10.0 ** -len(digits.partition(".")[2])


OTHERWISE = {"ldm-text": "1.45B with its text encoder", "sd3.5-medium": "2.5B"}  # printed, and not what the networks have
PRINTED = [name for name, model in PUBLISHED.items() if model.paper.parameters and name not in OTHERWISE]


@pytest.mark.parametrize("name", PRINTED)
def test_what_papers_print(name: str) -> None:
    (row,) = compare.table([name])
    printed, last = number(row.paper_parameters)
    assert abs(row.parameters - printed) <= last
    if row.paper_giga_macs:
        decimals = len(str(row.paper_giga_macs).partition(".")[2])
        assert row.giga_macs == pytest.approx(row.paper_giga_macs, rel=2e-3, abs=0.5 * 10.0**-decimals)


def test_memory_is_of_all_parts() -> None:
    """Weights of SDXL's network, two text encoders and autoencoder: 3.469e9 numbers."""
    base, alone, classes = compare.table(["sdxl", "ddpm-cifar", "ldm-4-imagenet"])
    assert base.all_parameters == 2_567_463_684 + 123_060_480 + 694_659_840 + 83_653_863
    assert (base.float32, base.float16) == (4 * base.all_parameters, 2 * base.all_parameters)
    assert alone.all_parameters == alone.parameters and alone.latent is None
    assert classes.all_parameters == 400_920_579 + 512_512 + 55_298_206 + 24_576


LATENTS = {"sd1": (4, 64, 64), "sd2-v": (4, 96, 96), "sdxl": (4, 128, 128), "sd3-medium": (16, 128, 128), "ldm-4-faces": (3, 64, 64)}


def test_latents() -> None:
    assert {row.name: row.latent for row in compare.table(LATENTS)} == LATENTS


def test_a_doubling_counts_as_the_authors_do_it() -> None:
    """A 3x3 convolution of the enlarged picture: nine products a pixel, though ours needs four."""
    config = AutoencoderConfig(widths=(32, 32), blocks=1)
    with torch.device("meta"):
        decoder = Autoencoder(config).decoder
    convolutions = [(name, m) for name, m in decoder.named_modules() if isinstance(m, nn.Conv2d)]
    pixels = {name: 16**2 if name.startswith(("up_blocks.1", "up_blocks.0.upsample", "conv_out")) else 8**2 for name, _ in convolutions}
    macs = sum(m.weight.numel() * pixels[name] for name, m in convolutions) + 4 * 4 * 8**2
    attention = 8**2 * 4 * 32**2 + 2 * (8**2) ** 2 * 32
    assert compare.count(config, 16).macs == macs + attention


def test_rows_say_where_they_come_from() -> None:
    for name, model in PUBLISHED.items():
        assert model.family in FAMILIES, name
    with pytest.raises(UnknownName, match="did you mean 'sdxl'"):
        published("sdxll")
    with pytest.raises(UnknownName, match="did you mean 'ldm'"):
        compare.of_family("ldms")
    assert compare.of_family("dit") == [name for name in PUBLISHED if name.startswith("dit-")]


def test_forms(tmp_path: Path) -> None:
    rows = compare.table(["ddpm-cifar", "dit-s-2"])
    assert compare.markdown(rows, ("name", "parameters", "latent", "paper_giga_macs")) == (
        "| name | parameters | latent | paper's GMACs |\n"
        "| --- | ---: | --- | ---: |\n"
        "| ddpm-cifar | 35,746,307 |  |  |\n"
        "| dit-s-2 | 32,865,056 | 4x32x32 | 6.06 |\n"
    )
    plain = json.loads(json.dumps(compare.as_json(rows)))
    assert [set(row) for row in plain] == [set(compare.COLUMNS)] * 2 and plain[1]["latent"] == [4, 32, 32]
    assert plain[0]["paper_giga_macs"] is None
    with pytest.raises(UnknownName, match="did you mean 'latent'"):
        compare.markdown(rows, ("name", "latents"))


def test_picture(tmp_path: Path) -> None:
    """As tall as its lines; every line has ink, and none runs over the edge."""
    pytest.importorskip("matplotlib")
    rows = compare.table(["sd1", "sdxl", "dit-xl-2", "t5-xxl"])
    compare.picture(rows, tmp_path / "a.png")
    compare.picture(rows[:1], tmp_path / "b.png")
    one, other = (np.asarray(Image.open(tmp_path / name).convert("L")) for name in ("a.png", "b.png"))
    assert one.shape[0] > other.shape[0]
    dark = one < 100
    assert all(part.any() for part in np.array_split(dark, 5)) and not dark[:, [0, -1]].any() and not dark[[0, -1]].any()
