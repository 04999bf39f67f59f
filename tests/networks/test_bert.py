"""The text LDM's encoder and its tokens, against what their papers and their file say."""

from __future__ import annotations

import gzip
import hashlib
from importlib import resources
from pathlib import Path

import pytest
import torch

from unnoise.checkpoints import keys
from unnoise.checkpoints.found import Part
from unnoise.checkpoints.layouts import bert as layouts
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.networks import wordpiece
from unnoise.networks.bert import BertConfig, BertEncoder

TINY = BertConfig(vocab=40, length=9, width=16, layers=3, heads=2, head_width=4, mlp=24)


def test_it_is_the_encoder_of_the_1_4b_model() -> None:
    config = BertConfig()
    attention, feed = 4 * 512 * 1280 + 1280, 2 * 5120 * 1280 + 5120 + 1280
    expected = (30522 + 77) * 1280 + 32 * (attention + feed + 2 * 2 * 1280) + 2 * 1280
    with torch.device("meta"):
        assert sum(p.numel() for p in BertEncoder(config).parameters()) == expected == 542_895_360


def test_every_position_sees_every_other() -> None:
    network = BertEncoder(TINY).eval()
    ids = torch.arange(9)[None]
    changed = ids.clone()
    changed[0, -1] = 30
    assert not torch.equal(network(ids)[0, 0], network(changed)[0, 0])


@pytest.mark.parametrize("layout", [layouts.bert, layouts.diffusers_bert])
def test_either_file_is_read_and_written(layout) -> None:
    network = BertEncoder(TINY).eval()
    file = keys.write(layout(TINY), network.state_dict())
    file["to_logits.weight"] = torch.zeros(40, 16)
    weights = Weights.open(file)
    config = layouts.bert_config(weights.shapes, {"head_width": 4})
    assert config == TINY
    loaded = Part(config, layout(config), weights).load()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_the_authors_names() -> None:
    names = set(keys.write(layouts.bert(TINY), BertEncoder(TINY).state_dict()))
    assert {"token_emb.weight", "pos_emb.emb.weight", "norm.bias", "attn_layers.layers.4.1.to_out.bias"} <= names
    assert {"attn_layers.layers.0.0.weight", "attn_layers.layers.5.1.net.0.0.weight", "attn_layers.layers.5.1.net.2.bias"} <= names
    assert len(names) == 4 + 3 * (4 + 5 + 4)


def test_the_vocabulary_is_googles() -> None:
    """The SHA-256 that the published bert-base-uncased/vocab.txt has."""
    packed = resources.files("unnoise.networks").joinpath("vocab/bert_uncased.txt.gz").read_bytes()
    assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def test_start_text_end_padding_and_what_is_dropped() -> None:
    tokens = wordpiece.bert(length=6)(["A cat", "a b c d e f", ""])
    assert tokens.ids[0].tolist() == [101, 1037, 4937, 102, 0, 0]
    assert tokens.ids[1].tolist() == [101, 1037, 1038, 1039, 1040, 102]
    assert tokens.ids[2].tolist() == [101, 102, 0, 0, 0, 0]
    assert tokens.dropped == [0, 2, 0]


def test_a_vocabulary_of_ones_own(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "app", "##le"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    ours = wordpiece.read(tmp_path / "vocab.txt", length=6)
    ours.save(tmp_path / "tokenizer.json")
    for tokenizer in (ours, wordpiece.read(tmp_path / "tokenizer.json", length=6)):
        assert tokenizer(["Apple pear"]).ids.tolist() == [[2, 5, 6, 1, 3, 0]]


def test_a_vocabulary_that_is_not_berts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(FileError, match="has no"):
        wordpiece.read(tmp_path / "vocab.txt")
    with pytest.raises(FileError, match="no tokenizer at"):
        wordpiece.read(tmp_path / "none.txt")
