"""Prompts as a model's conditions while it is trained: the place where training asks the model's own text encoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.networks.tokenizers import Tokenizer
from unnoise.pipeline.encoding import Caption, Sizes
from unnoise.pipeline.model import Model


def encoder(
    model: Model,
    *,
    networks: nn.ModuleDict | None = None,
    tokenizers: Mapping[str, Tokenizer] | None = None,
    words: Callable[[], Mapping[str, Tensor]] | None = None,
) -> Callable[[Sequence[str]], Cond]:
    """Prompts -> conditions, one row each, as pictures of the model's own size are asked for.

    networks and tokenizers: instead of the model's, where an adapter is on them. words: vectors of learned words by place, asked for at
    every call, so that they may be trained.
    """
    side = model.spec.size
    sizes = Sizes((side, side), (0, 0), (side, side))

    def encode(prompts: Sequence[str]) -> Cond:
        learned = model.encode.words if words is None else words()
        placed = model.networks if networks is None else model.networks.replaced(dict(networks.items()))
        inner = replace(model.encode, networks=placed, tokenizers=tokenizers or model.tokenizers, words=learned)
        return inner([Caption(prompt, side, side, sizes) for prompt in prompts])

    return encode
