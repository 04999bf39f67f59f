"""Prompts, sizes and labels as a model's network wants them: one function a kind of conditioning, all in one table.

draft             the built-in model: states, pooled, and the picture that they promise
clip              last layer behind the final norm                         Stable Diffusion 1, folders of 2
clip_penultimate  the layer before it, behind the final norm               single files of Stable Diffusion 2
sdxl              penultimate layers of two encoders, side by side; pooled text and six sizes as one vector
refiner           of the second encoder alone; five numbers, the last an aesthetic score
sd3               penultimate layers of two encoders, padded to T5's width, and T5's states behind them
bert              the states                                               latent diffusion from text
labels, label_tokens, none
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise import prompts
from unnoise.checkpoints.specs import ModelSpec
from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError, NonFiniteError
from unnoise.networks.drafts import condition
from unnoise.networks.layers import timestep_embedding
from unnoise.networks.text import TextStates
from unnoise.networks.tokenizers import Tokenizer
from unnoise.prompts import Chunked, Piece

T5_LENGTH = 77  # tokens at least, as in the authors' code, which cuts nothing


@dataclass(frozen=True)
class Sizes:
    """What SDXL is told beside the text, in pixels: (height, width), (top, left), (height, width); the refiner a score instead."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]
    aesthetic_score: float = 6.0

    def numbers(self, kind: str) -> list[float]:
        last = self.target if kind == "sdxl" else (self.aesthetic_score,)
        return [*self.original, *self.crop, *last]


@dataclass(frozen=True)
class Wanted:
    """One picture's condition in words. text None: no prompt at all, which SDXL answers with zeros."""

    text: str | None
    height: int
    width: int
    sizes: Sizes
    label: int | None = None
    clip_skip: int = 0
    weights: bool = True  # whether (x:1.2) is a weight or text
    t5_length: int | None = None


@dataclass(frozen=True)
class Encoder:
    """The text encoders of a model with their tokenizers, and how they are used."""

    spec: ModelSpec
    networks: nn.ModuleDict
    tokenizers: Mapping[str, Tokenizer]
    words: Mapping[str, Tensor] = field(default_factory=dict)  # vectors of learned words, by place

    def __call__(self, wanted: Sequence[Wanted]) -> Cond:
        """One row each. Texts are encoded one by one, so that a row is the same to the last bit in any batch."""
        made = {want: KINDS[self.spec.conditioning](self, want) for want in dict.fromkeys(wanted)}
        rows = [made[want] for want in wanted]
        for row in made.values():
            if any(value is not None and not bool(torch.isfinite(value).all()) for value in (row.tokens, row.pooled)):
                raise NonFiniteError("text encoder: the states of the prompt are not finite")
        lengths = [0 if row.tokens is None else row.tokens.shape[1] for row in rows]
        if len(set(lengths)) == 1:
            return Cond.stack(rows)
        return Cond.stack([_filled(row, length, max(lengths)) for row, length in zip(rows, lengths, strict=True)])

    @property
    def device(self) -> torch.device:
        return next(self.networks.parameters()).device

    def has(self, place: str) -> bool:
        return place in self.networks

    def need(self, place: str) -> nn.Module:
        """A text encoder that the model cannot do without. Raises ArgumentError where the file had none."""
        if place not in self.networks:
            raise ArgumentError(f"this {self.spec.name} has no {place}: load it with parts={{{place!r}: FILE}}")
        return self.networks[place]

    def dropped(self, want: Wanted) -> int:
        """Text tokens that the model never sees: only encoders of a fixed length drop any."""
        kind, tokenizer = self.spec.conditioning, self.tokenizers.get("text_encoder")
        if kind in ("draft", "bert") and tokenizer is not None:
            return tokenizer([want.text or ""]).dropped[0]
        if kind == "sd3" and want.t5_length and "text_encoder_3" in self.tokenizers:
            return max(0, len(_t5_tokens(self, want)) + 1 - want.t5_length)  # and the end
        return 0

    def states(self, place: str, want: Wanted, skip: int, *, norm: bool = True) -> tuple[Tensor, TextStates]:
        """The context `skip` layers below the last, weighted, all chunks in one row (1, k n, width); and the states of the chunks."""
        encoder, chunks = self.need(place), prompts.chunk(_pieces(want), self.tokenizers[place])
        states = encoder(chunks.ids.to(self.device), self.words.get(place), skip=skip, norm=norm)
        taken = prompts.weighted(states.context, chunks.weights.to(self.device))
        return taken.flatten(0, 1)[None], states


def _pieces(want: Wanted) -> list[Piece]:
    """The prompt's text with its weights; without them brackets are text."""
    text = want.text or ""
    return prompts.parse(text) if want.weights else [Piece(text, 1.0)]


def _filled(row: Cond, length: int, longest: int) -> Cond:
    """A row of a batch of unlike lengths: the network is asked with its own tokens alone, so it does not depend on the others."""
    assert row.tokens is not None  # rows of one model have tokens all or none
    filling = row.tokens.new_zeros(1, longest - length, row.tokens.shape[2])
    return replace(row, tokens=torch.cat([row.tokens, filling], dim=1), lengths=torch.tensor([length], device=row.tokens.device))


def _draft(encoder: Encoder, want: Wanted) -> Cond:
    ids = encoder.tokenizers["text_encoder"]([want.text or ""]).ids.to(encoder.device)
    return condition(encoder.need("text_encoder")(ids), want.height, want.width)


def _clip(encoder: Encoder, want: Wanted) -> Cond:
    return Cond(tokens=encoder.states("text_encoder", want, want.clip_skip)[0])


def _clip_penultimate(encoder: Encoder, want: Wanted) -> Cond:
    return Cond(tokens=encoder.states("text_encoder", want, want.clip_skip + 1)[0])


def _pooled(states: TextStates) -> Tensor:
    """Of the first chunk, which has the prompt's beginning."""
    return (states.pooled if states.projected is None else states.projected)[:1]


def _sdxl(encoder: Encoder, want: Wanted) -> Cond:
    skip = want.clip_skip + 1
    pairs = [encoder.states(place, want, skip, norm=False) for place in ("text_encoder", "text_encoder_2")]
    tokens, pooled = torch.cat(_same_length([tokens for tokens, _ in pairs]), dim=-1), _pooled(pairs[1][1])
    if want.text is None:  # trained so: an absent prompt is zeros, an empty one is not
        tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
    return Cond(tokens=tokens, pooled=_with_sizes(encoder, pooled, want))


def _refiner(encoder: Encoder, want: Wanted) -> Cond:
    tokens, states = encoder.states("text_encoder", want, want.clip_skip + 1, norm=False)
    return Cond(tokens=tokens, pooled=_with_sizes(encoder, _pooled(states), want))


def _same_length(tokens: list[Tensor]) -> list[Tensor]:
    """Two tokenizers may cut a long prompt at other commas."""
    length = max(value.shape[1] for value in tokens)
    return [F.pad(value, (0, 0, 0, length - value.shape[1])) for value in tokens]


def _with_sizes(encoder: Encoder, pooled: Tensor, want: Wanted) -> Tensor:
    """Pooled text, and each number as sinusoids of equal width (Podell et al. 2023, section 2.2)."""
    config, numbers = encoder.spec.unet, want.sizes.numbers(encoder.spec.conditioning)
    assert config is not None  # only U-Nets are told sizes
    width = (config.pooled_width - pooled.shape[1]) // len(numbers)
    waves = timestep_embedding(torch.tensor(numbers, dtype=torch.float32, device=pooled.device), width)
    return torch.cat([pooled, waves.flatten()[None].to(pooled)], dim=1)


def _sd3(encoder: Encoder, want: Wanted) -> Cond:
    """Any of the three may be missing; its place is zeros (Esser et al. 2024, section 5.3.3)."""
    config = encoder.spec.mmdit
    assert config is not None
    widths = [config_of.width if config_of else width for config_of, width in ((encoder.spec.text, 768), (encoder.spec.text_2, 1280))]
    found = [_sd3_clip(encoder, place, want, width) for place, width in zip(("text_encoder", "text_encoder_2"), widths, strict=True)]
    clips = torch.cat(_same_length([tokens for tokens, _ in found]), dim=-1)
    t5 = _t5(encoder, want, config.context_width)
    tokens = torch.cat([F.pad(clips, (0, config.context_width - clips.shape[-1])).to(t5), t5], dim=1)
    return Cond(tokens=tokens, pooled=torch.cat([pooled for _, pooled in found], dim=-1).to(t5))


def _sd3_clip(encoder: Encoder, place: str, want: Wanted, width: int) -> tuple[Tensor, Tensor]:
    if not encoder.has(place):
        zeros = torch.zeros(1, 77, width, device=encoder.device)
        return zeros, zeros[:, 0]
    tokens, states = encoder.states(place, want, want.clip_skip + 1, norm=False)
    return tokens, _pooled(states)


def _t5(encoder: Encoder, want: Wanted, width: int) -> Tensor:
    """(1, n, width), padding attended to as in the authors' code: n is the text's length and at least 77, or as asked."""
    dtype = next(encoder.networks["network"].parameters()).dtype
    if not encoder.has("text_encoder_3"):
        return torch.zeros(1, want.t5_length or T5_LENGTH, width, device=encoder.device, dtype=dtype)
    chunks = t5_chunk(encoder, want)
    return prompts.weighted(encoder.networks["text_encoder_3"](chunks.ids.to(encoder.device)), chunks.weights.to(encoder.device)).to(dtype)


def _t5_tokens(encoder: Encoder, want: Wanted) -> list[tuple[int, float]]:
    """The prompt's ids and their weights, all of them; T5 has no chunks to break."""
    tokenizer = encoder.tokenizers["text_encoder_3"]
    plain = [piece for piece in _pieces(want) if piece != (prompts.BREAK, -1)]
    return [(id, piece.weight) for piece in plain for group in tokenizer.groups(piece.text) for id in group]


def t5_chunk(encoder: Encoder, want: Wanted) -> Chunked:
    """The prompt as one row of T5's ids."""
    tokenizer, pairs = encoder.tokenizers["text_encoder_3"], _t5_tokens(encoder, want)
    pairs = pairs[: want.t5_length - 1] if want.t5_length else pairs
    row = [*pairs, (tokenizer.end, 1.0)]
    row += [(tokenizer.pad, 1.0)] * ((want.t5_length or T5_LENGTH) - len(row))
    return Chunked(torch.tensor([[id for id, _ in row]]), torch.tensor([[weight for _, weight in row]]), len(pairs))


def _bert(encoder: Encoder, want: Wanted) -> Cond:
    ids = encoder.tokenizers["text_encoder"]([want.text or ""]).ids.to(encoder.device)
    return Cond(tokens=encoder.need("text_encoder")(ids))


def _label(encoder: Encoder, want: Wanted) -> Tensor:
    """The picture's class; for the negative side the label that stands for none."""
    label = encoder.spec.null_label if want.label is None else want.label
    if label is None:
        raise ArgumentError(f"this {encoder.spec.name} has no label for no class: use guidance_scale=1")
    return torch.tensor([label], device=encoder.device)


def _labels(encoder: Encoder, want: Wanted) -> Cond:
    return Cond(labels=_label(encoder, want))


def _label_tokens(encoder: Encoder, want: Wanted) -> Cond:
    return Cond(tokens=encoder.need("text_encoder")(_label(encoder, want)))


def _none(encoder: Encoder, want: Wanted) -> Cond:
    """The label is for a classifier; without one it only says how many pictures there are."""
    return Cond(labels=torch.tensor([want.label or 0], device=encoder.device))


KINDS: dict[str, Callable[[Encoder, Wanted], Cond]] = {
    "draft": _draft,
    "clip": _clip,
    "clip_penultimate": _clip_penultimate,
    "sdxl": _sdxl,
    "refiner": _refiner,
    "sd3": _sd3,
    "bert": _bert,
    "labels": _labels,
    "label_tokens": _label_tokens,
    "none": _none,
}
