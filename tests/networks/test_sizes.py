"""What the table of published models does not say of their parts (tests/evaluation/test_compare.py has the rest). On the meta device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig
from unnoise.networks.layers import position_table
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def giga_macs(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        call()
    return counter.get_total_flops() / 2e9


def test_encoder() -> None:
    with torch.device("meta"):
        autoencoder, x = Autoencoder(AutoencoderConfig()), torch.zeros(1, 3, 512, 512)
    assert parameters(autoencoder.encoder) + parameters(autoencoder.quant_conv) == 34_163_664
    assert parameters(autoencoder.decoder) + parameters(autoencoder.post_quant_conv) == 49_490_199
    assert giga_macs(lambda: autoencoder.encode(x)) == pytest.approx(558.33, rel=2e-3)


# width, patch, side of the latents: numbers in the table of positions, which the authors' files count as parameters
TABLES = {(384, 8, 32): 33_148_160 - 33_142_016, (1152, 2, 32): 675_129_632 - 674_834_720, (1152, 2, 64): 676_014_368 - 674_834_720}


@pytest.mark.parametrize("sizes", TABLES)
def test_positions_of_dit(sizes: tuple[int, int, int]) -> None:
    width, patch, side = sizes
    assert position_table(width, side // patch, side // patch).numel() == TABLES[sizes]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CLIPTextConfig(projection=768), 123_650_304),
        (CLIPTextConfig(width=1024, layers=24, heads=16, mlp=4096, activation="gelu"), 352_984_064),
    ],
    ids=["clip-l-projected", "open-clip-h-24"],
)
def test_text(config: CLIPTextConfig, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(CLIPTextEncoder(config)) == expected
