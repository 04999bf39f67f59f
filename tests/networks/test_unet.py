"""The U-Net against the authors' own outputs, family by family, and what it promises about sizes and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from networks import golden, golden_latents, golden_pixels
from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.networks.unet import UNet, UNetConfig

TINY = UNetConfig(widths=(32, 64), depths=(0, 1), blocks=1, context_width=24, heads=4)
LINEAR: dict[str, Any] = {"blocks": 1, "context_width": 24, "head_width": 16, "linear_projection": True}
SD2 = UNetConfig(widths=(32, 32), depths=(1, 1), **LINEAR)
SDXL = UNetConfig(widths=(32, 64), depths=(0, 2), mid_depth=2, pooled_width=108, **LINEAR)
PIXELS: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "depths": (0, 1), "blocks": 1, "context_width": 0}
ADM = UNetConfig(**PIXELS, widths=(32, 32), head_width=16, scale_shift=True, resample="residual", num_classes=10, learn_sigma=True)
DDPM = UNetConfig(**PIXELS, widths=(32, 64), heads=1, corner_pad=True, eps=1e-6, time_shift=1.0, time_cos_first=False)


@pytest.mark.parametrize(
    ("family", "output"),
    [
        ("ldm/uncond", "unet.eps"),
        ("ldm/cin", "unet.eps"),
        ("ldm/sd1", "unet.eps"),
        ("ldm/sd2", "unet.v"),
        ("sdxl/base", "unet.eps"),
        ("sdxl/refiner", "unet.eps"),
    ],
)
def test_authors_outputs(shared: Path, family: str, output: str) -> None:
    opened = golden_latents.read(shared / "golden" / family, ema=False)
    io, unet = opened.io, opened.network()
    tokens = next((io[name] for name in ("context", "txt", "class_embedding") if name in io), None)
    mine = unet(io["x"], io["t"], Cond(tokens=tokens, pooled=io.get("cond.vector"), labels=io.get("y")))
    golden.assert_recorded(io, opened.record, {output: mine})


@pytest.mark.parametrize(
    ("family", "output", "file"),
    [
        ("ddpm/unet", "out", {}),
        ("adm/iddpm", "out", {}),  # its t is a fraction
        ("adm/unet", "unet.out_legacy", {}),
        ("adm/unet", "unet.out_new", {"order": "qkv head d"}),
        ("consistency/unet", "unet.out", {}),  # its t is below zero
    ],
)
def test_authors_outputs_of_pixel_models(shared: Path, family: str, output: str, file: dict) -> None:
    opened = golden_pixels.read(shared / "golden" / family, "unet." if family == "adm/unet" else "", **file)
    io, unet = opened.io, opened.network()
    golden.assert_recorded(io, opened.record, {output: unet(io["x"], io["t"], Cond(labels=io.get("y")))})


def lively(config: UNetConfig) -> UNet:
    """Nothing left at zero, so that every branch shows in the output."""
    unet = UNet(config).eval()
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=p[0].numel() ** -0.5 if p.dim() > 1 else 0.3)
    return unet


def conditions(config: UNetConfig, rows: int) -> Cond:
    return Cond(
        tokens=torch.randn(rows, 5, config.context_width) if config.context_width else None,
        pooled=torch.randn(rows, config.pooled_width) if config.pooled_width else None,
        labels=torch.arange(rows) if config.num_classes else None,
    )


CONFIGS = {"sd1": TINY, "sd2": SD2, "sdxl": SDXL, "adm": ADM, "ddpm": DDPM}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_starts_at_zero_and_every_parameter_counts(config: UNetConfig) -> None:
    x, t, cond = torch.randn(2, config.in_channels, 8, 8), torch.tensor([3, 700]), conditions(config, 2)
    assert torch.equal(UNet(config)(x, t, cond), torch.zeros(2, config.out_channels * (2 if config.learn_sigma else 1), 8, 8))
    unet = lively(config)
    unet(x, t, cond).square().sum().backward()
    idle = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [(8, 8), (9, 8), (7, 11)])
def test_any_size(config: UNetConfig, size: tuple[int, int]) -> None:
    with torch.no_grad():
        y = lively(config)(torch.randn(1, config.in_channels, *size), torch.zeros(1), conditions(config, 1))
    assert y.shape[2:] == size
    assert y.isfinite().all()


def test_rows_are_independent() -> None:
    """A request answers the same whoever shares its batch."""
    unet, x, t, cond = lively(SDXL), torch.randn(3, 4, 8, 8), torch.tensor([1.0, 500.5, 999.0]), conditions(SDXL, 3)
    with torch.no_grad():
        together = unet(x, t, cond)
        alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], cond.rows(i, i + 1)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_every_condition_is_heard() -> None:
    with torch.no_grad():
        for config in (SDXL, ADM):
            unet, x, t = lively(config), torch.randn(1, config.in_channels, 8, 8), torch.tensor([500])
            cond = conditions(config, 1)
            given = {name: value for name in ("tokens", "pooled", "labels") if (value := getattr(cond, name)) is not None}
            for name, value in given.items():
                other = Cond(**{**given, name: value + 1})
                assert (unet(x, t, cond) - unet(x, t, other)).abs().max() > 1e-3, name


@pytest.mark.parametrize(
    ("config", "field", "missing"),
    [(TINY, "tokens", Cond()), (ADM, "labels", Cond()), (SDXL, "pooled", Cond(tokens=torch.zeros(1, 5, 24))), (TINY, "tokens", None)],
)
def test_missing_conditions_are_named(config: UNetConfig, field: str, missing: Cond | None) -> None:
    with pytest.raises(ArgumentError, match=f"conditioned on {field}"):
        UNet(config)(torch.zeros(1, config.in_channels, 8, 8), torch.zeros(1), missing)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depths": (1, 1)}, "2 depths for 4 widths"),
        ({"context_width": 0, "depths": (2, 1, 1, 0)}, "without text"),
        ({"widths": (320, 640, 1290, 1280)}, r"\[1290\]"),
        ({"heads": 7}, "heads"),
    ],
)
def test_impossible_configs_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        UNetConfig(**wrong)


def test_dropout_only_in_training() -> None:
    unet = lively(replace(DDPM, dropout=0.5))
    x, t = torch.randn(1, 3, 8, 8), torch.zeros(1)
    with torch.no_grad():
        assert torch.equal(unet(x, t), unet(x, t))
        unet.train()
        assert not torch.equal(unet(x, t), unet(x, t))


def test_sides_of_broken_patches_are_refused() -> None:
    config = UNetConfig(3, 3, widths=(32,), blocks=1, depths=(0,), mid_depth=0, context_width=0, patch=4)
    with pytest.raises(ArgumentError, match="got x of 8x10, expected multiples of 4"):
        UNet(config)(torch.zeros(1, 3, 8, 10), torch.zeros(1))
