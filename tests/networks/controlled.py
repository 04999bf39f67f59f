"""A network with the ControlNets of its hints as one callable, and a condition that leaves blocks out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.runtime import control


@dataclass(frozen=True)
class Controlled:
    """(x, t, Cond) -> the network's output, as `NetworkDenoiser` joins network and ControlNets."""

    network: nn.Module
    steady: bool = False

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        added = self.residuals(x, t, cond)
        return self.network(x, t, replace(cond, hints=None), **({"residuals": added} if added else {}))

    def residuals(self, x: Tensor, t: Tensor, cond: Cond) -> list[Tensor | None]:
        now = replace(cond, hints=tuple(hint.at(t) for hint in cond.hints or ()))
        return control.residuals(self.network, x, t, now, steady=self.steady)


def skipping(cond: Cond, layers: Iterable[int], depth: int) -> Cond:
    """The condition whose rows all leave out these blocks of `depth`."""
    skip = torch.zeros(len(cond), depth, dtype=torch.bool)
    skip[:, list(layers)] = True
    return replace(cond, skip=skip)
