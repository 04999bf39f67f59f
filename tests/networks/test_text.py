"""CLIP's text towers against transformers', sd3.5's and open_clip's outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from networks import golden
from unnoise.checkpoints.layouts import ldm, texts
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import ArgumentError
from unnoise.networks.t5 import T5Config, T5Encoder
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder


def floors(record: dict) -> dict[str, float]:
    return {name: tensor.get("max_abs_float32_minus_float64", 0.0) for name, tensor in record["tensors"].items()}


def contexts(encoder: CLIPTextEncoder, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The contexts that the families take, by the golden tensors' names."""
    states, bare, normed = encoder(ids), encoder(ids, skip=1, norm=False).context, encoder(ids, skip=1).context
    return {
        "out.context_sd1": states.context,
        "out.context_penultimate_noLN": bare,
        "out.context_clip_skip2_withLN": normed,
        "out.context_clip_skip3_withLN": encoder(ids, skip=2).context,
        "out.context_sd2": normed,
        "out.penultimate_noLN": bare,
        "out.penultimate_with_LN": normed,
        "out.last_hidden_state": states.last,
        "out.last_with_LN": states.last,
        "out.pooled_unprojected": states.pooled,
        "out.text_embeds": states.projected,
        "out.pooled_projected": states.projected,
        "out.open_clip.text_features": states.projected,
        "out.sd35.last_with_LN": states.last,
        "out.sd35.penultimate_noLN": bare,
        "out.sd35.pooled": states.pooled,
    }


def assert_all_close(encoder: CLIPTextEncoder, io: golden.Tensors, record: dict, hidden: str) -> None:
    with torch.no_grad():
        states = encoder.eval()(io["in.ids"])
        mine = contexts(encoder, io["in.ids"]) | {f"{hidden}.{i}": value for i, value in enumerate(states.hidden)}
    known = {name for name in io if name.startswith("out.")} - {"out.sd35.pooled_projected"}  # through another matrix
    assert known <= set(mine)
    for name in known:
        golden.assert_close(mine[name], io[name], floors(record)[name])


def test_clip_l(shared: Path) -> None:
    io, weights, record = golden.read(shared / "golden/text/clip_l")
    weights.pop("sd3.text_projection.weight")
    sizes = record["hyperparameters"]
    config = CLIPTextConfig(
        vocab=sizes["vocab_size"],
        width=sizes["hidden_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        mlp=sizes["intermediate_size"],
        projection=sizes["projection_dim"],
        end_token=sizes["vocab_size"] - 1,
    )
    encoder = CLIPTextEncoder(config)
    encoder.load_state_dict(weights)
    assert_all_close(encoder, io, record, "out.hidden_states")


@pytest.mark.parametrize(("case", "prefix"), [("open_clip_h", "cond_stage_model.model."), ("open_clip_bigG", "")])
def test_open_clip(shared: Path, case: str, prefix: str) -> None:
    io, weights, record = golden.read(shared / "golden/text" / case)
    sizes = record["hyperparameters"]
    told = {"heads": sizes["heads"], "activation": sizes["act"]}
    encoder = texts.open_clip_part(Weights.open(weights).prefixed(prefix), told).load()
    assert isinstance(encoder, CLIPTextEncoder)
    assert_all_close(encoder, io, record, "out.hidden")


def sized(weights: golden.Tensors, **others: object) -> CLIPTextEncoder:
    """An encoder with the sizes of these weights under transformers' names, and the weights."""
    table = weights["text_model.embeddings.token_embedding.weight"]
    config = CLIPTextConfig(
        vocab=len(table),
        width=table.shape[1],
        layers=1 + max(int(key.split(".")[3]) for key in weights if ".layers." in key),
        mlp=len(weights["text_model.encoder.layers.0.mlp.fc1.bias"]),
        projection=len(weights.get("text_projection.weight", ())),
        end_token=len(table) - 1,
        **others,
    )
    encoder = CLIPTextEncoder(config).eval()
    encoder.load_state_dict(weights)
    return encoder


def part(weights: golden.Tensors, prefix: str) -> golden.Tensors:
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix) and not key.endswith("position_ids")
    }


@torch.no_grad()
def test_the_two_encoders_of_sdxl(shared: Path) -> None:
    io, weights, record = golden.read(shared / "golden/text/sdxl_conditioner")
    file = Weights.open(weights)
    small = texts.clip_part(file.prefixed(ldm.XL_CLIP), {"heads": 4}).load()
    big = texts.open_clip_part(file.prefixed(ldm.XL_OPEN_CLIP), {"heads": 2}).load()
    assert isinstance(small, CLIPTextEncoder) and isinstance(big, CLIPTextEncoder)
    states, g = small(io["in.ids_l"], skip=1, norm=False), big(io["in.ids_g"], skip=1, norm=False)
    context = torch.cat([states.context, g.context], dim=-1)
    golden.assert_close(context, io["out.context_sdxl"], floors(record)["out.context_sdxl"])
    golden.assert_close(g.projected, io["out.pooled_sdxl"], floors(record)["out.pooled_sdxl"])


@torch.no_grad()
def test_the_three_encoders_of_sd3(shared: Path) -> None:
    """Pooled: CLIP-L's is not projected. T5's tokens come behind CLIP's, which are as wide as T5's with zeros at their end."""
    io, weights, record = golden.read(shared / "golden/text/sd3_text")
    sizes = record["hyperparameters"]
    own = {name: part(weights, f"text_encoders.{name}.transformer.") for name in ("clip_l", "clip_g", "t5xxl")}
    own["t5xxl"].setdefault("shared.weight", own["t5xxl"].pop("encoder.embed_tokens.weight", None))
    small = sized(own["clip_l"], heads=sizes["clip_l"]["num_attention_heads"])
    big = sized(own["clip_g"], heads=sizes["clip_g"]["num_attention_heads"], activation="gelu")
    t = sizes["t5"]
    width, heads = t["d_model"], t["num_heads"]
    t5 = T5Encoder(T5Config(sizes["t5_vocab"], width, t["num_layers"], heads, width // heads, t["d_ff"])).eval()
    t5.load_state_dict(own["t5xxl"])
    states, g = small(io["in.ids_l"], skip=1, norm=False), big(io["in.ids_g"], skip=1, norm=False)
    clip = torch.cat([states.context, g.context], dim=-1)
    context = torch.cat([F.pad(clip, (0, width - clip.shape[-1])), t5(io["in.ids_t5"])], dim=1)
    golden.assert_close(context, io["out.context_sd3"], floors(record)["out.context_sd3"])
    for name, first in (("out.pooled_sd3_repo", states.pooled), ("out.pooled_diffusers", states.projected)):
        golden.assert_close(torch.cat([first, g.projected], dim=-1), io[name], floors(record)[name])


@torch.no_grad()
def test_layers_that_are_not_there_cannot_be_skipped() -> None:
    encoder = CLIPTextEncoder(CLIPTextConfig(vocab=20, length=8, width=16, layers=2, heads=2, mlp=32, end_token=19)).eval()
    ids = torch.tensor([[18, 3, 19]])
    states = encoder(ids, skip=2, norm=False)
    assert states.context.equal(states.hidden[0]) and encoder(ids).context is not None
    with pytest.raises(ArgumentError, match="got 9 tokens in a row, expected at most 8"):
        encoder(ids.repeat(1, 3))
    for skip in (-1, 3):
        with pytest.raises(ArgumentError, match="0 to 2"):
            encoder(ids, skip=skip)


@torch.no_grad()
def test_further_words_are_rows_below_the_table() -> None:
    config = CLIPTextConfig(vocab=20, length=8, width=16, layers=2, heads=2, mlp=32, end_token=19)
    encoder, words = CLIPTextEncoder(config).eval(), torch.randn(2, 16)
    longer = CLIPTextEncoder(replace(config, vocab=22)).eval()
    weights = encoder.state_dict()
    table = weights["text_model.embeddings.token_embedding.weight"]
    longer.load_state_dict(weights | {"text_model.embeddings.token_embedding.weight": torch.cat([table, words])})
    ids = torch.tensor([[18, 21, 3, 20, 19, 19]])
    mine, expected = encoder(ids, words), longer(ids)
    assert mine.last.equal(expected.last)
    assert mine.pooled.equal(expected.last[:, 4])  # the end token, though 20 and 21 are larger
    assert encoder(ids.clamp(max=19), words).last.equal(encoder(ids.clamp(max=19)).last)


@torch.no_grad()
def test_padding_and_later_words_do_not_reach_back() -> None:
    """Causal: a token's state depends on what stands before it, so the pooled state does not depend on the padding."""
    config = CLIPTextConfig(vocab=20, length=8, width=16, layers=2, heads=2, mlp=32, projection=4, end_token=19)
    encoder = CLIPTextEncoder(config).eval()
    one, other = torch.tensor([[18, 3, 4, 19, 19, 19, 19, 19]]), torch.tensor([[18, 3, 4, 19, 0, 0, 0, 0]])
    a, b = encoder(one), encoder(other)
    torch.testing.assert_close(a.last[:, :4], b.last[:, :4])
    torch.testing.assert_close(a.pooled, b.pooled)
    torch.testing.assert_close(a.pooled, a.last[:, 3])
    assert (a.last[:, 4:] - b.last[:, 4:]).abs().max() > 1e-3
