"""PEFT, diffusers and transformers put the same files on the same networks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from peers import tiny
from unnoise.checkpoints import keys
from unnoise.checkpoints.adapters import files, words
from unnoise.checkpoints.layouts import diffusers as layouts
from unnoise.checkpoints.store.weights import Weights
from unnoise.conditioning import Cond
from unnoise.networks.mmdit import MMDiT
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.unet import UNet, UNetConfig

peft: ModuleType = pytest.importorskip("peft")
diffusers: ModuleType = pytest.importorskip("diffusers")

UNET = UNetConfig(widths=(8, 16), depths=(1, 1), blocks=1, groups=4, heads=2, context_width=12)
LAYERS = ["to_q", "to_v", "to_out.0", "ff.net.0.proj", "time_emb_proj", "proj_in", "conv1", "conv_shortcut", "downsamplers.0.conv"]


def randomised(network: nn.Module) -> nn.Module:
    for p in network.parameters():
        nn.init.normal_(p, 0.0, 0.3)
    return network.eval()


def filled(mine: nn.Module, layout: keys.Layout, peer: nn.Module) -> nn.Module:
    shapes = {name: tuple(value.shape) for name, value in mine.state_dict().items()}
    mine.load_state_dict(dict(keys.read(layout, shapes, Weights.open({k: v.clone() for k, v in peer.state_dict().items()}))))
    return mine.eval()


@pytest.fixture
def unets() -> tuple[UNet, nn.Module]:
    peer = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    mine = UNet(UNET)
    filled(mine, layouts.unet({}), randomised(peer))
    return mine, peer


def scaled(peer: nn.Module, scale: float) -> None:
    for module in peer.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) and hasattr(module, "set_scale"):
            module.set_scale("default", scale)


LORAS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "alphas by pattern": {"alpha_pattern": {"to_q": 1, "attn1.to_v": 7}, "rank_pattern": {"to_v": 2}},
    "bias": {"lora_bias": True, "target_modules": ["to_out.0", "time_emb_proj", "conv1"]},  # layers that have one
}


@pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape")  # PEFT takes its own biases for shards of a matrix
@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("kind", LORAS)
@torch.no_grad()
def test_peft(unets: tuple[UNet, nn.Module], kind: str, scale: float, tmp_path: Path) -> None:
    """alpha and options stand in the metadata, as diffusers writes them."""
    mine, peer = unets
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": LAYERS, "init_lora_weights": False, **LORAS[kind]})
    peer.add_adapter(config)
    scaled(peer, scale)
    state = {f"unet.{key}": value.contiguous() for key, value in peft.get_peft_model_state_dict(peer).items()}
    described = {f"unet.{key}": sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    save_file(state, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(described, default=str)})
    adapter = files.read(Weights.open(tmp_path / "a.safetensors"), {"network": mine})
    on = files.apply({"network": mine}, [(adapter, scale)])["network"]
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    expected = peer(x, t, tokens).sample
    assert (expected - mine(x, t, Cond(tokens))).abs().max() > 0.01 * expected.abs().max()
    torch.testing.assert_close(on(x, t, Cond(tokens)), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_loha_of_peft(unets: tuple[UNet, nn.Module], tmp_path: Path) -> None:
    mine, peer = unets
    wrapped = peft.get_peft_model(peer, peft.LoHaConfig(r=3, alpha=2, target_modules=["to_q", "conv1"], init_weights=False))
    wrapped.save_pretrained(tmp_path)
    adapter = files.read(Weights.open(tmp_path / "adapter_model.safetensors"), {"network": mine})
    on = files.apply({"network": mine}, [(adapter, 1.0)])["network"]
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    expected = wrapped(x, t, tokens).sample
    assert adapter.kinds == ("LoHa",)
    torch.testing.assert_close(on(x, t, Cond(tokens)), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@torch.no_grad()
def test_diffusers_reads_what_is_written(unets: tuple[UNet, nn.Module], form: str, tmp_path: Path) -> None:
    """A file of ours in kohya's form, and one in diffusers' own, by diffusers' loader."""
    mine, peer = unets
    tensors = dict(_pairs(mine, form))
    adapter = files.read(Weights.open(tensors), {"network": mine})
    files.save(tmp_path / "a.safetensors", adapter, {"network": mine})
    loader = diffusers.loaders.StableDiffusionLoraLoaderMixin
    state, alphas = loader.lora_state_dict(str(tmp_path), weight_name="a.safetensors", local_files_only=True)
    loader.load_lora_into_unet(state, network_alphas=alphas, unet=peer, adapter_name="default")
    peer.set_adapters(["default"], [0.6])
    on = files.apply({"network": mine}, [(adapter, 0.6)])["network"]
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    expected = peer(x, t, tokens).sample
    torch.testing.assert_close(on(x, t, Cond(tokens)), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def _pairs(network: nn.Module, form: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in network.named_parameters():
        if re.search(r"(attn\d\.to_\w+|ff\.proj|ff\.out)\.weight$", name):
            path = re.sub(r"\.to_out$", ".to_out.0", name.removesuffix(".weight"))
            path = path.replace("ff.proj", "ff.net.0.proj").replace("ff.out", "ff.net.2")
            up, down = torch.randn(value.shape[0], 3), torch.randn(3, value.shape[1])
            front = f"unet.{path}" if form == "diffusers" else "lora_unet_" + path.replace(".", "_")
            yield (f"{front}.lora.up.weight" if form == "diffusers" else f"{front}.lora_up.weight"), up
            yield (f"{front}.lora.down.weight" if form == "diffusers" else f"{front}.lora_down.weight"), down
            if form == "kohya":
                yield f"{front}.alpha", torch.tensor(1.5)


SD3 = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_v_proj", "to_add_out", "ff.net.0.proj", "ff_context.net.2"]
SD3 += ["norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out", "context_embedder", "pos_embed.proj", "linear_1"]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@torch.no_grad()
def test_stable_diffusion_3(dora: bool, tmp_path: Path) -> None:
    """Separate matrices there are rows of a joint one here, and two modulations have their halves exchanged."""
    peer, config = tiny.joint(qk_norm=True, dual=2)
    mine = filled(MMDiT(config), layouts.mmdit(config), randomised(peer))
    lora = peft.LoraConfig(r=3, lora_alpha=5, target_modules=SD3, init_lora_weights=False, use_dora=dora)
    peer.add_adapter(lora)
    scaled(peer, 0.6)
    state = {f"transformer.{key}": value.contiguous() for key, value in peft.get_peft_model_state_dict(peer).items()}
    save_file(state, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 5})})
    adapter = files.read(Weights.open(tmp_path / "a.safetensors"), {"network": mine})
    on = files.apply({"network": mine}, [(adapter, 0.6)])["network"]
    x, t, tokens, pooled = torch.randn(2, 4, 16, 16), torch.tensor([3.0, 977.5]), torch.randn(2, 7, 12), torch.randn(2, 10)
    expected = peer(x, tokens, pooled, t).sample
    assert (expected - mine(x, t, Cond(tokens, pooled))).abs().max() > 0.01 * expected.abs().max()
    torch.testing.assert_close(on(x, t, Cond(tokens, pooled)), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_words_of_transformers() -> None:
    """Textual inversion there: the token table is resized and the new rows written."""
    transformers: ModuleType = pytest.importorskip("transformers")
    sizes = {"vocab_size": 120, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    peer = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**sizes, max_position_embeddings=12, eos_token_id=119, bos_token_id=118)
    ).eval()
    mine = CLIPTextEncoder(CLIPTextConfig(vocab=120, length=12, width=24, mlp=48, layers=2, heads=2, end_token=119)).eval()
    state = {
        f"text_model.{key.removeprefix('text_model.')}": value for key, value in peer.state_dict().items() if "position_ids" not in key
    }
    mine.load_state_dict(state)
    vectors = torch.randn(2, 24)
    made = words.vectors([words.Embedding("<a>", {"": vectors})], {"text_encoder": mine})["text_encoder"]
    peer.resize_token_embeddings(122, mean_resizing=False)
    peer.get_input_embeddings().weight.data[120:] = vectors
    ids = torch.tensor([[118, 5, *made.ids["<a>"], 7, 119, 119]])
    expected = peer(ids).last_hidden_state
    torch.testing.assert_close(mine(ids, made.vectors).last, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
