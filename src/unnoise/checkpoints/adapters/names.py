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

from unnoise.checkpoints.keys import Layout, config_of
from unnoise.checkpoints.layouts import diffusers, numbered
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig

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


Ranges = tuple[tuple[int, int], ...]


class Target(NamedTuple):
    """A module of ours, or some of its rows."""

    place: str  # "network", "text_encoder", ...
    module: str
    rows: Ranges = ()  # (first, last + 1) of ours in the file's order; none: all, as they stand


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
    result: dict[Target, str] = {}
    for place, network in networks.items():
        for target, name in _written(place, network):
            prefix = "lora_transformer" if target.rows else _KOHYA_PREFIXES.get(place, "lora_unet")
            result.setdefault(target, f"{prefix}_{_flat(name)}")
    if "text_encoder_2" not in networks:
        return {target: re.sub(r"^lora_te1_", "lora_te_", name) for target, name in result.items()}
    return result


_KOHYA_PREFIXES = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"}


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _spelled(place: str, network: nn.Module) -> Iterator[tuple[str, Target]]:
    layouts = _layouts(network)
    for module in _modules(network):
        for name in _own(network, module):
            yield _flat(name), Target(place, module)
        for layout in layouts:
            yield from ((_flat(name), Target(place, module, rows)) for name, rows in _published(network, layout, module))


def _written(place: str, network: nn.Module) -> Iterator[tuple[Target, str]]:
    """The name that kohya's form prefers stands first."""
    layouts = _layouts(network)
    config = config_of(network)
    if isinstance(config, UNetConfig):
        layouts = layouts[::-1] if config.pooled_width else layouts  # SDXL: the numbers
    for module in _modules(network):
        if not isinstance(config, UNetConfig):
            yield Target(place, module), module
        for layout in layouts:
            yield from ((Target(place, module, rows), name) for name, rows in _published(network, layout, module))


def _modules(network: nn.Module) -> list[str]:
    """Those with a weight of their own."""
    return [name for name, module in network.named_modules() if name and isinstance(getattr(module, "weight", None), nn.Parameter)]


def _layouts(network: nn.Module) -> list[Layout]:
    """The published names of a network, those of diffusers first."""
    config = config_of(network)
    if isinstance(config, UNetConfig):
        # without text the numbered attention is one joint matrix, in an order that the file decides
        return [diffusers.unet({}), *([numbered.unet(config)] if config.context_width else [])]
    return [diffusers.mmdit(config)] if isinstance(config, MMDiTConfig) else []


def _published(network: nn.Module, layout: Layout, module: str) -> Iterator[tuple[str, Ranges]]:
    """What a layout calls a module: names, and our rows that each stands for."""
    source = layout.source(f"{module}.weight")
    names = [key.removesuffix(".weight") for key in source.keys]
    n = network.get_parameter(f"{module}.weight").shape[0]
    if source.piece == "swap":
        yield names[0], ((n // 2, n), (0, n // 2))
    elif len(names) == 1:
        yield names[0], ()
    else:  # a joint matrix here, of which each part is a matrix there
        m = n // len(names)
        yield from ((name, ((i * m, (i + 1) * m),)) for i, name in enumerate(names))


def _own(network: nn.Module, module: str) -> Iterator[str]:
    """Our name, which is a published one too. Text encoders: without the outermost module, as transformers 5 has it; and with the names of
    attention that diffusers 0.15 gave them."""
    yield module
    if isinstance(config_of(network), CLIPTextConfig):
        yield module.removeprefix("text_model.")
        if ".self_attn." in module:
            yield re.sub(r"(\w+)_proj$", r"to_\1", module)
