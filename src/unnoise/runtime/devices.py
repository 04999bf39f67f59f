"""The former place of `unnoise.runtime.placement`'s two functions, for the modules that are still to be moved."""

from __future__ import annotations

from unnoise.runtime.placement import device, dtype

__all__ = ["device", "dtype"]
