"""How text, sizes and labels become a network's condition: one record a kind, all in one table.

draft             the built-in model: states, pooled, and the picture that they promise
clip              last layer behind the final norm                         Stable Diffusion 1, folders of 2
clip_penultimate  the layer before it, behind the final norm               single files of Stable Diffusion 2
sdxl              penultimate layers of two encoders, side by side; pooled text and six sizes as one vector
refiner           the second of them alone; five numbers, the last an aesthetic score
sd3               penultimate layers of two encoders, padded to T5's width, and T5's states behind them
bert              the states                                               latent diffusion from text
labels, label_tokens, none
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.families.spec import Place
from unnoise.networks.drafts import condition
from unnoise.networks.layers import timestep_embedding
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.text import TextStates
from unnoise.networks.unet import UNetConfig
from unnoise.pipeline import prompts
from unnoise.pipeline.encoding import Caption, Encoder
from unnoise.pipeline.prompts import Chunked

T5_LENGTH = 77  # tokens at least, as in the authors' code, which cuts nothing


@dataclass(frozen=True)
class Conditioning:
    """One kind: what it encodes, what a request may ask of it, and what its models draw."""

    row: Callable[[Encoder, Caption], Cond]
    models: str  # whose it is, for refusals
    takes: Literal["text", "label", "nothing"] = "text"
    reads: frozenset[str] = frozenset()  # the fields of a request that not every model reads
    photographs: bool = False  # whether its models draw photographs of anything, which a safety checker looks at
    dropped: Callable[[Encoder, Caption], int] = lambda encoder, caption: 0  # text tokens that the model never sees


def readers(name: str) -> str:
    """Name the models that read a field of a request."""
    kinds = [kind for kind in CONDITIONINGS.values() if name in kind.reads]
    every = {takes: sum(kind.takes == takes for kind in CONDITIONINGS.values()) for takes in ("text", "label")}
    counts = {takes: sum(kind.takes == takes for kind in kinds) for takes in every}
    if counts == {"text": every["text"], "label": 0}:
        return "models of text"
    if counts == every:
        return "models of text or classes"
    *others, last = dict.fromkeys(kind.models for kind in kinds)
    return f"{', '.join(others)} and {last}" if others else last


def _draft(encoder: Encoder, caption: Caption) -> Cond:
    encoder.need("text_encoder")
    ids = encoder.tokenizers["text_encoder"]([caption.text or ""]).ids.to(encoder.device)
    with encoder.networks.on("text_encoder") as network:
        return condition(network(ids), caption.height, caption.width)


def _cut(encoder: Encoder, caption: Caption) -> int:
    """Encoders of a fixed length drop the tokens behind it."""
    return encoder.tokenizers["text_encoder"]([caption.text or ""]).dropped[0]


def _clip(encoder: Encoder, caption: Caption) -> Cond:
    return Cond(tokens=encoder.states("text_encoder", caption, caption.clip_skip)[0])


def _clip_penultimate(encoder: Encoder, caption: Caption) -> Cond:
    return Cond(tokens=encoder.states("text_encoder", caption, caption.clip_skip + 1)[0])


def _pooled(states: TextStates) -> Tensor:
    """The pooled text of the first chunk, which has the prompt's beginning."""
    return (states.pooled if states.projected is None else states.projected)[:1]


def _sdxl(encoder: Encoder, caption: Caption) -> Cond:
    skip = caption.clip_skip + 1
    pairs = [encoder.states(place, caption, skip, norm=False) for place in ("text_encoder", "text_encoder_2")]
    tokens, pooled = torch.cat(_same_length([tokens for tokens, _ in pairs]), dim=-1), _pooled(pairs[1][1])
    if caption.text is None:  # trained so: an absent prompt is zeros, an empty one is not
        tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
    sizes = caption.sizes
    return Cond(tokens=tokens, pooled=_with_numbers(encoder, pooled, [*sizes.original, *sizes.crop, *sizes.target]))


def _refiner(encoder: Encoder, caption: Caption) -> Cond:
    tokens, states = encoder.states("text_encoder", caption, caption.clip_skip + 1, norm=False)
    numbers = [*caption.sizes.original, *caption.sizes.crop, caption.sizes.aesthetic_score]
    return Cond(tokens=tokens, pooled=_with_numbers(encoder, _pooled(states), numbers))


def _same_length(tokens: list[Tensor]) -> list[Tensor]:
    """Two tokenizers may cut a long prompt at other commas."""
    length = max(value.shape[1] for value in tokens)
    return [F.pad(value, (0, 0, 0, length - value.shape[1])) for value in tokens]


def _with_numbers(encoder: Encoder, pooled: Tensor, numbers: list[float]) -> Tensor:
    """Pooled text, and each number as sinusoids of equal width (Podell et al. 2023, section 2.2)."""
    config = encoder.spec.network
    if not isinstance(config, UNetConfig):
        raise ArgumentError(f"{encoder.spec.name} is no U-Net, and only U-Nets are told sizes: its spec has another conditioning")
    width = (config.pooled_width - pooled.shape[1]) // len(numbers)
    waves = timestep_embedding(torch.tensor(numbers, dtype=torch.float32).to(pooled.device), width)
    return torch.cat([pooled, waves.flatten()[None].to(pooled)], dim=1)


def _sd3(encoder: Encoder, caption: Caption) -> Cond:
    """Any of the three may be missing; its place is zeros (Esser et al. 2024, section 5.3.3)."""
    config = encoder.spec.network
    if not isinstance(config, MMDiTConfig):
        raise ArgumentError(f"{encoder.spec.name} is no MMDiT: its spec has another conditioning")
    found = [_sd3_clip(encoder, "text_encoder", caption, 768), _sd3_clip(encoder, "text_encoder_2", caption, 1280)]
    clips = torch.cat(_same_length([tokens for tokens, _ in found]), dim=-1)
    t5 = _t5(encoder, caption, config.context_width)
    tokens = torch.cat([F.pad(clips, (0, config.context_width - clips.shape[-1])).to(t5), t5], dim=1)
    return Cond(tokens=tokens, pooled=torch.cat([pooled for _, pooled in found], dim=-1).to(t5))


def _sd3_clip(encoder: Encoder, place: Place, caption: Caption, width: int) -> tuple[Tensor, Tensor]:
    """Tokens and pooled text of one CLIP. width: the published encoder's, for a model whose spec has none in this place."""
    if not encoder.has(place):
        zeros = torch.zeros(1, 77, getattr(encoder.spec.networks.get(place), "width", width), device=encoder.device)
        return zeros, zeros[:, 0]
    tokens, states = encoder.states(place, caption, caption.clip_skip + 1, norm=False)
    return tokens, _pooled(states)


def _t5(encoder: Encoder, caption: Caption, width: int) -> Tensor:
    """(1, n, width), padding attended to as in the authors' code: n is the text's length and at least 77, or as asked."""
    if not encoder.has("text_encoder_3"):
        return torch.zeros(1, caption.t5_length or T5_LENGTH, width, device=encoder.device, dtype=encoder.dtype)
    chunks = t5_chunk(encoder, caption)
    with encoder.networks.on("text_encoder_3") as network:
        return prompts.weighted(network(chunks.ids.to(encoder.device)), chunks.weights.to(encoder.device)).to(encoder.dtype)


def _t5_tokens(encoder: Encoder, caption: Caption) -> list[tuple[int, float]]:
    """The prompt's ids and their weights, all of them; T5 has no chunks to break."""
    tokenizer = encoder.tokenizers["text_encoder_3"]
    plain = [piece for piece in caption.pieces() if piece != (prompts.BREAK, -1)]
    return [(id, piece.weight) for piece in plain for group in tokenizer.groups(piece.text) for id in group]


def t5_chunk(encoder: Encoder, caption: Caption) -> Chunked:
    """Return the prompt as one row of T5's ids."""
    tokenizer, pairs = encoder.tokenizers["text_encoder_3"], _t5_tokens(encoder, caption)
    pairs = pairs[: caption.t5_length - 1] if caption.t5_length else pairs
    row = [*pairs, (tokenizer.end, 1.0)]
    row += [(tokenizer.pad, 1.0)] * ((caption.t5_length or T5_LENGTH) - len(row))
    return Chunked(torch.tensor([[id for id, _ in row]]), torch.tensor([[weight for _, weight in row]]), len(pairs))


def _sd3_cut(encoder: Encoder, caption: Caption) -> int:
    """Tokens behind max_sequence_length, which counts the end too."""
    if not caption.t5_length or "text_encoder_3" not in encoder.tokenizers:
        return 0
    return max(0, len(_t5_tokens(encoder, caption)) + 1 - caption.t5_length)


def _bert(encoder: Encoder, caption: Caption) -> Cond:
    encoder.need("text_encoder")
    ids = encoder.tokenizers["text_encoder"]([caption.text or ""]).ids.to(encoder.device)
    with encoder.networks.on("text_encoder") as network:
        return Cond(tokens=network(ids))


def _label(encoder: Encoder, caption: Caption) -> Tensor:
    """The picture's class; for the negative side the label that stands for none."""
    label = encoder.spec.null_label if caption.label is None else caption.label
    if label is None:
        raise ArgumentError(f"this {encoder.spec.name} has no label for no class: use guidance_scale=1")
    return torch.tensor([label]).to(encoder.device)


def _labels(encoder: Encoder, caption: Caption) -> Cond:
    return Cond(labels=_label(encoder, caption))


def _label_tokens(encoder: Encoder, caption: Caption) -> Cond:
    encoder.need("text_encoder")
    with encoder.networks.on("text_encoder") as network:
        return Cond(tokens=network(_label(encoder, caption)))


def _none(encoder: Encoder, caption: Caption) -> Cond:
    """The label is for a classifier; without one it only says how many pictures there are."""
    return Cond(labels=torch.tensor([caption.label or 0]).to(encoder.device))


_TEXT = frozenset({"negative_prompt", "guidance_scale"})
_CLIP = _TEXT | {"clip_skip"}
_SIZED = _CLIP | {"original_size", "crops_coords_top_left", "target_size"}
_SCORED = _SIZED | {"aesthetic_score", "negative_aesthetic_score"}
_LABEL = frozenset({"guidance_scale"})

CONDITIONINGS = {
    "draft": Conditioning(_draft, "the built-in model", reads=_TEXT, dropped=_cut),
    "clip": Conditioning(_clip, "Stable Diffusion 1 and 2", reads=_CLIP, photographs=True),
    "clip_penultimate": Conditioning(_clip_penultimate, "Stable Diffusion 1 and 2", reads=_CLIP, photographs=True),
    "sdxl": Conditioning(_sdxl, "SDXL", reads=_SIZED, photographs=True),
    "refiner": Conditioning(_refiner, "SDXL's refiner", reads=_SCORED, photographs=True),
    "sd3": Conditioning(_sd3, "Stable Diffusion 3", reads=_CLIP | {"max_sequence_length"}, photographs=True, dropped=_sd3_cut),
    "bert": Conditioning(_bert, "latent diffusion from text", reads=_TEXT, photographs=True, dropped=_cut),
    "labels": Conditioning(_labels, "models of classes", "label", _LABEL),
    "label_tokens": Conditioning(_label_tokens, "models of classes", "label", _LABEL),
    "none": Conditioning(_none, "models without a condition", "nothing"),
}
