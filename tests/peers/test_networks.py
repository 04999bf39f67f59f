"""The networks against diffusers and transformers: the same random weights, the same outputs in float32."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.tokenizers import clip
from unnoise.networks.unet import UNet, UNetConfig


@pytest.fixture(scope="module")
def diffusers() -> object:
    return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def transformers() -> object:
    return pytest.importorskip("transformers")


# diffusers keeps lists of one where we have one
TO_DIFFUSERS = {
    r"\.to_out\.": ".to_out.0.",
    r"\.ff\.proj\.": ".ff.net.0.proj.",
    r"\.ff\.out\.": ".ff.net.2.",
    r"\.downsample\.": ".downsamplers.0.",
    r"\.upsample\.": ".upsamplers.0.",
}


def theirs(key: str) -> str:
    for pattern, other in TO_DIFFUSERS.items():
        key = re.sub(pattern, other, key)
    return key


def share(mine: nn.Module, peer: nn.Module) -> None:
    """Random values in all of the peer's parameters, none left at zero, and the same in mine."""
    for p in peer.parameters():
        nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.2 if p.dim() == 1 else p[0].numel() ** -0.5)
    weights = peer.state_dict()
    mine.load_state_dict({key: weights.pop(theirs(key)) for key in mine.state_dict()})
    assert not weights, f"not used: {sorted(weights)}"
    mine.eval()
    peer.eval()


def assert_same(mine: Tensor, peer: Tensor) -> None:
    torch.testing.assert_close(mine, peer, rtol=0, atol=1e-5 * peer.abs().max().item())


TEXT = {"cross_attention_dim": 24, "norm_num_groups": 8, "layers_per_block": 1, "block_out_channels": (32, 64), "sample_size": 8}
CROSS = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
DEEP = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}

CONDITIONED = {
    "sd1": (
        UNetConfig(widths=(32, 64), depths=(1, 0), blocks=1, heads=4, context_width=24, groups=8),
        {**TEXT, **CROSS, "attention_head_dim": 4},
    ),
    "sd2": (
        UNetConfig(widths=(32, 64), depths=(1, 0), blocks=1, head_width=16, context_width=24, linear_projection=True, groups=8),
        {**TEXT, **CROSS, "attention_head_dim": (2, 4), "use_linear_projection": True},
    ),
    "sdxl": (
        UNetConfig(
            widths=(32, 64),
            depths=(0, 2),
            mid_depth=2,
            blocks=1,
            head_width=16,
            context_width=24,
            linear_projection=True,
            pooled_width=28,
            groups=8,
        ),
        {
            **TEXT,
            **DEEP,
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 28,
        },
    ),
}


@pytest.mark.parametrize("family", CONDITIONED)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=["even", "odd"])
@torch.no_grad()
def test_text_unet(diffusers: object, family: str, size: tuple[int, int]) -> None:
    config, settings = CONDITIONED[family]
    mine, peer = UNet(config), diffusers.UNet2DConditionModel(**settings)
    share(mine, peer)
    x, t, tokens = torch.randn(2, 4, *size), torch.tensor([3, 977]), torch.randn(2, 5, 24)
    extra, pooled = None, None
    if family == "sdxl":
        text, sizes = torch.randn(2, 4), torch.tensor([[1024.0, 768, 0, 3, 512, 1000]] * 2)
        waves = peer.add_time_proj(sizes.flatten()).reshape(2, -1)
        extra, pooled = {"text_embeds": text, "time_ids": sizes}, torch.cat([text, waves], dim=1)
    assert_same(mine(x, t, Cond(tokens, pooled)), peer(x, t, tokens, added_cond_kwargs=extra).sample)


PLAIN = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 8}
LEVELS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
RESIDUAL = {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"}

UNCONDITIONED = {
    "ddpm": (
        {"heads": 1, "corner_pad": True, "eps": 1e-6, "time_shift": 1.0, "time_cos_first": False},
        {**LEVELS, "attention_head_dim": None, "downsample_padding": 0, "norm_eps": 1e-6, "freq_shift": 1, "flip_sin_to_cos": False},
    ),
    "adm": (
        {"head_width": 16, "scale_shift": True, "resample": "residual", "num_classes": 10},
        {
            **RESIDUAL,
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "attention_head_dim": 16,
            "attn_norm_num_groups": 8,  # or the peer drops the middle attention's norm
            "num_class_embeds": 10,
            "freq_shift": 0,
            "norm_eps": 1e-5,
        },
    ),
}


@pytest.mark.parametrize("family", UNCONDITIONED)
@torch.no_grad()
def test_pixel_unet(diffusers: object, family: str) -> None:
    ours, settings = UNCONDITIONED[family]
    config = UNetConfig(in_channels=3, out_channels=3, widths=(32, 64), depths=(0, 1), blocks=1, context_width=0, groups=8, **ours)
    mine, peer = UNet(config), diffusers.UNet2DModel(**PLAIN, **settings)
    share(mine, peer)
    x, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([3, 977]), torch.tensor([4, 9]) if config.num_classes else None
    assert_same(mine(x, t, Cond(labels=labels)), peer(x, t, labels).sample)


@pytest.mark.parametrize("quant_convs", [True, False], ids=["sd", "sd3"])
@torch.no_grad()
def test_autoencoder(diffusers: object, quant_convs: bool) -> None:
    config = AutoencoderConfig(latent_channels=6, widths=(16, 32, 32), groups=8, quant_convs=quant_convs)
    peer = diffusers.AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=6,
        norm_num_groups=8,
        use_quant_conv=quant_convs,
        use_post_quant_conv=quant_convs,
    )
    mine = Autoencoder(config)
    share(mine, peer)
    x, z = torch.randn(2, 3, 16, 24), torch.randn(2, 6, 5, 4)
    posterior, expected = mine.encode(x), peer.encode(x).latent_dist
    assert_same(posterior.mean, expected.mean)
    assert_same(posterior.logvar, expected.logvar)
    noise = torch.randn_like(posterior.mean)
    assert_same(posterior.sample(noise), expected.mean + expected.std * noise)
    assert_same(mine.decode(z), peer.decode(z).sample)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_clip_text(transformers: object, activation: str) -> None:
    mine = CLIPTextEncoder(
        CLIPTextConfig(vocab=100, length=12, width=32, layers=3, heads=4, mlp=64, activation=activation, projection=20, end_token=99)
    )
    settings = transformers.CLIPTextConfig(
        vocab_size=100,
        max_position_embeddings=12,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_act=activation,
        projection_dim=20,
        bos_token_id=98,
        eos_token_id=99,
    )
    peer = transformers.CLIPTextModelWithProjection(settings)
    share(mine, peer)
    ids = torch.tensor([[98, 5, 6, 99] + [99] * 8, [98, 50, 7, 8, 9, 10, 11, 12, 13, 14, 15, 99]])
    states, expected = mine(ids), peer(ids, output_hidden_states=True)
    assert_same(states.last, expected.last_hidden_state)
    assert_same(states.projected, expected.text_embeds)
    assert len(states.hidden) == len(expected.hidden_states)
    for one, other in zip(states.hidden[:-1], expected.hidden_states[:-1], strict=True):
        assert_same(one, other)


def test_clip_tokenizer(transformers: object, shared: Path) -> None:
    """Beyond the recorded strings: random mixtures of scripts, digits, signs and spaces."""
    folder = shared / "weights/sd15_layout/tokenizer"
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    mine, peer = clip(vocab, [tuple(line.split()) for line in merges if line]), transformers.CLIPTokenizer.from_pretrained(folder)
    letters = list("aeiouthrnsTHE 0123456789.,!?'\"-()éÅñß한국어日本ζЖ🦓👍🏽\t\n  ")
    texts = ["".join(letters[i] for i in torch.randint(len(letters), (40,)).tolist()) for _ in range(200)]
    expected = peer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert mine(texts).ids.equal(expected)
