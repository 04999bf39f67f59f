"""T5's encoder against sd3.5's and transformers' outputs, its size, and what float16 asks of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from networks import golden
from unnoise.networks.t5 import RMSNorm, T5Config, T5Encoder, buckets

TINY = T5Config(vocab=50, width=16, layers=2, heads=2, head_width=12, mlp=24)


def load(folder: Path) -> tuple[T5Encoder, golden.Tensors, dict]:
    io, weights, record = golden.read(folder)
    sizes = record["hyperparameters"]
    heads = sizes["num_heads"]
    config = T5Config(
        vocab=sizes["vocab_size"],
        width=sizes["d_model"],
        layers=sizes["num_layers"],
        heads=heads,
        head_width=sizes.get("d_kv", sizes["d_model"] // heads),
        mlp=sizes["d_ff"],
    )
    weights = {key.removeprefix("text_encoders.t5xxl.transformer."): value for key, value in weights.items()}
    table = weights.pop("encoder.embed_tokens.weight", None)  # the table by its other name
    weights.setdefault("shared.weight", table)
    encoder = T5Encoder(config).eval()
    encoder.load_state_dict(weights)
    return encoder, io, record["tensors"]


def assert_close(mine: Tensor, name: str, io: golden.Tensors, tensors: dict) -> None:
    golden.assert_close(mine, io[name], tensors[name]["max_abs_float32_minus_float64"])


@torch.no_grad()
def test_sd35_and_transformers(shared: Path) -> None:
    encoder, io, tensors = load(shared / "golden/text/t5")
    for name in ("out.sd35.last", "out.hf.last_no_mask"):
        assert_close(encoder(io["in.ids"]), name, io, tensors)
    assert_close(encoder(io["in.ids"], io["in.mask"]), "out.hf.last_with_mask", io, tensors)


@torch.no_grad()
def test_heads_of_their_own_width(shared: Path) -> None:
    encoder, io, tensors = load(shared / "golden/text/t5_hf_inner_dim")
    assert encoder.config.heads * encoder.config.head_width != encoder.config.width
    assert_close(encoder(io["in.ids"]), "out.last_no_mask", io, tensors)
    assert_close(encoder(io["in.ids"], io["in.mask"]), "out.last_with_mask", io, tensors)


def test_the_buckets(shared: Path) -> None:
    io, _, record = golden.read(shared / "golden/text/t5")
    sizes = record["hyperparameters"]
    mine = buckets(201, sizes["buckets"], sizes["max_distance"])  # offsets -200..0 in the last row, 0..200 in the first
    assert torch.cat([mine[-1], mine[0, 1:]]).equal(io["out.relative_position_bucket"])


def test_the_published_size() -> None:
    with torch.device("meta"):
        encoder = T5Encoder(T5Config())
    assert sum(p.numel() for p in encoder.parameters()) == 4_762_310_656


def test_the_norm_takes_no_mean_off() -> None:
    x = torch.full((1, 16), 3.0)
    torch.testing.assert_close(RMSNorm(16)(x), torch.ones(1, 16))


@torch.no_grad()
def test_a_masked_token_reaches_nobody() -> None:
    encoder = T5Encoder(TINY).eval()
    mask = torch.tensor([[1, 1, 1, 0]])
    one, other = encoder(torch.tensor([[3, 4, 5, 6]]), mask), encoder(torch.tensor([[3, 4, 5, 7]]), mask)
    assert one[:, :3].equal(other[:, :3])
    assert not encoder(torch.tensor([[3, 4, 5, 6]]))[:, :3].equal(encoder(torch.tensor([[3, 4, 5, 7]]))[:, :3])


@torch.no_grad()
def test_half_precision_does_not_overflow() -> None:
    """The published XXL leaves float16's range in its MLPs: a residual of 10⁵ is no infinity, and the norm behind it is small again."""
    encoder = T5Encoder(TINY).eval()
    for block in encoder.encoder.block:
        block.layer[1].DenseReluDense.wo.weight.mul_(1e5)
        block.layer[1].DenseReluDense.wi_1.weight.mul_(100)
    ids = torch.arange(8)[None]
    block = encoder.encoder.block[0]
    assert block(encoder.shared(ids), None, torch.zeros(1, 2, 8, 8))[0].abs().max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(encoder.half()(ids).float(), encoder.float()(ids), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_gives_the_dtype_of_its_weights(dtype: torch.dtype) -> None:
    assert T5Encoder(TINY).to(dtype).eval()(torch.arange(6)[None]).dtype == dtype
