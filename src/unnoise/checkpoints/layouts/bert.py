"""The text encoder of LDM's text-to-image model: as x-transformers names it (`cond_stage_model.transformer.*`), and as diffusers does.

attn_layers.layers.2i       norm (.0) and attention (.1) of layer i
attn_layers.layers.2i+1     norm (.0) and feed-forward (.1) of layer i
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unnoise.checkpoints.keys import Layout, Shape
from unnoise.networks.bert import BertConfig

PREFIX = "cond_stage_model.transformer."
LOGITS = r"^to_logits\."  # the head that it has as a language model
INSIDE = {r"^\.([qkv])_proj\.": r".to_\1.", r"^\.out_proj\.": ".to_out."}


def bert(config: BertConfig) -> Layout:
    """The authors' keys, without PREFIX."""
    modules = {"embed_tokens": "token_emb", "embed_positions": "pos_emb.emb", "layer_norm": "norm"}
    for i in range(config.layers):
        attend, feed = f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}"
        modules |= {f"layers.{i}.self_attn_layer_norm": f"{attend}.0", f"layers.{i}.self_attn": f"{attend}.1"}
        modules |= {f"layers.{i}.final_layer_norm": f"{feed}.0"}
        modules |= {f"layers.{i}.fc1": f"{feed}.1.net.0.0", f"layers.{i}.fc2": f"{feed}.1.net.2"}
    return Layout(modules, INSIDE, ignored=LOGITS)


def diffusers_bert(config: BertConfig) -> Layout:
    """The keys of diffusers' LDMBertModel."""
    return Layout({"": "model"}, ignored=LOGITS)


def bert_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> BertConfig:
    """Sizes from the shapes of either. A head is 64 wide unless `hints` say another head_width."""
    layout = bert if "token_emb.weight" in shapes else diffusers_bert
    sources = layout(BertConfig(layers=1))

    def shape(name: str) -> Shape:
        return shapes[sources.source(name).key]

    head_width = hints.get("head_width", BertConfig.head_width)
    vocab, width = shape("embed_tokens.weight")
    read = {
        "vocab": vocab,
        "width": width,
        "length": shape("embed_positions.weight")[0],
        "layers": sum(key.endswith((".to_q.weight", ".q_proj.weight")) for key in shapes),
        "heads": shape("layers.0.self_attn.q_proj.weight")[0] // head_width,
        "head_width": head_width,
        "mlp": shape("layers.0.fc1.weight")[0],
    }
    return BertConfig(**{**read, **hints})
