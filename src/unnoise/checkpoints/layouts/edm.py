"""Files of EDM (Karras et al. 2022): its SongUNet (DDPM++ and NCSN++) and its DhariwalUNet (ADM), behind `model.`

    enc.32x32_block0        a residual block and its attention, one module; a level is named by its side
    enc.16x16_down          the change of size belongs to the level that it leads to
    map_layer0, map_label   the embedding
    *.resample_filter       constants; u the noise levels of EDM's form of improved DDPM

The rows of a joint matrix are ordered head, channel, (q, k, v). The published files are pickles, so weights come here by conversion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.keys import Layout, Shape
from unnoise.checkpoints.layouts import sizes
from unnoise.checkpoints.store.weights import Weights
from unnoise.families.spec import ModelSpec
from unnoise.families.table import family
from unnoise.networks.ncsnpp import NCSNppConfig
from unnoise.networks.unet import UNetConfig

IGNORED = r"resample_filter$|^u$"
INSIDE = {
    r"^\.block\.": ".",
    r"^\.to_([qkv])\.(\w+)$": r".qkv.\2#\g<1>2",
    r"^\.to_out\.(\w+)$": r".proj.\1#2",
    r"^\.norm1\.": ".norm0.",
    r"^\.norm2\.(\w+)$": r".norm1.\1",
    r"^\.group_norm\.": ".norm2.",
    r"^\.conv1\.": ".conv0.",
    r"^\.conv2\.": ".conv1.",
    r"^\.time_emb_proj\.": ".affine.",
    r"^\.conv_shortcut\.": ".skip.",
    r"^\.frequencies$": ".freqs",
}


def song(config: NCSNppConfig, side: int) -> Layout:
    """The keys behind `model.` of a network for pictures of this side."""
    names = _levels(len(config.widths), config.blocks, side)
    names |= {"class_embedding": "map_label", "augment_embedding": "map_augment", "fourier": "map_noise"}
    names |= {"conv_norm_out": f"dec.{side}x{side}_aux_norm", "conv_out": f"dec.{side}x{side}_aux_conv"}
    for i in range(len(config.widths) - 1):
        names[f"down_blocks.{i}.pyramid.conv"] = f"enc.{side >> i + 1}x{side >> i + 1}_aux_residual"
    return Layout(names, INSIDE, "head d qkv", lambda width: 1, IGNORED)


def dhariwal(config: UNetConfig, side: int) -> Layout:
    names = _levels(len(config.widths), config.blocks, side)
    names |= {"class_embedding.weight": "map_label.weight#T", "conv_norm_out": "out_norm", "conv_out": "out_conv"}
    return Layout(names, INSIDE, "head d qkv", lambda width: width // 64, IGNORED)


def _levels(levels: int, blocks: int, side: int) -> dict[str, str]:
    def at(half: str, i: int) -> str:
        return f"{half}.{side >> i}x{side >> i}_"

    names = {"time_embedding.linear_1": "map_layer0", "time_embedding.linear_2": "map_layer1", "conv_in": f"{at('enc', 0)}conv"}
    first, second = (f"{at('dec', levels - 1)}in{j}" for j in range(2))
    names |= {"mid_block.resnets.0": first, "mid_block.resnets.1": second, "mid_block.attention": first, "mid_block.attentions.0": first}
    for i in range(levels):
        ours = levels - 1 - i
        for part in ("resnets", "attentions"):
            names |= {f"down_blocks.{i}.{part}.{j}": f"{at('enc', i)}block{j}" for j in range(blocks)}
            names |= {f"up_blocks.{ours}.{part}.{j}": f"{at('dec', i)}block{j}" for j in range(blocks + 1)}
        names[f"up_blocks.{ours}.attention"] = f"{at('dec', i)}block{blocks}"
        names |= {f"down_blocks.{i}.downsample": f"{at('enc', i + 1)}down"}
        names |= {f"up_blocks.{ours}.upsample": f"{at('dec', i - 1)}up"} if i else {}
    return names


def sides(shapes: Mapping[str, Shape]) -> list[int]:
    """Of the pictures at each level, the largest first."""
    return sorted({int(match[1]) for key in shapes if (match := re.match(r"enc\.(\d+)x\1_block0\.", key))}, reverse=True)


def _common(shapes: Mapping[str, Shape]) -> tuple[dict[str, Any], list[bool]]:
    """Fields that both networks have, and which levels attend."""
    levels = [f"enc.{side}x{side}_" for side in sides(shapes)]
    common = {
        "in_channels": shapes[f"{levels[0]}conv.weight"][1],
        "widths": tuple(shapes[f"{level}block0.conv1.weight"][0] for level in levels),
        "blocks": sum(bool(re.match(rf"{levels[0]}block\d+\.conv1\.weight$", key)) for key in shapes),
        "num_classes": shapes["map_label.weight"][1] if "map_label.weight" in shapes else 0,
    }
    return common, [f"{level}block0.qkv.weight" in shapes for level in levels]


def song_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> NCSNppConfig:
    common, attend = _common(shapes)
    largest = sides(shapes)[0]
    filters = [shape for key, shape in shapes.items() if key.endswith("resample_filter")]
    pyramid = any(key.endswith("_aux_residual.weight") for key in shapes)
    read = {
        **common,
        "out_channels": shapes[f"dec.{largest}x{largest}_aux_conv.weight"][0],
        "stem": shapes[f"enc.{largest}x{largest}_conv.weight"][0],
        "attend": tuple(attend),
        "fourier": "map_noise.freqs" in shapes,
        "blur": any(shape[-1] == 4 for shape in filters) if filters else pyramid,
        "pyramid": pyramid,
        "augment_width": shapes["map_augment.weight"][1] if "map_augment.weight" in shapes else 0,
    }
    return NCSNppConfig(**{**read, **hints})


def dhariwal_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> UNetConfig:
    common, attend = _common(shapes)
    channels, out = common["in_channels"], shapes["out_conv.weight"][0]
    waves, widths = shapes["map_layer0.weight"][1], common["widths"]
    read = {
        **common,
        "out_channels": out // 2 if out == 2 * channels else out,
        "learn_sigma": out == 2 * channels,
        "depths": tuple(map(int, attend)),
        "head_width": 64,
        "context_width": 0,
        "scale_shift": True,
        "resample": "residual",
        "waves": waves if waves != widths[0] else 0,
        "group_width": 4 if min(widths) < 4 * 32 else 1,  # four channels a group at least; it matters where they are few
    }
    return UNetConfig(**{**read, **hints})


def recognise(weights: Weights, hints: Hints) -> Found | None:
    """None where there is no `map_layer0`, bare or behind `model.`

    hints["file"]["family"]: "edm-baseline-vp" or "edm-baseline-ve" for the networks of score_sde; their keys are those of EDM's own.
    """
    own = sizes.within(weights, "map_layer0.weight", ("model.", "", "ema.model."))
    if own is None or not sides(own.shapes):
        return None
    asked, side = hints.get("network", {}), sides(own.shapes)[0]
    if "out_conv.weight" in own:
        config = dhariwal_config(own.shapes, asked)
        part = Part(config, dhariwal(config, side), own)
    else:
        config = song_config(own.shapes, asked)
        part = Part(config, song(config, side), own)
    row = _row(config, side, any(key == "u" or key.endswith(".u") for key in weights), hints.get("file", {}).get("family"))
    return Found(row, {"network": part}, tuple(_evidence(row, config)))


def _row(config: NCSNppConfig | UNetConfig, side: int, rounded: bool, asked: str | None) -> ModelSpec:
    """rounded: the file has the table of noise levels of EDM's form of improved DDPM."""
    like = [row for row in sizes.rows("edm") if "baseline" not in row.name and row.network.kind == config.kind]
    exact = next((row for row in like if row.network == config and row.size == side), like[0])
    row = family(asked or ("edm-baseline-iddpm" if rounded else exact.name))
    labels = {"conditioning": "labels" if config.num_classes else "none", "null_label": config.num_classes or None}
    return row.with_networks({"network": config}).model_copy(update={"size": side, **labels})


def _evidence(row: ModelSpec, config: NCSNppConfig | UNetConfig) -> list[str]:
    network = "ADM" if isinstance(config, UNetConfig) else "NCSN++" if config.fourier else "DDPM++"
    evidence = [f"EDM's {network} for {row.size}x{row.size}"]
    if row.prediction == "edm":
        evidence.append(
            "EDM's preconditioning, for nothing tells VP's and VE's: give config={'file': {'family': 'edm-baseline-vp'}} or '...-ve'"
        )
    return evidence
