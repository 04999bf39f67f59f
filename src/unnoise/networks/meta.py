"""Networks without memory: names and shapes on the meta device, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Uninitialised(TorchFunctionMode):
    """nn.init's functions return their tensor as it is. On the meta device `normal_` would import torch's compiler: over a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def meta() -> Iterator[None]:
    """Modules made in here have parameters and buffers of the meta device that nobody fills."""
    with torch.device("meta"), _Uninitialised():
        yield
