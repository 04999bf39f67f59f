"""Files of openai's consistency models: ADM's U-Net again, with joint matrices of four axes, in the order q, k, v whatever a flag said.

Nothing in a file tells a consistency function from its teacher, which is an EDM model: for a teacher give prediction='edm'.
"""

from __future__ import annotations

from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.keys import Layout
from unnoise.checkpoints.layouts import adm, numbered, sizes
from unnoise.checkpoints.store.weights import Weights
from unnoise.families.table import FAMILIES
from unnoise.networks.unet import UNetConfig

INSIDE = {
    **numbered.INSIDE,
    r"^\.to_([qkv])\.(\w+)$": r".qkv.\2#\g<1>2",
    r"^\.to_out\.(\w+)$": r".proj_out.\1#2",
}


def unet(config: UNetConfig) -> Layout:
    return Layout(numbered.names(config), INSIDE)


def recognise(weights: Weights, hints: Hints) -> Found | None:
    """None where there are no numbered blocks whose joint matrices have four axes."""
    own = sizes.within(weights, "input_blocks.0.0.weight")
    if own is None or "out.2.weight" not in own or len(own.shapes.get("middle_block.1.qkv.weight", ())) != 4:
        return None
    asked = hints.get("network", {})
    config = adm.unet_config(own.shapes, asked)
    row = sizes.same_sizes(config, sizes.rows("consistency"))
    row = row or FAMILIES["consistency-imagenet64" if config.num_classes else "consistency-lsun"]
    config = sizes.divided(config, row, asked)
    evidence = (
        "joint query, key, value matrices of four axes",
        "a consistency function, for nothing tells its teacher: give prediction='edm'",
    )
    return Found(row.with_networks({"network": config}), {"network": Part(config, unet(config), own)}, evidence)
