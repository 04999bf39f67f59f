"""CLIP's text towers against transformers', sd3.5's and open_clip's outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from networks import golden
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder, TextStates


def floors(record: dict) -> dict[str, float]:
    return {name: tensor.get("max_abs_float32_minus_float64", 0.0) for name, tensor in record["tensors"].items()}


def contexts(encoder: CLIPTextEncoder, states: TextStates) -> dict[str, torch.Tensor]:
    """The contexts that the families take, by the golden tensors' names."""
    norm, hidden = encoder.text_model.final_layer_norm, states.hidden
    return {
        "out.context_sd1": states.last,
        "out.context_penultimate_noLN": hidden[-2],
        "out.context_clip_skip2_withLN": norm(hidden[-2]),
        "out.context_clip_skip3_withLN": norm(hidden[-3]),
        "out.context_sd2": norm(hidden[-2]),
        "out.penultimate_noLN": hidden[-2],
        "out.penultimate_with_LN": norm(hidden[-2]),
        "out.last_hidden_state": states.last,
        "out.last_with_LN": states.last,
        "out.pooled_unprojected": states.pooled,
        "out.text_embeds": states.projected,
        "out.pooled_projected": states.projected,
        "out.open_clip.text_features": states.projected,
        "out.sd35.last_with_LN": states.last,
        "out.sd35.penultimate_noLN": hidden[-2],
        "out.sd35.pooled": states.pooled,
    }


def assert_all_close(encoder: CLIPTextEncoder, io: golden.Tensors, record: dict, hidden: str) -> None:
    with torch.no_grad():
        states = encoder.eval()(io["in.ids"])
        mine = contexts(encoder, states) | {f"{hidden}.{i}": value for i, value in enumerate(states.hidden)}
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
    config = CLIPTextConfig(
        vocab=sizes["vocab_size"],
        width=sizes["width"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        mlp=int(sizes["width"] * sizes["mlp_ratio"]),
        activation=sizes["act"],
        projection=sizes["output_dim"],
        end_token=sizes["vocab_size"] - 1,
    )
    encoder = CLIPTextEncoder(config)
    encoder.load_state_dict(golden.text_open_clip({key.removeprefix(prefix): value for key, value in weights.items()}, sizes["layers"]))
    assert_all_close(encoder, io, record, "out.hidden")


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
