"""The keys of adapter files: which module each is of, and what part of its change. Every dialect ends in the same few roles.

    kohya, LyCORIS      X.lora_down.weight  X.lora_up.weight  X.lora_mid.weight  X.alpha  X.dora_scale  X.hada_w1_a  X.lokr_w1  X.diff
    PEFT                X.lora_A.weight  X.lora_B.weight  X.lora_magnitude_vector; alpha stands in the metadata
    diffusers           X.lora.down.weight  X.lora_linear_layer.down.weight, and before 0.21 attn1.processor.to_q_lora.down.weight
    cloneofsimo         unet:9:down  unet:9:up, numbered in the order of the network's own modules

The key alone decides, so a file may mix them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from torch import Tensor, nn

from unnoise.checkpoints.adapters.families import clash
from unnoise.checkpoints.keys import Shape, config_of
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig

_ADAPTER = r"(?:\.\w+)?"  # PEFT's name of the adapter, where a key has it
ENDS = {
    rf"[._]lora[._](?:linear_layer\.|layer\.)?down{_ADAPTER}\.weight": "down",
    rf"[._]lora[._](?:linear_layer\.|layer\.)?up{_ADAPTER}\.weight": "up",
    rf"\.lora_A{_ADAPTER}\.weight": "down",
    rf"\.lora_B{_ADAPTER}\.weight": "up",
    rf"\.lora_B{_ADAPTER}\.bias": "up_bias",
    r"\.lora_up\.bias": "up_bias",
    r"\.lora_mid\.weight": "mid",
    r"(?:_lora)?\.alpha": "alpha",
    r"\.dora_scale": "dora_scale",
    rf"\.lora_magnitude_vector{_ADAPTER}": "magnitude",
    **{rf"\.{name}": name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{rf"\.{name}": name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
    **{rf"\.{name}": name for name in ("diff", "diff_b", "w_norm", "b_norm")},
}
OTHER_KINDS = {"oft_blocks": "OFT", "oft_diag": "OFT", "on_input": "IA3", "b2.weight": "GLoRA", "lora_embedding_A": "a LoRA of embeddings"}
_ENDS = [(re.compile(rf"^(.+?){end}$"), role) for end, role in ENDS.items()]
_NUMBERED = re.compile(r"^(unet|text_encoder):(\d+):(up|down)$")


def grouped(weights: Weights, networks: Mapping[str, nn.Module]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """{module as the file names it: {role: key}}, and the keys that are no part of an adapter. Raises FileError."""
    modules: dict[str, dict[str, str]] = {}
    others = []
    for key in weights:
        if _NUMBERED.match(key):
            continue
        module, role = _parted(key)
        if module and role not in modules.get(module, {}):
            modules.setdefault(module, {})[role] = key
        else:
            others.append(key)
    for place in ("unet", "text_encoder"):
        modules |= _numbered(weights, place, networks)
    return modules, others


def other_kind(keys: Iterable[str]) -> str:
    """The kind of adapter that keys are of which no role fits, for messages; empty: none that is known."""
    return next((kind for key in keys for end, kind in OTHER_KINDS.items() if key.endswith(f".{end}")), "")


def _parted(key: str) -> tuple[str, str]:
    for pattern, role in _ENDS:
        if found := pattern.match(key):
            return found[1], role
    return "", ""


def from_list(tensors: Sequence[Tensor], place: str) -> dict[str, Tensor]:
    """cloneofsimo's .pt lists [up, down, up, down, ...] under the keys of the safetensors form. place: "unet" or "text_encoder".

    Raises FileError for something else.
    """
    pairs = list(zip(tensors[::2], tensors[1::2], strict=False))
    if not pairs or len(tensors) % 2 or any(up.shape[1:2] != down.shape[:1] for up, down in pairs):
        raise FileError(f"got a list of {len(tensors)} tensors, expected pairs of up (out, r) and down (r, in)")
    return {f"{place}:{i}:{role}": tensor for i, pair in enumerate(pairs) for role, tensor in zip(("up", "down"), pair, strict=True)}


# What cloneofsimo's code puts an adapter on, where the file does not say: by default, and in its "extended" mode.
DEFAULT = {
    "unet": (("Attention", "CrossAttention", "GEGLU"), ("Attention", "CrossAttention", "GEGLU", "ResnetBlock2D")),
    "text_encoder": (("CLIPAttention",),),
}
PLACES = {"unet": "network", "text_encoder": "text_encoder"}


def _numbered(weights: Weights, place: str, networks: Mapping[str, nn.Module]) -> dict[str, dict[str, str]]:
    """The numbered layers of one network under the names of the modules that they belong to."""
    numbers = sorted({int(found[2]) for key in weights if (found := _NUMBERED.match(key)) and found[1] == place})
    if not numbers:
        return {}
    network = networks.get(PLACES[place])
    if network is None or not isinstance(config_of(network), UNetConfig | CLIPTextConfig):
        raise FileError(f"{weights.path} numbers the layers of a {place}, and this model has none of that kind")
    for targets, late in product(_targets(weights, place), (False, True)):
        order = list(_order(network, targets, late))
        shapes = [tuple(network.get_parameter(f"{name}.weight").shape) for name in order]
        if numbers == list(range(len(order))) and all(_fits(weights.shapes, place, i, shape) for i, shape in enumerate(shapes)):
            return {f"{place}.{name}": {role: f"{place}:{i}:{role}" for role in ("up", "down")} for i, name in enumerate(order)}
    raise FileError(
        clash(weights, {}, networks)
        or f"{weights.path} numbers {len(numbers)} layers of a {place}, this model's differ in count or shape: it is for another model"
    )


def _targets(weights: Weights, place: str) -> tuple[tuple[str, ...], ...]:
    if place not in weights.metadata:
        return DEFAULT[place]
    try:
        return (tuple(json.loads(weights.metadata[place])),)
    except ValueError:
        raise FileError(f"{weights.path}: its metadata {place!r} is no JSON list of classes") from None


def _fits(shapes: Mapping[str, Shape], place: str, i: int, shape: Shape) -> bool:
    up, down = shapes.get(f"{place}:{i}:up", (0,)), shapes.get(f"{place}:{i}:down", (0, 0))
    return up[0] == shape[0] and down[1] == shape[1]


def _order(network: nn.Module, targets: Sequence[str], late: bool) -> Iterator[str]:
    """Our modules in the order in which diffusers' classes hold theirs. late: the text attention stands behind the feed-forward, as it did
    until diffusers 0.12; shapes tell which."""
    config = config_of(network)
    if isinstance(config, CLIPTextConfig):
        for i in range(config.layers if "CLIPAttention" in targets else 0):
            yield from (f"text_model.encoder.layers.{i}.self_attn.{part}_proj" for part in "kvq")
            yield f"text_model.encoder.layers.{i}.self_attn.out_proj"
        return
    blocks = [f"{way}_blocks.{i}" for way in ("down", "up") for i in range(len(config.widths))]
    for block in [*blocks, "mid_block"]:  # the middle was made last
        yield from _block(network.get_submodule(block), block, targets, late)


def _block(module: nn.Module, path: str, targets: Sequence[str], late: bool) -> Iterator[str]:
    attend = "Attention" in targets or "CrossAttention" in targets
    cross = [f"attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out") if attend]
    own = [f"attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out") if attend]
    feed = ["ff.proj"] if "GEGLU" in targets else []
    inner = [*own, *feed, *cross] if late else [*own, *cross, *feed]
    paths = [name for name, _ in module.named_modules()]
    transformers = [name for name in paths if re.search(r"transformer_blocks\.\d+$", name)]
    yield from (f"{path}.{name}.{part}" for name in transformers for part in inner)
    if "ResnetBlock2D" in targets:
        parts = [f"resnets.{i}.{part}" for i in range(9) for part in ("conv1", "time_emb_proj", "conv2", "conv_shortcut")]
        yield from (f"{path}.{name}" for name in parts if name in paths and hasattr(module.get_submodule(name), "weight"))
