"""Textual inversion: every form of file, which encoder a vector is for, and what a prompt with the word gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from checkpoints.adapters import models
from checkpoints.adapters.models import CLIP_G, CLIP_L, SD15, SDXL
from unnoise.checkpoints.adapters import files, words
from unnoise.checkpoints.adapters.words import Embedding
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder


def opened(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Weights:
    save_file(tensors, path, metadata=metadata)
    return Weights.open(path)


def encoder(width: int = 24) -> CLIPTextEncoder:
    return CLIPTextEncoder(CLIPTextConfig(vocab=120, length=12, width=width, mlp=48, layers=2, heads=2, end_token=119)).eval()


FORMS = {
    "diffusers": ({"<cat>": (24,)}, "<cat>", 1),
    "diffusers, several vectors": ({"<cat>": (3, 24)}, "<cat>", 3),
    "emb_params": ({"emb_params": (4, 24)}, "my-style", 4),
    "string_to_param": ({"string_to_param.*": (2, 24)}, "my-style", 2),
    "placeholder": ({"*": (2, 24)}, "my-style", 2),
    "pair": ({"clip_l": (2, 24), "clip_g": (2, 32)}, "my-style", 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    shapes, word, count = FORMS[form]
    tensors = {key: torch.randn(shape) for key, shape in shapes.items()}
    (found,) = words.read(opened(tmp_path / "my-style.safetensors", tensors))
    assert (found.word, found.count) == (word, count)
    assert all(torch.equal(vectors, tensors[name or next(iter(tensors))].view(count, -1)) for name, vectors in found.vectors.items())
    assert words.read(Weights.open(tmp_path / "my-style.safetensors"), word="other")[0].word == "other"


def test_several_words_in_a_file(tmp_path: Path) -> None:
    weights = opened(tmp_path / "a.safetensors", {"<a>": torch.randn(24), "<b>": torch.randn(2, 24)})
    assert {word.word: word.count for word in words.read(weights)} == {"<a>": 1, "<b>": 2}
    with pytest.raises(FileError, match="one name cannot stand for all"):
        words.read(weights, word="<c>")


def test_a_real_file(shared: Path) -> None:
    content = torch.load(shared / "weights" / "embeddings" / "fastai_learned_embeds.bin", weights_only=True)
    (birb,) = words.read(Weights.open(content))
    assert birb.word == "<birb-style>" and birb.vectors[""].shape == (1, 768)
    with torch.device("meta"):
        networks = {"text_encoder": CLIPTextEncoder(CLIPTextConfig())}
    made = words.vectors([birb], networks)
    assert made["text_encoder"].ids == {"<birb-style>": [49408]}


def test_a_word_is_its_vectors_in_the_token_table() -> None:
    """The oracle: the vectors as rows of a larger table."""
    small, a, b = encoder(), torch.randn(2, 24), torch.randn(1, 24)
    made = words.vectors([Embedding("<a>", {"": a}), Embedding("<b>", {"": b})], {"text_encoder": small})["text_encoder"]
    assert made.ids == {"<a>": [120, 121], "<b>": [122]}
    large = encoder()
    large.load_state_dict(small.state_dict())
    table = nn.Embedding(123, 24)
    table.weight.data = torch.cat([small.text_model.embeddings.token_embedding.weight.data, a, b])
    large.text_model.embeddings.token_embedding = table
    ids = torch.tensor([[118, 5, *made.ids["<a>"], 7, *made.ids["<b>"], 119, 119]])
    mine, theirs = small(ids, made.vectors), large(ids)
    assert torch.equal(mine.last, theirs.last) and torch.equal(mine.pooled, theirs.pooled)


def test_later_words_stand_behind_earlier_ones() -> None:
    small, a, b = encoder(), torch.randn(2, 24), torch.randn(1, 24)
    first = words.vectors([Embedding("<a>", {"": a})], {"text_encoder": small})["text_encoder"]
    second = words.vectors([Embedding("<b>", {"": b})], {"text_encoder": small}, {"text_encoder": first.vectors})["text_encoder"]
    assert second.ids == {"<b>": [122]} and torch.equal(second.vectors, torch.cat([a, b]))


def test_vectors_take_the_encoder_s_precision() -> None:
    half = encoder().to(torch.bfloat16)
    made = words.vectors([Embedding("<a>", {"": torch.randn(1, 24)})], {"text_encoder": half})
    assert made["text_encoder"].vectors.dtype == torch.bfloat16


def test_pairs_go_to_their_encoders() -> None:
    pair = Embedding("style", {"clip_l": torch.zeros(2, 24), "clip_g": torch.ones(2, 32)})
    made = words.vectors([pair], {"text_encoder": encoder(24), "text_encoder_2": encoder(32)})
    assert made["text_encoder"].vectors.shape == (2, 24) and made["text_encoder_2"].vectors.shape == (2, 32)
    assert made["text_encoder_2"].vectors.bool().all()


@pytest.mark.parametrize(
    ("vectors", "widths", "said"),
    [
        ({"": 1024}, {"text_encoder": 768}, r"width 1024 \(Stable Diffusion 2\), and this model's text encoders take 768"),
        ({"": 768}, {"text_encoder": 1024}, r"width 768 \(Stable Diffusion 1\), and this model's text encoders take 1024"),
        ({"": 768}, {"text_encoder": 768, "text_encoder_2": 1280}, r"width 768 \(Stable Diffusion 1\).* take 768 and 1280"),
        ({"clip_l": 768, "clip_g": 1280}, {"text_encoder": 1024}, r"768 and 1280 \(SDXL or Stable Diffusion 3\).* take 1024"),
        ({"clip_l": 768}, {"text_encoder": 768, "text_encoder_2": 1280}, r"width 768 \(Stable Diffusion 1\).* take 768 and 1280"),
    ],
)
def test_another_family_s_vectors(vectors: dict[str, int], widths: dict[str, int], said: str) -> None:
    with torch.device("meta"):
        encoders = {place: CLIPTextEncoder(CLIPTextConfig(width=width, layers=1, heads=8)) for place, width in widths.items()}
    with pytest.raises(FileError, match=said):
        words.vectors([Embedding("a", {name: torch.zeros(1, width) for name, width in vectors.items()})], encoders)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"is no file of textual inversion: got conv\.weight"):
        words.read(opened(tmp_path / "a.safetensors", {"conv.weight": torch.zeros(1, 1, 3, 3)}))
    with pytest.raises(FileError, match="is no file of textual inversion: expected"):
        words.read(Weights.open({}))
    with pytest.raises(FileError, match="NaN"):
        words.read(opened(tmp_path / "b.safetensors", {"<a>": torch.full((24,), float("nan"))}))
    with pytest.raises(FileError, match="unlike numbers of vectors"):
        words.read(opened(tmp_path / "c.safetensors", {"clip_l": torch.zeros(1, 24), "clip_g": torch.zeros(2, 32)}))
    twice = [Embedding("a", {"": torch.zeros(1, 24)})] * 2
    with pytest.raises(FileError, match="two embeddings are called 'a'"):
        words.vectors(twice, {"text_encoder": encoder()})


def test_words_that_come_with_an_adapter(tmp_path: Path) -> None:
    pair = "lora_unet_down_blocks_1_attentions_0_proj_in"
    tensors = {f"{pair}.lora_up.weight": torch.zeros(16, 2), f"{pair}.lora_down.weight": torch.zeros(2, 16)}
    bundled = tensors | {"bundle_emb.my style.string_to_param.*": torch.ones(2, 24), "<s1>": torch.ones(24)}
    weights = opened(tmp_path / "a.safetensors", bundled, {"<s1>": "<embed>"})
    adapter = files.read(weights, models.empty(SD15, CLIP_L))
    assert {word.word: word.count for word in adapter.embeddings} == {"my style": 2, "<s1>": 1}
    pair = "lora_unet_input_blocks_4_1_proj_in"
    tensors = {f"{pair}.lora_up.weight": torch.zeros(16, 2), f"{pair}.lora_down.weight": torch.zeros(2, 16)}
    tensors |= {"bundle_emb.x.clip_l": torch.ones(2, 24), "bundle_emb.x.clip_g": torch.ones(2, 16)}
    networks = models.empty(SDXL, CLIP_L, CLIP_G)
    (word,) = files.read(Weights.open(tensors), networks).embeddings
    assert word.word == "x" and word.vectors.keys() == {"clip_l", "clip_g"}
    stray = tensors | {"<s1>": torch.ones(24)}  # nothing says that this is a word
    with pytest.raises(FileError, match=r"<s1>"):
        files.read(Weights.open(stray), networks)
