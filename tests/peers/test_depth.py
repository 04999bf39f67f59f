"""Depth Anything against transformers: the same random weights, square and oblong pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unnoise.errors import ArgumentError
from unnoise.images.annotators import load
from unnoise.networks.depth import DepthAnything, DepthConfig


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def small(transformers: Any, taps: list[int]) -> Any:
    backbone = transformers.Dinov2Config(
        hidden_size=64,
        num_hidden_layers=12,
        num_attention_heads=1,
        image_size=56,
        patch_size=14,
        out_indices=taps,
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    sizes = {"reassemble_hidden_size": 64, "neck_hidden_sizes": [8, 12, 16, 20], "fusion_hidden_size": 12, "head_hidden_size": 6}
    return transformers.DepthAnythingForDepthEstimation(transformers.DepthAnythingConfig(backbone_config=backbone, **sizes)).eval()


@pytest.mark.parametrize("size", [(56, 56), (42, 84)], ids=["its own table", "a resized table"])
@pytest.mark.parametrize("taps", [[3, 6, 9, 12], [9, 10, 11, 12]], ids=["version 2", "version 1"])
@torch.no_grad()
def test_depth_anything(transformers: Any, tmp_path: Path, taps: list[int], size: tuple[int, int]) -> None:
    peer = small(transformers, taps)
    for p in peer.parameters():
        nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.2 if p.dim() == 1 else p[0].numel() ** -0.5)
    nn.init.constant_(peer.head.conv3.bias, 1.0)  # most of it above 0, where the last activation lets it through
    peer.save_pretrained(tmp_path)  # under the published names: those in memory have changed since
    mine = load("depth", tmp_path / "model.safetensors").network
    assert mine.config == DepthConfig(64, 12, 1, tuple(taps), (8, 12, 16, 20), 12, 6, 14, 4)
    x = torch.randn(2, 3, *size)
    theirs = peer(x).predicted_depth[:, None]
    assert theirs.gt(0).float().mean() > 0.3
    torch.testing.assert_close(mine(x), theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(DepthConfig(), 24_784_705), (DepthConfig(768, 12, 12, (3, 6, 9, 12), (96, 192, 384, 768), 128), 97_470_017)],
    ids=["small", "base"],
)
def test_parameters(transformers: Any, config: DepthConfig, parameters: int) -> None:
    """24.8 and 97.5 million, the figures of the authors' README."""
    with torch.device("meta"):
        assert sum(p.numel() for p in DepthAnything(config).parameters()) == parameters


def test_metric_models_are_refused() -> None:
    with pytest.raises(ArgumentError, match="got a metric Depth Anything"):
        DepthConfig.of({}, {"depth_estimation_type": "metric"})
