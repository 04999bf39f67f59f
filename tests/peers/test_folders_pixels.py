"""diffusers folders of pixel models and of DiT: the same weights saved there, the same outputs here; and where we follow the authors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unnoise.checkpoints import recognise
from unnoise.checkpoints.folder import configs
from unnoise.conditioning import Cond
from unnoise.errors import FileError
from unnoise.networks.dit import DiTConfig

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES: dict[str, Any] = {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1}
ATTENTION = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
TENSORFLOW = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "attention_head_dim": None}


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers")


def randomised(peer: nn.Module) -> nn.Module:
    for p in peer.parameters():
        nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.2 if p.dim() == 1 else p[0].numel() ** -0.5)
    return peer.eval()


def assert_same(mine: Tensor, peer: Tensor) -> None:
    torch.testing.assert_close(mine, peer, rtol=0, atol=1e-5 * peer.abs().max().item())


def ddpm(diffusers: Any, folder: Path) -> Any:
    """As google/ddpm-cifar10-32."""
    peer = randomised(diffusers.UNet2DModel(**SIZES, **ATTENTION, **TENSORFLOW))
    diffusers.DDPMPipeline(peer, diffusers.DDPMScheduler()).save_pretrained(folder)
    return peer


@pytest.mark.parametrize("old", [False, True])
@torch.no_grad()
def test_ddpm(diffusers: Any, tmp_path: Path, old: bool) -> None:
    """The published files have the attention's old names, which diffusers renames as it reads them."""
    peer = ddpm(diffusers, tmp_path)
    if old:
        file = tmp_path / "unet/diffusion_pytorch_model.safetensors"
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        tensors = load_file(file)
        for new, older in names.items():
            tensors = {name.replace(f".{new}.", f".{older}."): tensor for name, tensor in tensors.items()}
        assert any(".query." in name for name in tensors)
        save_file(tensors, file)
    found = recognise.model(tmp_path)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0, 731])
    assert_same(found.parts["network"].load()(x, t), peer(x, t).sample)
    spec = found.spec
    assert (spec.prediction, spec.schedule.betas, spec.conditioning, spec.size) == ("eps", "linear", "none", 16)
    assert float(1 - spec.schedule.build().alpha(0) ** 2) == pytest.approx(1e-4)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def test_consistency_models(diffusers: Any, tmp_path: Path) -> None:
    """As openai/diffusers-cd_imagenet64_l2."""
    blocks = {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    }
    style = {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet", "attention_head_dim": 16}
    style |= {"attn_norm_num_groups": 32}
    peer = randomised(diffusers.UNet2DModel(**SIZES, **blocks, **style, num_class_embeds=6))
    diffusers.ConsistencyModelPipeline(peer, diffusers.CMStochasticIterativeScheduler()).save_pretrained(tmp_path)
    found = recognise.model(tmp_path)
    x, t, labels = torch.randn(2, 3, 16, 16), torch.tensor([-1553.6, 1095.5]), torch.tensor([5, 0])
    assert_same(found.parts["network"].load()(x, t, Cond(labels=labels)), peer(x, t, labels).sample)
    assert (found.spec.prediction, found.spec.schedule.time_scale, found.spec.conditioning) == ("consistency", 250, "labels")


def dit(diffusers: Any, folder: Path) -> Any:
    size = {"num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 3, "sample_size": 8}
    peer = diffusers.DiTTransformer2DModel(**size, num_embeds_ada_norm=7)
    randomised(peer)
    for block in peer.transformer_blocks[1:]:  # facebook's weights: one embedder, copied into every block
        block.norm1.emb.load_state_dict(peer.transformer_blocks[0].norm1.emb.state_dict())
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
    )
    diffusers.DiTPipeline(peer, vae, diffusers.DDIMScheduler()).save_pretrained(folder)
    return peer


def as_its_authors(peer: Any) -> Any:
    """diffusers shifts the timestep's frequencies by one, and one norm's eps is ten times the authors'."""
    for block in peer.transformer_blocks:
        assert block.norm1.emb.time_proj.downscale_freq_shift == 1
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        assert block.norm3.eps == 1e-5
        block.norm3.eps = 1e-6
    return peer


@torch.no_grad()
def test_dit_follows_its_authors_where_diffusers_deviates(diffusers: Any, tmp_path: Path) -> None:
    """Guidance of three channels of four, and the learned variance, are the authors' too, where diffusers guides all and drops it."""
    peer, found = dit(diffusers, tmp_path), recognise.model(tmp_path)
    network = found.parts["network"].load()
    x, t, labels = torch.randn(3, 4, 8, 8), torch.tensor([0, 250, 999]), torch.tensor([0, 6, 7])
    mine, theirs = network(x, t, Cond(labels=labels)), peer(x, t, labels).sample
    assert float((mine - theirs)[1:].abs().max()) > 1e-2 * float(theirs.abs().max())
    assert_same(mine, as_its_authors(peer)(x, t, labels).sample)
    spec = found.spec
    assert (spec.guided_channels, spec.null_label, spec.size, spec.prediction) == (3, 7, 64, "eps")
    assert isinstance(spec.network, DiTConfig) and spec.network.learn_sigma


def test_a_dit_whose_blocks_were_trained_apart_is_refused(diffusers: Any, tmp_path: Path) -> None:
    peer = dit(diffusers, tmp_path)
    with torch.no_grad():
        peer.transformer_blocks[2].norm1.emb.timestep_embedder.linear_1.bias.add_(1)
    peer.save_pretrained(tmp_path / "transformer")
    with pytest.raises(FileError, match="block 2 has another timestep_embedder"):
        recognise.model(tmp_path)


def test_blocks_that_no_family_has_are_refused() -> None:
    config = {"down_block_types": ["SkipDownBlock2D"], "block_out_channels": [32], "time_embedding_type": "fourier"}
    with pytest.raises(FileError, match="this UNet2DModel has 'SkipDownBlock2D'"):
        configs.UNET_2D.read(config)
