"""Text encoders and tokenizers against transformers: equal random weights, equal states; equal folders, equal ids."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unnoise.networks.t5 import T5Config, T5Encoder
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.tokenizers import from_folder, published_clip, published_t5

transformers: Any = pytest.importorskip("transformers")


@pytest.fixture
def texts(shared: Path) -> list[str]:
    return [item["text"] for item in json.loads((shared / "golden/tokenizer/tokens.json").read_text(encoding="utf-8"))]


@pytest.fixture
def sd15(shared: Path) -> Path:
    return shared / "weights/sd15_layout/tokenizer"


def randomise(peer: nn.Module) -> None:
    """Random values in every parameter, none left at zero or one."""
    for p in peer.parameters():
        nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.2 if p.dim() == 1 else p[0].numel() ** -0.5)
    peer.eval()


def assert_same(mine: Tensor, peer: Tensor) -> None:
    torch.testing.assert_close(mine, peer, rtol=0, atol=1e-5 * peer.abs().max().item())


@pytest.mark.parametrize("head_width", [8, 12])
@torch.no_grad()
def test_t5(head_width: int) -> None:
    settings = transformers.T5Config(
        vocab_size=60,
        d_model=32,
        d_kv=head_width,
        d_ff=48,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    peer = transformers.T5EncoderModel(settings)
    randomise(peer)
    mine = T5Encoder(T5Config(vocab=60, width=32, layers=3, heads=4, head_width=head_width, mlp=48)).eval()
    weights = peer.state_dict()
    weights.pop("encoder.embed_tokens.weight", None)  # `shared` by its other name
    mine.load_state_dict(weights)
    ids, mask = torch.randint(60, (2, 300)), torch.ones(2, 300, dtype=torch.long)  # beyond the last bucket's distance
    assert_same(mine(ids), peer(ids).last_hidden_state)
    mask[1, 200:] = 0
    assert_same(mine(ids, mask), peer(ids, attention_mask=mask).last_hidden_state)


@torch.no_grad()
def test_words_of_textual_inversion() -> None:
    """transformers appends rows to the token table; here the table stays as it is."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": 32, "max_position_embeddings": 12}
    peer = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(vocab_size=100, bos_token_id=98, eos_token_id=99, pad_token_id=99, **sizes)
    )
    randomise(peer)
    mine = CLIPTextEncoder(CLIPTextConfig(vocab=100, length=12, width=32, layers=2, heads=4, mlp=64, end_token=99)).eval()
    mine.load_state_dict({f"text_model.{key.removeprefix('text_model.')}": value for key, value in peer.state_dict().items()})
    words = torch.randn(2, 32)
    peer.resize_token_embeddings(102)
    peer.get_input_embeddings().weight[100:] = words
    ids = torch.tensor([[98, 5, 100, 101, 7, 99, 99, 99, 99, 99, 99, 99], [98, 5, 6, 99, 99, 99, 99, 99, 99, 99, 99, 99]])
    before = mine.text_model.embeddings.token_embedding.weight.clone()
    states, expected = mine(ids, words), peer(ids)
    assert_same(states.last, expected.last_hidden_state)
    assert_same(states.pooled, expected.pooler_output)  # at the end token, though other ids are larger
    assert before.equal(mine.text_model.embeddings.token_embedding.weight)


def clip_ids(peer: Any, texts: list[str]) -> Tensor:
    return peer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def test_a_published_folder(sd15: Path, texts: list[str]) -> None:
    expected = clip_ids(transformers.CLIPTokenizer.from_pretrained(sd15), texts)
    assert from_folder(sd15)(texts).ids.equal(expected)
    assert published_clip()(texts).ids.equal(expected)


def test_a_folder_that_transformers_writes(sd15: Path, texts: list[str], tmp_path: Path) -> None:
    """With the padding of its last call in the file, OpenCLIP's pad token, and a word that was added."""
    peer = transformers.CLIPTokenizer.from_pretrained(sd15, pad_token="!")
    peer.add_tokens(["birb-style"])
    texts = [*texts, "a birb-style cat"]
    expected = clip_ids(peer, texts)
    peer.save_pretrained(tmp_path)
    mine = from_folder(tmp_path)
    assert (mine.length, mine.pad) == (77, 0)
    assert mine(texts).ids.equal(expected)
    assert 49408 in expected[-1]


@pytest.fixture
def t5_peer() -> Any:
    table = json.loads(published_t5().pieces.to_str())
    characters = base64.b64decode(table["normalizer"]["precompiled_charsmap"])
    return transformers.T5Tokenizer(vocab=[tuple(entry) for entry in table["model"]["vocab"]], _spm_precompiled_charsmap=characters)


def test_t5_tokenizer(t5_peer: Any, texts: list[str], tmp_path: Path) -> None:
    texts = [*texts, " a  cat ", "cat </s> dog", "ﬁne Ａ\u3000x <extra_id_0>", "한국어 prompt"]
    expected = t5_peer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert published_t5(77)(texts).ids.equal(expected)
    t5_peer.save_pretrained(tmp_path)
    assert from_folder(tmp_path, 77)(texts).ids.equal(expected)
    assert from_folder(tmp_path).length == 256
