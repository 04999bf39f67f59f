"""The text LDM's encoder against diffusers, its tokens against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from unnoise.checkpoints.found import Part
from unnoise.checkpoints.layouts.bert import bert_config, diffusers_bert
from unnoise.checkpoints.store.weights import Weights
from unnoise.networks import wordpiece

TEXTS = (
    "A virus monster is playing guitar, oil on canvas",
    "",
    '  Café naïve—"quoted" 3.14 & <b>tags</b>\t\n it\'s',
    "日本語 한국어 ελληνικά Übergröße",
    "unbelievablyantidisestablishmentarianism [SEP] [MASK] 🙂 \u200b\u0000x",
    "word " * 100,
)


def test_it_gives_what_diffusers_gives(one_thread: None) -> None:
    theirs = pytest.importorskip("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
    config = theirs.LDMBertConfig(
        vocab_size=60, max_position_embeddings=11, encoder_layers=3, encoder_ffn_dim=48, encoder_attention_heads=3, head_dim=4, d_model=24
    )
    peer = theirs.LDMBertModel(config).eval()
    for p in peer.parameters():
        nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.2 if p.dim() == 1 else p[0].numel() ** -0.5)
    weights = Weights.open(peer.state_dict())
    ours = bert_config(weights.shapes, {"head_width": 4})
    mine = Part(ours, diffusers_bert(ours), weights).load()
    ids = torch.randint(60, (2, 11))
    with torch.no_grad():
        expected = peer(ids).last_hidden_state
        torch.testing.assert_close(mine(ids), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = wordpiece.bert()
    vocab = sorted(tokenizer.pieces.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in vocab), encoding="utf-8")
    peer = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    expected = peer(list(TEXTS), truncation=True, max_length=77, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(tokenizer(TEXTS).ids, expected)
