"""The pipelines of diffusers around a transformer with text, a row each: how its folder is read and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from unnoise.checkpoints.folder import configs
from unnoise.checkpoints.folder.table import Table
from unnoise.checkpoints.keys import Layout
from unnoise.checkpoints.layouts import diffusers, sd3


class Transformer(NamedTuple):
    """kind: the network's. family: the name of a row of FAMILIES, by the network's config."""

    kind: str
    pipeline: str
    table: Table[Any]
    layout: Callable[[Any], Layout]
    family: Callable[[Any], str]


TRANSFORMERS = (Transformer("mmdit", "StableDiffusion3Pipeline", configs.MMDIT, diffusers.mmdit, sd3.family),)
