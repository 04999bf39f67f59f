"""The autoencoder against the authors' outputs; tiles against the picture in one piece."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from networks import golden
from unnoise.errors import ArgumentError
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from unnoise.networks.tiling import MARGIN, Moments, measure, merge, normalize, spans

SMALL = AutoencoderConfig(widths=(16, 16, 32, 32), blocks=1, groups=8)


def load(folder: Path, config: AutoencoderConfig) -> tuple[Autoencoder, golden.Tensors, dict]:
    io, weights, record = golden.read(folder)
    prefix = "first_stage_model."
    weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    autoencoder = Autoencoder(config).eval()
    golden.translate(autoencoder, weights, golden.autoencoder_ldm(len(config.widths), config.blocks), golden.INSIDE_DDPM)
    return autoencoder, io, record


@torch.no_grad()
def test_stable_diffusion_1(shared: Path) -> None:
    config = AutoencoderConfig(widths=(32, 32), blocks=1)
    autoencoder, io, record = load(shared / "golden/ldm/sd1", config)
    floors = record["float32_vs_float64"]
    posterior = autoencoder.encode(io["image"])
    golden.assert_close(torch.cat(posterior, dim=1), io["vae.moments"], floors["vae.moments"])
    golden.assert_close(autoencoder.scaled(posterior.sample(io["vae_sample.noises"][0])), io["vae_sample.z"], floors["vae_sample.z"])
    golden.assert_close(autoencoder.decode(autoencoder.unscaled(io["z"])), io["vae.image"], floors["vae.image"])


@torch.no_grad()
def test_stable_diffusion_3(shared: Path) -> None:
    config = AutoencoderConfig(latent_channels=16, widths=(32, 32, 32, 64), blocks=1, quant_convs=False, scale=1.5305, shift=0.0609)
    autoencoder, io, _ = load(shared / "golden/sd3/vae", config)
    posterior = autoencoder.encode(io["in.image"])
    golden.assert_close(torch.cat(posterior, dim=1), io["out.moments"])
    sample = posterior.sample(io["in.encode_noise"])
    golden.assert_close(sample, io["out.sample"])
    golden.assert_close(autoencoder.scaled(sample), io["out.sample_process_in"])
    golden.assert_close(autoencoder.decode(autoencoder.unscaled(io["in.latent"])), io["out.decoded"])


def test_variance_is_bounded() -> None:
    autoencoder = Autoencoder(SMALL)
    nn.init.constant_(autoencoder.quant_conv.bias, 1e3)
    with torch.no_grad():
        assert autoencoder.encode(torch.zeros(1, 3, 16, 16)).logvar.eq(20).all()
        nn.init.constant_(autoencoder.quant_conv.bias, -1e3)
        assert autoencoder.encode(torch.zeros(1, 3, 16, 16)).logvar.eq(-30).all()


def test_sample_has_the_moments() -> None:
    posterior = Posterior(torch.full((1, 1, 200, 200), 3.0), torch.full((1, 1, 200, 200), 2.0).log())
    z = posterior.sample(torch.randn(1, 1, 200, 200))
    assert z.mean().item() == pytest.approx(3, abs=5 * (2 / 40_000) ** 0.5)
    assert z.var().item() == pytest.approx(2, abs=5 * 2 * (2 / 40_000) ** 0.5)


def test_scaling_inverts() -> None:
    autoencoder = Autoencoder(AutoencoderConfig(widths=(32, 32), scale=1.5305, shift=0.0609))
    z = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(autoencoder.unscaled(autoencoder.scaled(z)), z)
    assert autoencoder.scaled(torch.tensor(1.0609)).item() == pytest.approx(1.5305)


def test_wrong_sides_are_refused() -> None:
    with pytest.raises(ArgumentError, match="60x64, expected multiples of 8"):
        Autoencoder(SMALL).encode(torch.zeros(1, 3, 64, 60))


def lively(config: AutoencoderConfig) -> Autoencoder:
    """Norms that matter: uneven gains and offsets, so that wrong statistics would show."""
    autoencoder = Autoencoder(config).eval()
    for module in autoencoder.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return autoencoder


def lopsided(channels: int, height: int, width: int) -> Tensor:
    """Quiet on one side and wild on the other: no tile has the statistics of the whole. Two rows, unlike each other."""
    x = 0.05 * torch.randn(2, channels, height, width)
    x[:, :, :, width // 2 :] *= 40
    x[1] = 0.3 * x[1].flip(-1) + 0.5
    return x


def gap(mine: Tensor, whole: Tensor) -> float:
    """Largest difference, of the whole's range."""
    return ((mine - whole).abs().max() / (whole.max() - whole.min())).item()


@pytest.mark.parametrize("quant_convs", [True, False])
@pytest.mark.parametrize(("rows", "cols", "tile"), [(24, 40, 16), (17, 23, 8), (8, 30, 5)])
@torch.no_grad()
def test_tiles_have_no_seams(rows: int, cols: int, tile: int, quant_convs: bool) -> None:
    autoencoder = lively(AutoencoderConfig(widths=(16, 16, 32), blocks=2, groups=8, quant_convs=quant_convs))
    factor = autoencoder.config.factor
    z, x = lopsided(4, rows, cols), lopsided(3, rows * factor, cols * factor)
    assert gap(autoencoder.decode(z, tile=tile), autoencoder.decode(z)) < 1e-5
    assert gap(autoencoder.encode(x, tile=tile).mean, autoencoder.encode(x).mean) < 1e-5


@torch.no_grad()
def test_tiles_that_keep_their_own_statistics_would_show() -> None:
    """The picture above is a hard one: without shared statistics the same tiles are far off."""
    autoencoder, z = lively(AutoencoderConfig(widths=(16, 16, 32), groups=8)), lopsided(4, 16, 32)
    halves = torch.cat([autoencoder.decode(z[..., :20])[..., :64], autoencoder.decode(z[..., 12:])[..., 16:]], dim=-1)
    assert gap(halves, autoencoder.decode(z)) > 0.05


@torch.no_grad()
def test_tiles_bound_what_a_convolution_holds() -> None:
    """However large the picture, no layer of the outer part sees more than a tile and its margin."""
    autoencoder, seen = lively(AutoencoderConfig(widths=(16, 16, 32), blocks=1, groups=8)), []
    outer = [*autoencoder.decoder.up_blocks[1:].modules(), *autoencoder.encoder.down_blocks[:-1].modules()]
    for module in outer:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda layer, args, out: seen.append(max(args[0].shape[2:])))
    for side in (24, 48):
        seen.clear()
        autoencoder.decode(torch.randn(1, 4, side, 10), tile=8)
        autoencoder.encode(torch.randn(1, 3, side * 4, 40), tile=8)
        assert 0 < max(seen) <= 8 * 4 + 2 * 2 * MARGIN + 1  # a cell is two pixels where a stage resizes; one pixel is padding


@torch.no_grad()
def test_small_pictures_take_the_plain_path() -> None:
    autoencoder, z = lively(SMALL), torch.randn(1, 4, 6, 6)
    assert torch.equal(autoencoder.decode(z, tile=6), autoencoder.decode(z))


@pytest.mark.parametrize(("length", "tile"), [(1, 4), (8, 4), (9, 4), (31, 7), (100, 100), (101, 100)])
def test_spans_divide_the_length(length: int, tile: int) -> None:
    found = spans(length, tile)
    assert [i for span in found for i in range(span.first, span.last)] == list(range(length))
    assert max(span.last - span.first for span in found) <= tile
    assert all(span.first - span.start == min(MARGIN, span.first) for span in found)
    assert all(span.stop - span.last == min(MARGIN, length - span.last) for span in found)


def test_merged_moments_are_those_of_the_union() -> None:
    """Uneven parts, far from zero, where a difference of squares would lose all digits."""
    norm, x = nn.GroupNorm(2, 6), 1e3 + torch.randn(3, 6, 5, 12)
    x[..., 7:] += 5
    merged = merge([measure(norm, x[..., :7]), measure(norm, x[..., 7:8]), measure(norm, x[..., 8:])])
    exact = x.double().reshape(3, 2, -1)
    assert merged.count == exact.shape[2]
    torch.testing.assert_close(merged.mean, exact.mean(2).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(merged.var, exact.var(2, correction=0).float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize_is_group_norm(dtype: torch.dtype) -> None:
    norm = nn.GroupNorm(2, 6, eps=1e-6).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 + 2 * torch.randn(3, 6, 5, 4)).to(dtype)
    mine = normalize(norm, x, measure(norm, x))
    assert mine.dtype == dtype
    torch.testing.assert_close(mine, norm(x), rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5 if dtype == torch.float32 else 2e-2)
    zero = Moments(1, torch.zeros(3, 2), torch.ones(3, 2))
    assert not torch.allclose(normalize(norm, x, zero), norm(x), atol=0.1)
