"""Where the networks of a model run and in which number format: said once, when they are loaded, and asked here ever after.

A network may be compiled, wrapped, or held elsewhere and moved in block by block. Its parameters then say neither where it runs nor in what
it computes, and its class does not say what it is. `Placement` says the first two, a network's config the third.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from unnoise.errors import ArgumentError, UnknownName

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """The device that a model's tensors stand on when its networks are called, and the number format that they are called in."""

    device: torch.device
    dtype: torch.dtype

    @staticmethod
    def named(device_name: str = "auto", dtype_name: str = "auto") -> Placement:
        """Read both names as people type them; see `device` and `dtype` below. Raises ArgumentError or UnknownName."""
        where = device(device_name)
        return Placement(where, dtype(dtype_name, where))


def device(name: str) -> torch.device:
    """auto: the first GPU if there is one, else the CPU. Raises ArgumentError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise UnknownName("device", name, ("auto", "cpu", "cuda", "mps")) from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(found.type, False):
        raise ArgumentError(f"got device {name!r}, which this machine does not have: use 'cpu' or 'auto'")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(f"got device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
    return found


def dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: float32 on a CPU, float16 elsewhere. Raises UnknownName."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise UnknownName("dtype", name, ("auto", *DTYPES))
    return DTYPES[name]


CPU = Placement(torch.device("cpu"), torch.float32)


class Networks(Mapping[str, nn.Module]):
    """The networks of one model by place ("network", "autoencoder", "text_encoder", ...), their configs, and their placement.

    It never changes, so threads may share it; `replaced` makes another one of the same networks but for some.
    Raises ArgumentError for a network without a config, or a config without a network.
    """

    def __init__(self, modules: Mapping[str, nn.Module] | nn.ModuleDict, configs: Mapping[str, object], placement: Placement = CPU):
        if unpaired := sorted({*modules} ^ {*configs}):
            raise ArgumentError(f"got {', '.join(unpaired)} without a network or without its config: expected both for every place")
        self._modules: dict[str, nn.Module] = dict(modules.items())
        self._configs = dict(configs)
        self.placement = placement

    def __repr__(self) -> str:
        kinds = ", ".join(f"{place}: {type(config).__name__}" for place, config in self._configs.items())
        return f"Networks({kinds}; {self.placement.dtype} on {self.placement.device})"

    def __getitem__(self, place: str) -> nn.Module:
        return self._modules[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every parameter as "place.name"."""
        for place, network in self._modules.items():
            for name, parameter in network.named_parameters():
                yield f"{place}.{name}", parameter

    def config(self, place: str) -> object:
        """The config that the network was built from. It says what the network is, whatever class holds it. Raises KeyError."""
        return self._configs[place]

    @contextmanager
    def on(self, place: str) -> Iterator[nn.Module]:
        """Yield the network where it runs: inside the block it can be called with tensors of the placement. Raises KeyError.

        Offloading moves the weights in here when the block begins, and out when it ends.
        """
        yield self._modules[place]

    def replaced(self, modules: Mapping[str, nn.Module], configs: Mapping[str, object] | None = None) -> Networks:
        """The same networks, shared, but for those in `modules`. A config stays unless `configs` has another for its place.

        Raises ArgumentError for a new place without a config.
        """
        return Networks({**self._modules, **modules}, {**self._configs, **(configs or {})}, self.placement)
