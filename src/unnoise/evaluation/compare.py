"""The published models side by side: parameters, multiply-adds, depth, tokens, memory, counted on networks that are built without memory.

Multiply-adds are those of one forward of one picture as the authors' networks do it, matrix products and convolutions alone; the papers
print them as "Gflops". Nothing here is typed in but what stands under the papers' names.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from unnoise.conditioning import Cond
from unnoise.errors import UnknownName
from unnoise.evaluation import plots
from unnoise.families.papers import FAMILIES, PUBLISHED, Config, Published, published
from unnoise.networks import bert, dit, mmdit, t5, text
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.bert import BertConfig
from unnoise.networks.blocks import AttentionBlock, TransformerBlock
from unnoise.networks.classifier import ClassifierConfig
from unnoise.networks.controlnet import ControlNetConfig
from unnoise.networks.dit import DiTConfig
from unnoise.networks.kinds import TextConfig
from unnoise.networks.labels import ClassTokensConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.ncsnpp import NCSNppConfig
from unnoise.networks.t5 import T5Config
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig
from unnoise.networks.vq import VQConfig

BACKBONES: dict[type, str] = {
    UNetConfig: "U-Net",
    NCSNppConfig: "U-Net",
    DiTConfig: "transformer",
    MMDiTConfig: "transformer",
    ControlNetConfig: "half a U-Net",
    ClassifierConfig: "half a U-Net",
    AutoencoderConfig: "autoencoder",
    VQConfig: "autoencoder",
    CLIPTextConfig: "transformer",
    T5Config: "transformer",
    BertConfig: "transformer",
    ClassTokensConfig: "table",
}
PARTS = AutoencoderConfig | VQConfig | TextConfig | ClassifierConfig  # networks that denoise nothing
DTYPES = {"float32": 4, "float16": 2}  # bytes of a number; bfloat16 is as small as float16


@dataclass(frozen=True)
class Row:
    """One model. Parameters, multiply-adds, depth and tokens are of its network; memory is of all its parts."""

    name: str
    title: str
    family: str
    year: int
    backbone: str
    conditions: str
    parameters: int
    giga_macs: float  # an autoencoder's: of decoding
    depth: int  # transformer blocks, or attention blocks where there are none
    tokens: int  # of the picture, where most of them attend to each other
    text_tokens: int
    resolution: int | None  # side in pixels
    latent: tuple[int, int, int] | None  # (c, h, w)
    all_parameters: int
    float32: int  # bytes
    float16: int
    paper_parameters: str
    paper_giga_macs: float | None
    paper_fid: str
    source: str
    contribution: str


class MultiplyAdds(TorchDispatchMode):
    """Counts the multiply-adds of what runs within it, on the meta device: `count`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func._overloadpacket
        if operation in SHAPES:
            out = SHAPES[operation](*args)
        else:
            out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(operation):
            self.count += formula(*args, **(kwargs or {}), out_val=out) / 2
        return out


def _like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def _addmm(_: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


_ATEN = torch.ops.aten
SHAPES: dict[Any, Callable[..., Any]] = {  # operations whose own inference of shapes, in Python, would be half of all the time
    _ATEN.addmm: _addmm,
    _ATEN.native_layer_norm: _norm,
    _ATEN.native_group_norm: _norm,
    _ATEN._safe_softmax: _like,
    _ATEN._softmax: _like,
    _ATEN.gelu: _like,
    _ATEN.silu: _like,
}


@dataclass(frozen=True)
class Count:
    parameters: int
    macs: float
    depth: int
    tokens: int


@functools.lru_cache
def count(config: Config, side: int, text_tokens: int = 0) -> Count:
    """Of one forward on x of side x side, beside so many text tokens; an autoencoder decodes a picture of that
    side, and a ControlNet sees one."""
    with torch.device("meta"), torch.no_grad():
        network = config.build()
        blocks = _blocks(network)
        seen: list[int] = [0]
        for block in blocks:
            block.register_forward_pre_hook(lambda block, inputs: seen.append(_tokens(block, inputs)))
        counter = MultiplyAdds()
        with counter:
            _forward(network, config, side, text_tokens)
    return Count(_parameters(network), counter.count, len(blocks), max(seen))


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _blocks(network: nn.Module) -> list[nn.Module]:
    kinds = [(TransformerBlock, dit.Block, mmdit.JointBlock, text.Layer, t5.Block, bert.Layer), (AttentionBlock,)]
    found = [[module for module in network.modules() if isinstance(module, kind)] for kind in kinds]
    return found[0] or found[1]


def _tokens(block: nn.Module, inputs: Sequence[Any]) -> int:
    """Of what a block is called with: tokens (b, n, c), or a picture (b, c, h, w); a joint block has text first."""
    x = inputs[isinstance(block, mmdit.JointBlock)]
    return math.prod(x.shape[2:]) if x.ndim == 4 else x.shape[1]


def _forward(network: Any, config: Config, side: int, text_tokens: int) -> None:
    if isinstance(config, TextConfig):
        network(torch.zeros(1, text_tokens, dtype=torch.long))
    elif isinstance(config, AutoencoderConfig | VQConfig):
        cells = side // config.factor
        network.decode(torch.zeros(1, config.latent_channels, cells, cells))
    elif isinstance(config, ControlNetConfig):
        cells = side // 2 ** (len(config.hint_widths) - 1)
        x, hint = torch.zeros(1, config.unet.in_channels, cells, cells), torch.zeros(1, config.hint_channels, side, side)
        network(x, torch.zeros(1), _condition(config.unet, text_tokens), hint)
    elif isinstance(config, ClassifierConfig):
        network(torch.zeros(1, config.in_channels, side, side), torch.zeros(1))
    else:
        network(torch.zeros(1, config.in_channels, side, side), torch.zeros(1), _condition(config, text_tokens))


def _condition(config: Config, text_tokens: int) -> Cond:
    tokens, pooled = (getattr(config, name, 0) for name in ("context_width", "pooled_width"))
    return Cond(
        tokens=torch.zeros(1, text_tokens, tokens) if tokens else None,
        pooled=torch.zeros(1, pooled) if pooled else None,
        labels=torch.zeros(1, dtype=torch.long) if getattr(config, "num_classes", 0) else None,
    )


@functools.lru_cache
def _size(part: Config) -> int:
    with torch.device("meta"):
        return _parameters(part.build())


def table(names: Iterable[str] | None = None) -> list[Row]:
    """A row for each name, in that order; None: for all of them. Raises UnknownName."""
    return [_row(name, published(name)) for name in (PUBLISHED if names is None else names)]


def _row(name: str, model: Published) -> Row:
    family, paper = FAMILIES[model.family], model.paper
    counted = count(model.network, model.latent[1] if model.latent else model.side, model.tokens)
    parts = [part for part in (model.autoencoder, *model.texts) if part is not None]
    whole = counted.parameters + sum(_size(part) for part in parts)
    return Row(
        name=name,
        title=model.title,
        family=family.title,
        year=model.year,
        backbone=BACKBONES[type(model.network)],
        conditions=model.conditions or ("" if isinstance(model.network, PARTS) else "none"),
        parameters=counted.parameters,
        giga_macs=counted.macs / 1e9,
        depth=counted.depth,
        tokens=counted.tokens,
        text_tokens=model.tokens,
        resolution=model.side or None,
        latent=model.latent,
        all_parameters=whole,
        **{dtype: whole * size for dtype, size in DTYPES.items()},
        paper_parameters=paper.parameters,
        paper_giga_macs=paper.giga_macs,
        paper_fid=paper.fid,
        source=family.source,
        contribution=family.contribution,
    )


def _or_blank(show: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: show(value) if value else ""


_WHOLE = _or_blank(lambda value: f"{value:,}")
_GIGA = _or_blank(lambda value: f"{value:,.2f}")
_PRINTED = _or_blank(lambda value: f"{value:,g}")
_BYTES = _or_blank(lambda value: f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB")
_SHAPE = _or_blank(lambda value: "x".join(map(str, value)))

COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {  # of `Row`: the heading, and a value for people
    "name": ("name", str),
    "title": ("model", str),
    "family": ("family", str),
    "year": ("year", str),
    "contribution": ("contribution", str),
    "backbone": ("backbone", str),
    "conditions": ("conditions", str),
    "parameters": ("parameters", _WHOLE),
    "giga_macs": ("GMACs", _GIGA),
    "depth": ("depth", _WHOLE),
    "tokens": ("tokens", _WHOLE),
    "text_tokens": ("text tokens", _WHOLE),
    "resolution": ("resolution", _or_blank(str)),
    "latent": ("latent", _SHAPE),
    "all_parameters": ("all parameters", _WHOLE),
    "float32": ("float32", _BYTES),
    "float16": ("float16", _BYTES),
    "paper_parameters": ("paper's parameters", str),
    "paper_giga_macs": ("paper's GMACs", _PRINTED),
    "paper_fid": ("paper's FID", str),
    "source": ("source", str),
}
USUAL = ("name", "year", "backbone", "parameters", "giga_macs", "depth", "tokens", "resolution", "latent", "float32", "float16")


def check(columns: Sequence[str]) -> None:
    """Raise UnknownName for a column that no row has."""
    for column in columns:
        if column not in COLUMNS:
            raise UnknownName("column", column, COLUMNS)


def of_family(family: str) -> list[str]:
    """The names of a family's models; raises UnknownName."""
    if family not in FAMILIES:
        raise UnknownName("family", family, FAMILIES)
    return [name for name, model in PUBLISHED.items() if model.family == family]


def cells(rows: Sequence[Row], columns: Sequence[str] = USUAL) -> list[list[str]]:
    """The headings, then a line a model."""
    check(columns)
    return [[COLUMNS[c][0] for c in columns], *([COLUMNS[c][1](getattr(row, c)) for c in columns] for row in rows)]


def as_json(rows: Sequence[Row], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Numbers as they are; None: every column."""
    check(columns or ())
    return [{key: value for key, value in asdict(row).items() if columns is None or key in columns} for row in rows]


def markdown(rows: Sequence[Row], columns: Sequence[str] = USUAL) -> str:
    heads, *lines = cells(rows, columns)
    rule = ["---:" if is_number(column) else "---" for column in columns]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, rule, *lines))


def is_number(column: str) -> bool:
    """Whether a column stands at the right."""
    return Row.__annotations__[column].split(" ")[0] in ("int", "float") and column != "year"


def picture(rows: Sequence[Row], path: Path, columns: Sequence[str] = USUAL) -> None:
    """The table as a PNG. Raises MissingExtra without matplotlib."""
    plots.require()
    from matplotlib.figure import Figure

    lines = cells(rows, columns)
    widths = [max(len(line[i]) for line in lines) + 3 for i in range(len(columns))]
    total = sum(widths)
    figure = Figure(figsize=(0.092 * total, 0.24 * (len(lines) + 0.6)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, total), ylim=(len(lines) + 0.3, -0.3))
    axes.axis("off")
    for y in range(0, len(lines), 2):
        axes.axhspan(y, y + 1, color="0.85" if y == 0 else "0.95", linewidth=0)
    for i, column in enumerate(columns):
        left = sum(widths[:i])
        x, side = (left + widths[i] - 1.5, "right") if is_number(column) else (left + 1.5, "left")
        for y, line in enumerate(lines):
            axes.text(x, y + 0.5, line[i], ha=side, va="center", fontsize=9, weight="bold" if y == 0 else "normal")
    figure.savefig(path, dpi=110)
