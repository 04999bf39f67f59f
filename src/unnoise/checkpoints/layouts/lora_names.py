"""What an adapter's file calls a module, and which of our modules that is.

Dialects spell one path in many ways: with dots or underscores, by diffusers' names, by the single files' numbers, or by ours. So nothing
is parsed: every module of the networks at hand is written in every spelling, dots as underscores, and a file's name is looked up there.

    lora_unet_down_blocks_1_attentions_0_proj_in        kohya, Stable Diffusion 1 and 2
    lora_unet_input_blocks_4_1_proj_in                  kohya, SDXL
    unet.down_blocks.1.attentions.0.proj_in             diffusers, PEFT
    base_model.model.down_blocks.1.attentions.0.proj_in PEFT alone
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn

from unnoise.checkpoints.layouts import numbered
from unnoise.networks.mmdit import MMDiT
from unnoise.networks.text import CLIPTextEncoder
from unnoise.networks.unet import UNet

# What stands before a module's path, in underscores, and the network that it names.
PREFIXES = {
    "lora_unet": "network",
    "lora_transformer": "network",
    "lycoris": "network",
    "unet": "network",
    "transformer": "network",
    "diffusion_model": "network",
    "model_diffusion_model": "network",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "text_encoder": "text_encoder",
    "text_encoders_clip_l_transformer": "text_encoder",
    "clip_l": "text_encoder",
    "lora_te2": "text_encoder_2",
    "text_encoder_2": "text_encoder_2",
    "text_encoders_clip_g_transformer": "text_encoder_2",
    "clip_g": "text_encoder_2",
    "lora_te3": "text_encoder_3",
    "text_encoder_3": "text_encoder_3",
    "text_encoders_t5xxl_transformer": "text_encoder_3",
}


class Target(NamedTuple):
    """A module of ours, or some of its rows."""

    place: str  # "network", "text_encoder", ...
    module: str
    rows: tuple[tuple[int, int], ...] = ()  # (first, last + 1) of ours in the file's order; none: all, as they stand


class Names:
    """The modules of these networks by every name that files have for them."""

    def __init__(self, networks: Mapping[str, nn.Module]):
        self.tables = {place: dict(_spelled(place, network)) for place, network in networks.items()}

    def find(self, name: str) -> Target | None:
        """Of a module's name as the file has it, prefix and all."""
        flat = _flat(name.replace("base_model.model.", "").replace(".processor.", "."))
        for prefix, place in PREFIXES.items():
            if flat.startswith(prefix + "_") and (found := self.tables.get(place, {}).get(flat[len(prefix) + 1 :])):
                return found
        return next((table[flat] for table in self.tables.values() if flat in table), None)

    def known(self) -> list[str]:
        """For messages: names as kohya spells them."""
        first = {place: prefix for prefix, place in reversed(PREFIXES.items())}
        return [f"{first.get(place, place)}_{name}" for place, table in self.tables.items() for name in table]


def kohya(networks: Mapping[str, nn.Module]) -> dict[Target, str]:
    """The names that kohya's scripts, and what reads their files, have for our modules; for SDXL these are the single file's.

    Rows of a joint matrix have OneTrainer's name, since kohya has none for them.
    """
    result = {}
    for place, network in networks.items():
        for target, name in _written(place, network):
            prefix = "lora_transformer" if target.rows else _KOHYA_PREFIXES.get(place, "lora_unet")
            result[target] = f"{prefix}_{_flat(name)}"
    if "text_encoder_2" not in networks:
        return {target: re.sub(r"^lora_te1_", "lora_te_", name) for target, name in result.items()}
    return result


_KOHYA_PREFIXES = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"}


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _spelled(place: str, network: nn.Module) -> Iterator[tuple[str, Target]]:
    for module in _modules(network):
        for name in _spellings(network, module):
            yield _flat(name), Target(place, module)
    if isinstance(network, MMDiT):
        for name, (module, rows) in sd3(network).items():
            yield _flat(name), Target(place, module, rows)


def _written(place: str, network: nn.Module) -> Iterator[tuple[Target, str]]:
    numbers = isinstance(network, UNet) and network.config.pooled_width
    for module in _modules(network):
        spellings = _spellings(network, module)
        yield Target(place, module), spellings[-1 if numbers else 0]
    if isinstance(network, MMDiT):
        for name, (module, rows) in sd3(network).items():
            if rows:
                yield Target(place, module, rows), name


def _modules(network: nn.Module) -> list[str]:
    """Those with parameters of their own."""
    return [name for name, module in network.named_modules() if name and next(module.parameters(recurse=False), None) is not None]


def _spellings(network: nn.Module, module: str) -> list[str]:
    """The published name first; of a U-Net the single file's last."""
    if isinstance(network, UNet):
        return [diffusers_unet(module), module, *_numbered(network, module)]
    if isinstance(network, CLIPTextEncoder):
        return list(_text(module))
    return [module]


# Ours are diffusers' names without its lists of one.
LISTS_OF_ONE = {
    r"\.to_out$": ".to_out.0",
    r"\.downsample\.": ".downsamplers.0.",
    r"\.upsample\.": ".upsamplers.0.",
    r"\.ff\.proj$": ".ff.net.0.proj",
    r"\.ff\.out$": ".ff.net.2",
}


def diffusers_unet(module: str) -> str:
    for ours, theirs in LISTS_OF_ONE.items():
        module = re.sub(ours, theirs, module)
    return module


def _numbered(network: UNet, module: str) -> list[str]:
    if not network.config.context_width:
        return []  # attention among pixels alone is one joint matrix there, in an order that the file decides
    return [numbered.unet(network.config).source(f"{module}.weight").key.removesuffix(".weight")]


def _text(module: str) -> Iterator[str]:
    """As in `text_encoder` folders; without the outermost module, as transformers 5 has it; with the attention names of diffusers 0.15."""
    yield module
    yield module.removeprefix("text_model.")
    if ".self_attn." in module:
        yield re.sub(r"(\w+)_proj$", r"to_\1", module)


# Stable Diffusion 3: diffusers' names of what the authors call otherwise. q, k and v are thirds of one matrix; #swap: its halves exchanged.
SD3_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1#swap",
    "proj_out": "final_layer.linear",
}
SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_q": "x_block.attn.qkv#q",
    "attn.to_k": "x_block.attn.qkv#k",
    "attn.to_v": "x_block.attn.qkv#v",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.add_q_proj": "context_block.attn.qkv#q",
    "attn.add_k_proj": "context_block.attn.qkv#k",
    "attn.add_v_proj": "context_block.attn.qkv#v",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_q": "x_block.attn2.qkv#q",
    "attn2.to_k": "x_block.attn2.qkv#k",
    "attn2.to_v": "x_block.attn2.qkv#v",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def sd3(network: MMDiT) -> dict[str, tuple[str, tuple[tuple[int, int], ...]]]:
    """diffusers' name: our module and its rows."""
    last = network.config.depth - 1
    table = dict(SD3_ENDS)
    for i in range(last + 1):
        table |= {f"transformer_blocks.{i}.{theirs}": f"joint_blocks.{i}.{ours}" for theirs, ours in SD3_BLOCK.items()}
    # where two modulations stand alone diffusers has scale before shift: the last block's text, as the output
    table[f"transformer_blocks.{last}.norm1_context.linear"] += "#swap"
    present = set(_modules(network))
    parted = {name: ours.partition("#") for name, ours in table.items()}
    return {name: (module, _rows(network, module, piece)) for name, (module, _, piece) in parted.items() if module in present}


def _rows(network: nn.Module, module: str, piece: str) -> tuple[tuple[int, int], ...]:
    if not piece:
        return ()
    n = network.get_parameter(f"{module}.weight").shape[0]
    if piece == "swap":
        return (n // 2, n), (0, n // 2)
    third = "qkv".index(piece)
    return ((third * n // 3, (third + 1) * n // 3),)
