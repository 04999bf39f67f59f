"""ADM's classifier and its super-resolution network against the authors' own outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from networks import golden, golden_pixels
from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.networks.classifier import Classifier, ClassifierConfig, slope


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_attention_pooling(shared: Path, order: str) -> None:
    io, _, record = golden.read(shared / "golden/adm/unet")
    model = golden_pixels.classifier(shared / "golden/adm/unet", "classifier.", "head qkv d" if order == "legacy" else "qkv head d")
    name = "classifier.logits" if order == "legacy" else "classifier.logits_new"
    golden.assert_recorded(io, record, {name: model(io["x"], io["t"])})
    if order == "legacy":
        golden.assert_recorded(io, record, {"classifier.grad_logp": slope(model, io["x"], io["t"], io["y"])})


def test_adaptive_pooling(shared: Path) -> None:
    io, _, record = golden.read(shared / "golden/adm/classifier_adaptive")
    model = golden_pixels.classifier(shared / "golden/adm/classifier_adaptive")
    golden.assert_recorded(io, record, {"logits": model(io["x"], io["t"])})


def test_super_resolution_is_the_unet_beside_the_enlarged_picture(shared: Path) -> None:
    io, record = (file := golden_pixels.read(shared / "golden/adm/superres")).io, file.record
    assert file.found.spec.extra_channels == ("low_res",)
    unet = file.network()
    small = F.interpolate(io["low_res"], size=io["x"].shape[2:], mode="bilinear")
    with torch.no_grad():
        golden.assert_recorded(io, record, {"out": unet(io["x"], io["t"], Cond(labels=io["y"], concat=small))})


@pytest.mark.parametrize("pool", ["attention", "adaptive"])
def test_slope_is_the_gradient_of_the_log_probability(pool) -> None:
    """By differences, in float64; every parameter has a part in the logits."""
    config = ClassifierConfig(side=8, classes=5, widths=(32, 32), depths=(0, 1), blocks=1, head_width=16, pool=pool)
    model = Classifier(config).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=p[0].numel() ** -0.5 if p.dim() > 1 else 0.3)
    x, t, labels = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([3.0, 900.0]), torch.tensor([4, 1])
    along = torch.randn_like(x)

    def likely(x: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(model(x, t), dim=1)[[0, 1], labels]

    difference = (likely(x + 1e-4 * along) - likely(x - 1e-4 * along)) / 2e-4
    torch.testing.assert_close((slope(model, x, t, labels) * along).sum((1, 2, 3)), difference, rtol=1e-4, atol=1e-6)
    likely(x).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_another_size_is_refused() -> None:
    model = Classifier(ClassifierConfig(side=8, classes=5, widths=(32, 32), depths=(0, 1), blocks=1, head_width=16))
    with pytest.raises(ArgumentError, match="got x of 16x16, expected 8x8"):
        model(torch.zeros(1, 3, 16, 16), torch.zeros(1))
