"""Parameters and multiply-adds of the published sizes. The networks are built without memory, on the meta device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from networks.sizes import DITS, MMDITS, UNETS, Size
from unnoise.conditioning import Cond
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig
from unnoise.networks.dit import DiT, DiTConfig
from unnoise.networks.layers import position_table
from unnoise.networks.mmdit import MMDiT, MMDiTConfig
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.unet import UNet

BIG_G = CLIPTextConfig(width=1280, layers=32, heads=20, mlp=5120, activation="gelu", projection=1280)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def giga_macs(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        call()
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("size", UNETS.values(), ids=UNETS)
def test_unet(size: Size) -> None:
    config = size.config
    with torch.device("meta"):
        unet, x, t = UNet(config), torch.zeros(1, config.in_channels, size.side, size.side), torch.zeros(1)
        tokens = torch.zeros(1, size.text, config.context_width) if size.text else None
        pooled = torch.zeros(1, config.pooled_width) if config.pooled_width else None
        labels = torch.zeros(1, dtype=torch.long) if config.num_classes else None
    assert parameters(unet) == size.parameters
    if size.giga_macs:
        assert giga_macs(lambda: unet(x, t, Cond(tokens, pooled, labels))) == pytest.approx(size.giga_macs, rel=2e-3)


@pytest.mark.parametrize("name", DITS)
def test_dit(name: str) -> None:
    width, depth, heads, patch, side, trainable, total, macs = DITS[name]
    with torch.device("meta"):
        dit = DiT(DiTConfig(patch=patch, width=width, depth=depth, heads=heads, num_classes=1000))
        x, t, cond = torch.zeros(1, 4, side, side), torch.zeros(1), Cond(labels=torch.zeros(1, dtype=torch.long))
    assert parameters(dit) == trainable
    assert parameters(dit) + position_table(width, side // patch, side // patch).numel() == total
    assert giga_macs(lambda: dit(x, t, cond)) == pytest.approx(macs, rel=1e-3)


@pytest.mark.parametrize(("config", "expected", "macs"), MMDITS.values(), ids=MMDITS)
def test_mmdit(config: MMDiTConfig, expected: int, macs: float) -> None:
    with torch.device("meta"):
        mmdit, x, t = MMDiT(config), torch.zeros(1, 16, 128, 128), torch.zeros(1)
        cond = Cond(torch.zeros(1, 154, config.context_width), torch.zeros(1, config.pooled_width))
    assert parameters(mmdit) == expected
    assert giga_macs(lambda: mmdit(x, t, cond)) == pytest.approx(macs, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AutoencoderConfig(), 83_653_863),
        (AutoencoderConfig(latent_channels=16, quant_convs=False), 83_819_683),
    ],
    ids=["kl-f8", "sd3"],
)
def test_autoencoder(config: AutoencoderConfig, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(Autoencoder(config)) == expected


def test_autoencoder_macs() -> None:
    with torch.device("meta"):
        autoencoder, x, z = Autoencoder(AutoencoderConfig()), torch.zeros(1, 3, 512, 512), torch.zeros(1, 4, 64, 64)
    assert parameters(autoencoder.encoder) + parameters(autoencoder.quant_conv) == 34_163_664
    assert giga_macs(lambda: autoencoder.encode(x)) == pytest.approx(558.33, rel=2e-3)
    assert giga_macs(lambda: autoencoder.decode(z)) == pytest.approx(1257.26, rel=2e-3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CLIPTextConfig(), 123_060_480),
        (CLIPTextConfig(projection=768), 123_650_304),
        (CLIPTextConfig(width=1024, layers=23, heads=16, mlp=4096, activation="gelu"), 340_387_840),
        (CLIPTextConfig(width=1024, layers=24, heads=16, mlp=4096, activation="gelu"), 352_984_064),
        (BIG_G, 694_659_840),
    ],
    ids=["clip-l", "clip-l-projected", "open-clip-h-23", "open-clip-h-24", "open-clip-big-g"],
)
def test_text(config: CLIPTextConfig, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(CLIPTextEncoder(config)) == expected


@pytest.mark.parametrize(("config", "macs"), [(CLIPTextConfig(), 6.65), (BIG_G, 48.93)], ids=["clip-l", "open-clip-big-g"])
def test_text_macs(config: CLIPTextConfig, macs: float) -> None:
    with torch.device("meta"):
        encoder, ids = CLIPTextEncoder(config), torch.zeros(1, 77, dtype=torch.long)
    assert giga_macs(lambda: encoder(ids)) == pytest.approx(macs, rel=2e-3)
