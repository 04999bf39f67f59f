"""A network within a file: its sizes, where its weights stand, and how it is built around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unnoise.checkpoints import keys
from unnoise.checkpoints.keys import Layout, Shape
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import ArgumentError
from unnoise.families.spec import ModelSpec
from unnoise.networks.meta import meta
from unnoise.networks.tokenizers import Tokenizer


@dataclass(frozen=True)
class Part:
    """One network of a file."""

    config: Any  # of the network, which `config.build()` makes
    layout: Layout
    weights: Weights  # the network's own keys, without what stands before them all

    def empty(self) -> nn.Module:
        """On the meta device: names and shapes, no memory."""
        with meta():
            return self.config.build()

    def check(self, network: nn.Module | None = None) -> dict[str, Shape]:
        """The parameters that the network wants. Raises FileError where the file's keys are others."""
        expected = {name: tuple(value.shape) for name, value in (network or self.empty()).state_dict().items()}
        keys.check(self.layout, expected, self.weights, str(self.weights.path))
        return expected

    def load(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> nn.Module:
        """The network in eval mode. Tensors of the wanted dtype stay mapped from the file; None: as stored. Raises FileError."""
        network = self.empty()
        expected = self.check(network)
        for name, value in keys.read(self.layout, expected, self.weights, dtype):
            assign(network, name, value.to(device))
        return network.eval()


def assign(network: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in a parameter's or a buffer's place, without a copy."""
    owner, _, leaf = name.rpartition(".")
    module = network.get_submodule(owner)
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        setattr(module, leaf, nn.Parameter(value, requires_grad=False))


@dataclass(frozen=True)
class Found:
    """What a file turned out to be: a spec with the file's own sizes, and those of the spec's networks that it holds."""

    spec: ModelSpec
    parts: Mapping[str, Part]  # by the names of `ModelSpec.parts`; a network that is not there has to come from another file
    evidence: tuple[str, ...] = ()  # how family, prediction and schedule are known, a line each, for people
    tokenizers: Mapping[str, Path | Tokenizer] = field(default_factory=dict)  # by the place of their text encoder; the package's else
    complete: bool = False  # the file says everything itself, and nothing can be given beside it

    def check_beside(self, path: Path, names: Sequence[str]) -> None:
        """Raises ArgumentError for arguments of these names, given beside a file that says everything itself."""
        if self.complete and names:
            raise ArgumentError(f"got {' and '.join(names)} for {path}, which unnoise saved and which says all of it itself: leave it out")

    def with_stage(self) -> Found:
        """With the autoencoder told the spec's scale and shift of latents, which its shapes do not show."""
        stage, part = self.spec.first_stage, self.parts.get("autoencoder")
        if stage is None or part is None:
            return self
        return replace(self, parts={**self.parts, "autoencoder": replace(part, config=stage)})


# Each layout that is a whole file of a family has `recognise(weights, hints) -> Found | None`: None where the keys are another's.
# hints: by network ("network", "autoencoder", "text_encoder"), fields of its config that shapes do not show.
Hints = Mapping[str, Mapping[str, Any]]
