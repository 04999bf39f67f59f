"""The tables of configs: every family's config is itself after a round trip, diffusers and transformers open what is written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unnoise.checkpoints.folder import configs
from unnoise.checkpoints.folder.table import Group, Pair, Table
from unnoise.checkpoints.folder.write import BACKBONES
from unnoise.errors import FileError
from unnoise.families.spec import ModelSpec
from unnoise.families.table import FAMILIES

diffusers = pytest.importorskip("diffusers")

TABLES: dict[str, Table[Any]] = {
    "autoencoder": configs.AUTOENCODER,
    "vq": configs.VQ,
    "clip": configs.CLIP,
    "t5": configs.T5,
    **{kind: table for kind, (table, _) in BACKBONES.items()},
}
# Fields that no config of theirs holds: the widths of vectors that shapes show, and what differs between pipelines
UNSAID = {"clip": ("projection",)}


def table(row: ModelSpec, config: Any) -> Table[Any]:
    pixels = config.kind == "unet" and not config.context_width
    return configs.UNET_2D if pixels else TABLES[config.kind]


def said() -> list[Any]:
    """Every config of every family that diffusers or transformers has a class for."""
    found = {}
    for row in FAMILIES.values():
        for place, config in row.networks.items():
            if config.kind in TABLES and _has_class(row, config):
                found.setdefault((config.kind, config), pytest.param(table(row, config), config, id=f"{row.name}-{place}"))
    return list(found.values())


def _has_class(row: ModelSpec, config: Any) -> bool:
    """UNet2DModel of diffusers learns no variance and has heads of one width: improved DDPM, ADM and LDM's pixel U-Nets are not there."""
    if config.kind != "unet" or config.context_width:
        return True
    return row.family in ("ddpm", "consistency") and not config.learn_sigma


@pytest.mark.parametrize(("table", "config"), said())
def test_a_config_is_itself_after_the_round_trip(table: Table[Any], config: Any) -> None:
    written = json.loads(json.dumps(table.write(config)))
    hints = {name: getattr(config, name) for name in UNSAID.get(config.kind, ())}
    assert table.read(written, hints) == config


@pytest.mark.parametrize(("table", "config"), [one for one in said() if one.values[0].library == "diffusers"])
def test_diffusers_builds_the_same_network(table: Table[Any], config: Any) -> None:
    """No field is unknown to its class, and the network has as many parameters as ours."""
    torch = pytest.importorskip("torch")
    cls = getattr(diffusers, table.name)
    written = table.write(config)
    if written.get("addition_embed_type"):  # which `write.py` knows from the text encoder
        written["addition_time_embed_dim"] = 256
    assert not set(written) - set(cls._get_init_keys(cls)), "fields that the class does not have"
    with torch.device("meta"):
        theirs, ours = cls.from_config(written), config.build()
    count = {name: sum(p.numel() for p in network.parameters()) for name, network in (("ours", ours), ("theirs", theirs))}
    if config.kind == "dit":  # each block there has the two embedders
        copies = sum(p.numel() for name, p in theirs.named_parameters() if ".norm1.emb." in name and ".0.norm1" not in name)
        count["theirs"] -= copies
    assert count["ours"] == count["theirs"]


def test_every_name_stands_once() -> None:
    for one in (*TABLES.values(), configs.UNET_2D, configs.VISION):
        names = [row.theirs for row in one.rows if isinstance(row, Pair)]
        ours = [name for row in one.rows for name in ([row.ours] if isinstance(row, Pair) else row.ours)]
        assert len(set(names)) == len(names) and len(set(ours)) == len(ours), one.name


def test_what_ours_cannot_compute_is_refused() -> None:
    written = configs.UNET.write(FAMILIES["sd1"].network)
    with pytest.raises(FileError, match="this U-Net has act_fn 'gelu', which no family here has: expected 'silu'"):
        configs.UNET.read({**written, "act_fn": "gelu"})


def test_some_fields_alone() -> None:
    """Without the rest: a config of transformers may lack what its shapes show."""
    assert configs.CLIP.fields({"num_attention_heads": 12, "hidden_act": "gelu"}, "heads", "activation") == {
        "heads": 12,
        "activation": "gelu",
    }
    group = Group(("a", "b"), lambda theirs: {"a": theirs["x"], "b": 2}, lambda ours: {})
    assert Table("X", dict, (group, Pair("y", "c"))).fields({"x": 1}, "b") == {"b": 2}
