"""Gives what shapes do not show, from the published model of the same sizes; and finds where in a file a network stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from unnoise.checkpoints.store.weights import Weights
from unnoise.families.spec import ModelSpec
from unnoise.families.table import FAMILIES
from unnoise.networks.unet import UNetConfig


def rows(family: str) -> list[ModelSpec]:
    """Lists the published models of a family."""
    return [row for row in FAMILIES.values() if row.family == family]


def heads(row: ModelSpec) -> dict[str, int]:
    """Gives the number or the width of the heads in a row's U-Net."""
    unet = row.network if isinstance(row.network, UNetConfig) else UNetConfig()
    return {"heads": unet.heads, "head_width": unet.head_width}


def same_sizes(unet: UNetConfig, candidates: Iterable[ModelSpec]) -> ModelSpec | None:
    """Finds the row whose U-Net is equal in all that shapes show."""
    return next((row for row in candidates if isinstance(row.network, UNetConfig) and _shown(row.network) == _shown(unet)), None)


def _shown(unet: UNetConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(unet).items() if name not in ("heads", "head_width")}


def divided(unet: UNetConfig, row: ModelSpec, hints: Mapping[str, Any]) -> UNetConfig:
    """Sets the row's heads, or those that `hints` say."""
    hinted = {name: hints[name] for name in ("heads", "head_width") if name in hints}
    return replace(unet, **(hinted or heads(row)))


def within(weights: Weights, key: str, prefixes: Iterable[str] = ("", "module.", "model.", "ema.")) -> Weights | None:
    """Gives the weights behind the first prefix under which there is such a key; training leaves the prefixes of its wrappers.

    None: no such key.
    """
    return next((weights.prefixed(prefix) for prefix in prefixes if prefix + key in weights), None)
