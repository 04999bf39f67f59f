"""NCSN++, DDPM++ and EDM's ADM against the authors' own outputs, their published sizes, and what the networks promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks import golden, golden_edm
from networks.test_sizes import giga_macs, parameters
from unnoise import schedules
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions
from unnoise.errors import ArgumentError
from unnoise.networks.ncsnpp import NCSNpp, NCSNppConfig, Resize, resized
from unnoise.networks.unet import UNet, UNetConfig
from unnoise.runtime.denoise import NetworkDenoiser

NCSN: dict[str, Any] = {"fourier": True, "blur": True, "pyramid": True}
FACES: dict[str, Any] = {"widths": (128, 256, 256, 256), "attend": (False, False, True, False)}  # FFHQ and AFHQ, 64x64
SIZES = {  # by the authors' code: parameters, side, giga multiply-adds
    "ddpm++ cifar": (NCSNppConfig(), 55_732_739, 32, 21.19),
    "ddpm++ cifar, augmented": (NCSNppConfig(augment_width=9), 55_733_891, 32, 21.19),
    "ddpm++ cifar, ten classes": (NCSNppConfig(augment_width=9, num_classes=10), 55_735_299, 32, 21.19),
    "ncsn++ cifar": (NCSNppConfig(**NCSN), 56_395_523, 32, 21.40),
    "ncsn++ cifar, augmented": (NCSNppConfig(**NCSN, augment_width=9), 56_397_827, 32, 21.40),
    "ddpm++ faces": (NCSNppConfig(**FACES, augment_width=9), 61_805_571, 64, 41.87),
}
SMALL: dict[str, Any] = {"stem": 16, "widths": (16, 32), "blocks": 1, "attend": (False, True)}
CONFIGS = {
    "ddpm": NCSNppConfig(**{**SMALL, "stem": 32, "widths": (32, 32)}, resample="conv", rescale=False, group_width=1),
    "ddpm++": NCSNppConfig(**SMALL, num_classes=4, augment_width=9),
    "ncsn++": NCSNppConfig(**SMALL, **NCSN),
}


@pytest.mark.parametrize(("config", "expected", "side", "macs"), SIZES.values(), ids=SIZES)
def test_sizes(config: NCSNppConfig, expected: int, side: int, macs: float) -> None:
    with torch.device("meta"):
        network, x, t = NCSNpp(config), torch.zeros(1, 3, side, side), torch.zeros(1)
        cond = Cond(labels=torch.zeros(1, dtype=torch.long))
    assert parameters(network) == expected
    assert giga_macs(lambda: network(x, t, cond)) == pytest.approx(macs, rel=2e-3)


def test_adm_of_edm_is_adm_without_learned_variances() -> None:
    small = {"in_channels": 3, "out_channels": 3, "widths": (192, 384, 576, 768), "depths": (0, 1, 1, 1), "blocks": 3, "head_width": 64}
    with torch.device("meta"):
        unet, x, t = UNet(UNetConfig(**small, num_classes=1000, context_width=0, scale_shift=True, resample="residual")), *_meta(64)
        cond = Cond(labels=torch.zeros(1, dtype=torch.long))
    assert parameters(unet) == 295_899_267
    assert giga_macs(lambda: unet(x, t, cond)) == pytest.approx(109.66, rel=2e-3)


def _meta(side: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 3, side, side), torch.zeros(1)


@pytest.mark.parametrize("name", ["ddpm", "ddpmpp"])
def test_score_sde(shared: Path, name: str) -> None:
    network, io, record = golden_edm.score_sde(shared, name)
    with torch.no_grad():
        mine = network(io["x"], io["labels"].float())
    golden.assert_close(mine, io["net"], record["float32_vs_float64"]["net"])


def test_score_sde_variance_exploding(shared: Path) -> None:
    network, io, record = golden_edm.score_sde(shared, "ncsnpp")
    sigma = io["labels"]
    with torch.no_grad():
        mine = network(2 * io["x"] - 1, sigma.log()) / sigma.view(-1, 1, 1, 1)
    golden.assert_close(mine, io["net"], record["float32_vs_float64"]["net"])


@pytest.mark.parametrize("name", ["ddpmpp", "ddpmpp_vp", "ncsnpp", "dhariwal"])
def test_edm_network(shared: Path, name: str) -> None:
    network, io, record = golden_edm.edm(shared, name)
    with torch.no_grad():
        mine = network(io["x"], io["F_noise_labels"], golden_edm.labels(io))
    golden.assert_close(mine, io["F"], record["float32_vs_float64"]["F"])


@pytest.mark.parametrize(
    ("name", "precond"),
    [
        *[("ddpmpp", precond) for precond in golden_edm.PRECONDITIONED],
        ("ddpmpp_vp", "VPPrecond"),
        ("ncsnpp", "VEPrecond"),
        ("ncsnpp", "EDMPrecond"),
        ("dhariwal", "EDMPrecond"),
        ("dhariwal", "VPPrecond"),
    ],
)
def test_edm_preconditioned(shared: Path, name: str, precond: str) -> None:
    """One set of weights under three preconditionings: VP and VE are the processes of their names."""
    network, io, record = golden_edm.edm(shared, name)
    with torch.no_grad():
        mine = golden_edm.PRECONDITIONED[precond](network)(io["x"], io["sigma"], golden_edm.labels(io))
    golden.assert_close(mine, io[f"{precond}.D"], record["float32_vs_float64"][f"{precond}.D"])


@pytest.mark.parametrize("name", ["ddpmpp", "dhariwal"])
def test_edm_without_a_label(shared: Path, name: str) -> None:
    """The authors leave the label out of a conditional network by a vector of zeros: the class behind the last."""
    network, io, record = golden_edm.edm(shared, name)
    none = Cond(labels=torch.full((len(io["x"]),), io["class_labels"].shape[1]))
    with torch.no_grad():
        mine = golden_edm.PRECONDITIONED["EDMPrecond"](network)(io["x"], io["sigma"], none)
    golden.assert_close(mine, io["D_no_label"], record["float32_vs_float64"]["D_no_label"])


def test_edm_augmented(shared: Path) -> None:
    network, io, record = golden_edm.edm(shared, "ddpmpp")
    cond = Cond(labels=io["class_labels"].argmax(1), pooled=io["augment_labels"])
    with torch.no_grad():
        mine = NetworkDenoiser(network, schedules.edm(), predictions.edm())(io["x"], io["sigma"], cond)
    assert isinstance(mine, Tensor)
    golden.assert_close(mine, io["D_augment"], record["float32_vs_float64"]["D_augment"])


# What holds for any weights


def lively(config: NCSNppConfig) -> NCSNpp:
    """Nothing left at zero, so that every branch shows in the output."""
    network = NCSNpp(config).eval()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=p[0].numel() ** -0.5 if p.dim() > 1 else 0.3)
    return network


def conditions(config: NCSNppConfig, rows: int) -> Cond:
    augmentation = torch.randn(rows, config.augment_width) if config.augment_width else None
    return Cond(labels=torch.arange(rows) if config.num_classes else None, pooled=augmentation)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_starts_at_zero_and_every_parameter_counts(config: NCSNppConfig) -> None:
    x, t, cond = torch.randn(2, 3, 8, 8), torch.tensor([0.3, -1.2]), conditions(config, 2)
    assert torch.equal(NCSNpp(config)(x, t, cond), torch.zeros_like(x))
    network = lively(config)
    network(x, t, cond).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_rows_are_independent(config: NCSNppConfig) -> None:
    network, x, t, cond = lively(config), torch.randn(3, 3, 8, 12), torch.tensor([-2.0, 0.5, 1.5]), conditions(config, 3)
    with torch.no_grad():
        together = network(x, t, cond)
        alone = torch.cat([network(x[i : i + 1], t[i : i + 1], cond.rows(i, i + 1) if config.num_classes else None) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("side", [8, 10])
@pytest.mark.parametrize("to", ["down", "up"])
def test_the_blur_is_a_convolution_with_1_3_3_1(side: int, to: Resize) -> None:
    """Written out: zeros between the pixels and four times the filter, or every second pixel of it (Karras et al. 2020, upfirdn2d)."""
    x, taps = torch.randn(2, 1, side, 6, dtype=torch.float64), torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    kernel = taps.outer(taps)[None, None]
    written = F.conv2d(x, kernel, stride=2, padding=1) if to == "down" else F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1)
    torch.testing.assert_close(resized(x, to, blur=True), written)


@pytest.mark.parametrize("to", ["down", "up"])
def test_changing_the_size_keeps_a_constant_picture(to: Resize) -> None:
    x = torch.full((1, 2, 8, 8), 3.0)
    assert bool((resized(x, to, blur=False) == 3).all())
    inner = resized(x, to, blur=True)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 3.0))


def test_no_augmentation_is_an_augmentation_of_zeros_and_every_condition_is_heard() -> None:
    network, x, t = lively(CONFIGS["ddpm++"]), torch.randn(1, 3, 8, 8), torch.zeros(1)
    label, zeros = torch.tensor([1]), torch.zeros(1, 9)
    with torch.no_grad():
        plain = network(x, t, Cond(labels=label))
        assert torch.equal(plain, network(x, t, Cond(labels=label, pooled=zeros)))
        for other in (Cond(labels=label + 1), Cond(labels=label + 3), Cond(labels=label, pooled=zeros + 1)):
            assert (plain - network(x, t, other)).abs().max() > 1e-3


def test_frequencies_stay_exact_in_half_precision() -> None:
    """log(sigma) of 5 times frequencies of 16: hundreds of radians, which bfloat16 knows to the whole radian only."""
    network, x, t = lively(CONFIGS["ncsn++"]), torch.randn(1, 3, 8, 8), torch.tensor([5.0])
    with torch.no_grad():
        exact = network(x, t)
        rough = network.bfloat16()(x.bfloat16(), t).float()
    assert network.fourier is not None
    assert network.fourier.frequencies.dtype == torch.float32
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_dropout_only_in_training() -> None:
    network = lively(NCSNppConfig(**SMALL, dropout=0.5))
    x, t = torch.randn(1, 3, 8, 8), torch.zeros(1)
    with torch.no_grad():
        assert torch.equal(network(x, t), network(x, t))
        network.train()
        assert not torch.equal(network(x, t), network(x, t))


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="attend for 2 levels and 3 widths"):
        NCSNppConfig(attend=(True, False))
    with pytest.raises(ArgumentError, match="multiples of"):
        NCSNppConfig(widths=(256, 254, 256))
    with pytest.raises(ArgumentError, match=r"group norm \[140, 240\] channels, also in sums"):  # of 32 groups
        NCSNppConfig(stem=20, widths=(20, 120), blocks=1, attend=(False, False))
    with pytest.raises(ArgumentError, match="conditioned on labels"):
        NCSNpp(CONFIGS["ddpm++"])(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    with pytest.raises(ArgumentError, match="got x of 8x9, expected multiples of 2"):
        NCSNpp(CONFIGS["ncsn++"])(torch.zeros(1, 3, 8, 9), torch.zeros(1))
