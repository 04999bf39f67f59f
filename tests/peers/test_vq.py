"""The VQ autoencoder against diffusers' VQModel: the same random weights, the same codes and pictures in float32."""

from __future__ import annotations

import pytest
import torch

from peers.test_networks import assert_same, share
from unnoise.networks.vq import VQAutoencoder, VQConfig

diffusers = pytest.importorskip("diffusers")

SIZES = [
    (VQConfig(codes=32, widths=(32, 64, 64), groups=16), {"block_out_channels": (32, 64, 64), "layers_per_block": 2}),
    (VQConfig(codes=8, latent_channels=4, widths=(32, 32), blocks=1, groups=8), {"block_out_channels": (32, 32), "layers_per_block": 1}),
]


@pytest.mark.parametrize(("config", "sizes"), SIZES, ids=["f4", "f2"])
def test_vq(config: VQConfig, sizes: dict) -> None:
    levels = len(config.widths)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    latents = {"latent_channels": config.latent_channels, "num_vq_embeddings": config.codes, "norm_num_groups": config.groups}
    peer, mine = diffusers.VQModel(**blocks, **latents, **sizes), VQAutoencoder(config)
    share(mine, peer)
    x, z = torch.rand(2, 3, 32, 48) * 2 - 1, torch.randn(2, config.latent_channels, 8, 6)
    with torch.no_grad():
        assert_same(mine.encode(x).mean, peer.encode(x).latents)
        codes = peer.quantize(z)[2][2]
        assert len(codes.unique()) > config.codes / 2
        assert torch.equal(mine.quantize.indices(z).flatten(), codes)
        assert_same(mine.decode(z), peer.decode(z).sample)
        assert_same(mine.decode(z, quantize=False), peer.decode(z, force_not_quantize=True).sample)
