"""Prompts as a model's conditions while it is trained: the place where training asks the model's own text encoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.encoding import Encoder, Sizes, Wanted
from unnoise.model import Model
from unnoise.networks.tokenizers import Tokenizer


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
        inner = Encoder(model.spec, networks or model.networks, tokenizers or model.tokenizers, learned)
        return inner([Wanted(prompt, side, side, sizes) for prompt in prompts])

    return encode
