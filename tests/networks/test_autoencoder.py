"""The autoencoder against the authors' outputs; tiles against the picture in one piece."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from networks import golden
from unnoise.checkpoints import recognise
from unnoise.errors import ArgumentError
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig, Posterior, transposed
from unnoise.networks.blocks import Upsample

SMALL = AutoencoderConfig(widths=(16, 16, 32, 32), blocks=1, groups=8)


def load(folder: Path, config: AutoencoderConfig) -> tuple[Autoencoder, golden.Tensors, dict]:
    """Scale and shift are the family's: they stand in `config`."""
    io, _, record = golden.read(folder)
    part = recognise.part(folder / "weights.safetensors", "autoencoder")
    assert replace(part.config, scale=config.scale, shift=config.shift) == config
    autoencoder = replace(part, config=config).load(torch.float32)
    assert isinstance(autoencoder, Autoencoder)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_tiles_at_half_precision(dtype: torch.dtype) -> None:
    """No further from float32 than the picture in one piece is, but for rounding that falls otherwise."""
    exact = lively(AutoencoderConfig(widths=(16, 16, 32), groups=8))
    z, x = lopsided(4, 12, 20).to(dtype), lopsided(3, 48, 80).to(dtype)
    picture, mean = exact.decode(z.float()), exact.encode(x.float()).mean
    half = exact.to(dtype)
    assert half.decode(z, tile=4).dtype == half.encode(x, tile=4).mean.dtype == dtype
    assert gap(half.decode(z, tile=4).float(), picture) < 2 * gap(half.decode(z).float(), picture)
    assert gap(half.encode(x, tile=4).mean.float(), mean) < 2 * gap(half.encode(x).mean.float(), mean)


@pytest.mark.parametrize("tile", [0, 4])
@torch.no_grad()
def test_an_overflow_can_be_seen(tile: int) -> None:
    """Features beyond float16's 65504 end as NaN or infinity in the picture, not as a black one."""
    autoencoder = lively(AutoencoderConfig(widths=(16, 16, 32), groups=8))
    nn.init.constant_(autoencoder.decoder.up_blocks[1].resnets[1].conv2.bias, 1e5)
    z = torch.randn(1, 4, 8, 8)
    assert autoencoder.decode(z, tile=tile).isfinite().all()
    assert not autoencoder.half().decode(z.half(), tile=tile).isfinite().all()


@torch.no_grad()
def test_tiles_bound_what_a_convolution_holds() -> None:
    """However tall the picture, no convolution of the outer part sees more than a strip and what lies around it."""
    autoencoder, seen = lively(AutoencoderConfig(widths=(16, 16, 32), blocks=1, groups=8)), []
    outer = [*autoencoder.decoder.up_blocks[1:].modules(), *autoencoder.encoder.down_blocks[:-1].modules()]
    for module in outer:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda layer, args, out: seen.append(args[0].shape[2]))
    for side in (24, 96):
        seen.clear()
        autoencoder.decode(torch.randn(1, 4, side, 16), tile=8)  # 4 rows of 16 latents
        autoencoder.encode(torch.randn(1, 3, side * 4, 64), tile=8)
        assert 0 < max(seen) <= 4 * 4 + 2 * 2 + 1  # a cell is two rows where a layer halves; one row is padding


@torch.no_grad()
def test_small_pictures_take_the_plain_path() -> None:
    autoencoder, z = lively(SMALL), torch.randn(1, 4, 6, 6)
    assert torch.equal(autoencoder.decode(z, tile=6), autoencoder.decode(z))


@pytest.mark.parametrize("tile", [0, 2])
def test_gradients_pass_in_one_piece_only(tile: int) -> None:
    z = torch.randn(1, 4, 4, 4, requires_grad=True)
    assert Autoencoder(SMALL).decode(z, tile=tile).requires_grad == (tile == 0)


@torch.no_grad()
def test_transposed_convolution_is_the_upsampling() -> None:
    upsample, x = Upsample(6), torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(transposed(upsample)(x), upsample(x), rtol=1e-5, atol=1e-5)
