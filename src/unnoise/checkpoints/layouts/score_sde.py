"""Files of score_sde (Song et al. 2021): one list of modules, in the order in which they are made, behind `module.` (DataParallel).

    all_modules.0.W         random frequencies, in NCSN++
    all_modules.k           linear, convolution, norm: weight and bias
    all_modules.k.Conv_0    a residual block; with NIN_0 .. NIN_3 and no Conv_0, attention; Conv2d_0, the input's pyramid
    sigmas                  noise levels, which are constants

The training checkpoint keeps its average as a list without names; `unnoise convert` puts it under the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from unnoise.checkpoints.found import Found, Hints, Part
from unnoise.checkpoints.keys import Layout, Shape
from unnoise.checkpoints.layouts import sizes
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.families.table import FAMILIES
from unnoise.networks.ncsnpp import NCSNppConfig

INSIDE = {
    r"^\.block\.": ".",
    r"^\.group_norm\.": ".GroupNorm_0.",
    r"^\.to_q\.": ".NIN_0.",
    r"^\.to_k\.": ".NIN_1.",
    r"^\.to_v\.": ".NIN_2.",
    r"^\.to_out\.": ".NIN_3.",
    r"^\.norm1\.": ".GroupNorm_0.",
    r"^\.norm2\.": ".GroupNorm_1.",
    r"^\.conv1\.": ".Conv_0.",
    r"^\.conv2\.": ".Conv_1.",
    r"^\.conv_shortcut\.": ".Conv_2.",
    r"^\.time_emb_proj\.": ".Dense_0.",
    r"^\.conv\.": ".Conv2d_0.",
    r"^\.frequencies$": ".W",
}
DDPM = {r"^\.Conv_2\.": ".NIN_0.", r"^\.Conv2d_0\.": ".Conv_0."}  # shortcuts are NIN layers, and convolutions change the size
NIN = {r"^(\.NIN_\d)\.weight$": r"\1.W#T", r"^(\.NIN_\d)\.bias$": r"\1.b"}  # a matrix times the channels, from the other side


def ncsnpp(config: NCSNppConfig) -> Layout:
    names = {name: f"all_modules.{k}" for k, name in enumerate(_order(config))}
    return Layout(names, {**INSIDE, **(DDPM if config.resample == "conv" else {}), **NIN}, ignored=r"^sigmas$")


def _order(config: NCSNppConfig) -> list[str]:
    ours, levels = ["fourier"] if config.fourier else [], len(config.widths)
    ours += ["time_embedding.linear_1", "time_embedding.linear_2", "conv_in"]
    for i in range(levels):
        for j in range(config.blocks):
            ours += [f"down_blocks.{i}.resnets.{j}"] + [f"down_blocks.{i}.attentions.{j}"] * config.attend[i]
        if i + 1 < levels:
            ours += [f"down_blocks.{i}.downsample"] + [f"down_blocks.{i}.pyramid"] * config.pyramid
    ours += ["mid_block.resnets.0", "mid_block.attention", "mid_block.resnets.1"]
    for i in range(levels):
        ours += [f"up_blocks.{i}.resnets.{j}" for j in range(config.blocks + 1)]
        ours += [f"up_blocks.{i}.attention"] * config.attend[levels - 1 - i] + [f"up_blocks.{i}.upsample"] * (i + 1 < levels)
    return [*ours, "conv_norm_out", "conv_out"]


def _modules(shapes: Mapping[str, Shape]) -> list[dict[str, Shape]]:
    """The list, each module's own keys with their shapes."""
    found: dict[int, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        if match := re.match(r"all_modules\.(\d+)\.(.+)$", key):
            found.setdefault(int(match[1]), {})[match[2]] = shape
    return [found[k] for k in sorted(found)]


def _resizes(module: Mapping[str, Shape]) -> bool:
    """A convolution alone, or a residual block that projects its skip although the width stays."""
    if "Conv_1.weight" not in module:
        return "Conv_0.weight" in module
    out, c_in = module["Conv_0.weight"][:2]
    return "Conv_2.weight" in module and out == c_in


def _levels(modules: list[dict[str, Shape]]) -> Iterator[tuple[int, bool, int]]:
    """(width, whether it attends, residual blocks) of each level on the way down."""
    count = 1 + sum(map(_resizes, modules)) // 2
    plain = [m for m in modules if "Conv_1.weight" in m and not _resizes(m)]
    blocks = (len(plain) - 2 - count) // (2 * count)  # blocks a level down, one more up, two in the middle
    rest = iter(modules)
    for _ in range(count):
        width, attends, seen = 0, False, 0
        for module in rest:
            if _resizes(module) or (seen == blocks and "NIN_3.W" not in module):
                break
            if "Conv_1.weight" in module:
                width, seen = module["Conv_0.weight"][0], seen + 1
            attends |= "NIN_3.W" in module
        yield width, attends, blocks


def ncsnpp_config(shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> NCSNppConfig:
    """Sizes from shapes. The filter is code, not weights: with random frequencies (NCSN++) it blurs, without it does not."""
    modules = _modules(shapes)
    fourier = set(modules[0]) == {"W"}
    entry = modules[3 if fourier else 2]
    levels = list(_levels(modules))
    plain = not any("Conv_1.weight" in m and _resizes(m) for m in modules) and any("NIN_0.W" in m and "Conv_1.weight" in m for m in modules)
    read = {
        "in_channels": entry["weight"][1],
        "out_channels": modules[-1]["weight"][0],
        "stem": entry["weight"][0],
        "widths": tuple(width for width, _, _ in levels),
        "blocks": levels[0][2],
        "attend": tuple(attends for _, attends, _ in levels),
        "fourier": fourier,
        "blur": fourier,
        "pyramid": any("Conv2d_0.weight" in m for m in modules),
    }
    ddpm = {"resample": "conv", "rescale": False, "group_width": 1} if plain else {}
    return NCSNppConfig(**{**read, **ddpm, **hints})


def recognise(weights: Weights, hints: Hints) -> Found | None:
    """None where there is no list of modules that ends in a norm and a convolution."""
    own = sizes.within(weights, "all_modules.0.weight") or sizes.within(weights, "all_modules.0.W")
    if own is None:
        return None
    try:
        config = ncsnpp_config(own.shapes, hints.get("network", {}))
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise FileError(f"{weights.path} is a model of score_sde, but none of DDPM, DDPM++ and NCSN++ with blocks of BigGAN") from error
    kind = "ncsnpp" if config.fourier else "ddpm" if config.resample == "conv" else "ddpmpp"
    row = FAMILIES[f"score-sde-{kind}-cifar"]
    processes = {"ncsnpp": "random frequencies: variance exploding", "ddpmpp": "sinusoids: the VP SDE", "ddpm": "DDPM's blocks: its table"}
    part = Part(config, ncsnpp(config), own)
    return Found(row.with_networks({"network": config}), {"network": part}, (f"score_sde, {processes[kind]}",))
