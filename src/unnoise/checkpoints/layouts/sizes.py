"""What shapes cannot show of a file, known from the published model that has its sizes; and where in a file a network stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from unnoise.checkpoints.store.weights import Weights
from unnoise.families.spec import ModelSpec
from unnoise.families.table import FAMILIES
from unnoise.networks.unet import UNetConfig


def rows(family: str) -> list[ModelSpec]:
    """The published models of a family."""
    return [row for row in FAMILIES.values() if row.family == family]


def heads(row: ModelSpec) -> dict[str, int]:
    """How the row's U-Net divides its attention."""
    unet = row.network if isinstance(row.network, UNetConfig) else UNetConfig()
    return {"heads": unet.heads, "head_width": unet.head_width}


def same_sizes(unet: UNetConfig, candidates: Iterable[ModelSpec]) -> ModelSpec | None:
    """The row whose U-Net differs in nothing that shapes show."""
    return next((row for row in candidates if isinstance(row.network, UNetConfig) and _shown(row.network) == _shown(unet)), None)


def _shown(unet: UNetConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(unet).items() if name not in ("heads", "head_width")}


def divided(unet: UNetConfig, row: ModelSpec, hints: Mapping[str, Any]) -> UNetConfig:
    """The U-Net with the row's heads, or those that `hints` say."""
    asked = {name: hints[name] for name in ("heads", "head_width") if name in hints}
    return replace(unet, **(asked or heads(row)))


def within(weights: Weights, key: str, prefixes: Iterable[str] = ("", "module.", "model.", "ema.")) -> Weights | None:
    """What stands behind the first prefix under which there is such a key; training leaves those of its wrappers."""
    return next((weights.prefixed(prefix) for prefix in prefixes if prefix + key in weights), None)
