"""Depth Anything (Yang et al. 2024, versions 1 and 2): how near each pixel is, by DINOv2's tower and the head of DPT.

Module names are those of the published `depth-anything/…-hf` folders. Nearness is relative: larger is nearer, without a unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.errors import ArgumentError
from unnoise.networks.attention import attention


@dataclass(frozen=True)
class DepthConfig:
    """Defaults: the small model (24,784,705 parameters)."""

    kind: ClassVar[str] = "depth"

    width: int = 384
    layers: int = 12
    heads: int = 6
    taps: tuple[int, ...] = (9, 10, 11, 12)  # layers that are read, counted from 1; version 2: 3, 6, 9, 12
    features: tuple[int, ...] = (48, 96, 192, 384)
    fused: int = 64
    inner: int = 32  # of the head
    patch: int = 14
    positions: int = 37  # patches a side of the table, 518 pixels

    def build(self) -> DepthAnything:
        return DepthAnything(self)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> DepthConfig:
        """The sizes of published weights. settings: the folder's config.json, which alone says which layers are read.

        Without settings they are version 2's; version 1's file, which has the same names, needs its config.json.
        Raises ArgumentError for other weights and for the metric models, whose last activation is another.
        """
        settings = settings or {}
        if settings.get("depth_estimation_type", "relative") != "relative":
            raise ArgumentError("got a metric Depth Anything, expected a relative one: ControlNet knows no metres")
        try:
            width = weights["backbone.embeddings.cls_token"].shape[2]
            table = weights["backbone.embeddings.position_embeddings"].shape[1] - 1
            features = tuple(weights[f"neck.reassemble_stage.layers.{i}.projection.weight"].shape[0] for i in range(4))
            fused, inner = weights["neck.convs.0.weight"].shape[0], weights["head.conv2.weight"].shape[0]
            patch = weights["backbone.embeddings.patch_embeddings.projection.weight"].shape[2]
        except KeyError as missing:
            raise ArgumentError(f"got weights without {missing}, expected those of a depth-anything/...-hf folder") from None
        layers = 1 + max(int(name.split(".")[3]) for name in weights if name.startswith("backbone.encoder.layer."))
        taps = settings.get("backbone_config", {}).get("out_indices") or TAPS.get(layers, range(layers - 3, layers + 1))
        return cls(width, layers, max(1, width // 64), tuple(taps), features, fused, inner, patch, round(table**0.5))


TAPS = {12: (3, 6, 9, 12), 24: (5, 12, 18, 24)}  # of version 2, by the number of layers


class Embeddings(nn.Module):
    def __init__(self, config: DepthConfig):
        super().__init__()
        self.positions = config.positions
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.position_embeddings = nn.Parameter(torch.randn(1, config.positions**2 + 1, config.width) * 0.02)
        self.patch_embeddings = Projection(nn.Conv2d(3, config.width, config.patch, stride=config.patch))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embeddings.projection(x)  # (b, width, rows, cols)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return tokens + self._table(*patches.shape[2:])

    def _table(self, rows: int, cols: int) -> Tensor:
        """The learned grid at another size: DINOv2 resizes it by a bicubic filter, in float32."""
        first, grid = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        if (rows, cols) == (self.positions, self.positions):
            return self.position_embeddings
        square = grid.unflatten(1, (self.positions, self.positions)).permute(0, 3, 1, 2)
        resized = F.interpolate(square.float(), size=(rows, cols), mode="bicubic", align_corners=False).to(grid.dtype)
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], dim=1)


class Projection(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.projection = layer


class SelfAttention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))


class Output(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention = SelfAttention(width)
        self.output = Output(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.attention
        return self.output.dense(attention(inner.query(x), inner.key(x), inner.value(x), self.heads))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))


class Layer(nn.Module):
    def __init__(self, config: DepthConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attention = Attention(config.width, config.heads)
        self.layer_scale1 = Scale(config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLP(config.width)
        self.layer_scale2 = Scale(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1.lambda1 * self.attention(self.norm1(x))
        return x + self.layer_scale2.lambda1 * self.mlp(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: DepthConfig):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))


class Backbone(nn.Module):
    def __init__(self, config: DepthConfig):
        super().__init__()
        self.taps = config.taps
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, taken = self.embeddings(x), []
        for number, layer in enumerate(self.encoder.layer, start=1):
            x = layer(x)
            if number in self.taps:
                taken.append(self.layernorm(x)[:, 1:])
        return taken


class Reassemble(nn.Module):
    """Tokens to a picture of features at 4, 2, 1 or half the grid."""

    def __init__(self, width: int, c_out: int, level: int):
        super().__init__()
        self.projection = nn.Conv2d(width, c_out, 1)
        larger = [nn.ConvTranspose2d(c_out, c_out, side, stride=side) for side in (4, 2)]
        self.resize = [*larger, nn.Identity(), nn.Conv2d(c_out, c_out, 3, stride=2, padding=1)][level]

    def forward(self, tokens: Tensor, rows: int, cols: int) -> Tensor:
        return self.resize(self.projection(tokens.transpose(1, 2).unflatten(2, (rows, cols))))


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.convolution1, self.convolution2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution2(F.relu(self.convolution1(F.relu(x))))


class Fuse(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.projection = nn.Conv2d(width, width, 1)
        self.residual_layer1, self.residual_layer2 = Residual(width), Residual(width)

    def forward(self, deep: Tensor | None, here: Tensor, size: Sequence[int]) -> Tensor:
        x = here if deep is None else deep + self.residual_layer1(here)
        return self.projection(F.interpolate(self.residual_layer2(x), size=tuple(size), mode="bilinear", align_corners=True))


class Stack(nn.Module):
    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Neck(nn.Module):
    def __init__(self, config: DepthConfig):
        super().__init__()
        self.reassemble_stage = Stack([Reassemble(config.width, c, i) for i, c in enumerate(config.features)])
        self.convs = nn.ModuleList(nn.Conv2d(c, config.fused, 3, padding=1, bias=False) for c in config.features)
        self.fusion_stage = Stack([Fuse(config.fused) for _ in config.features])

    def forward(self, taken: Sequence[Tensor], rows: int, cols: int) -> Tensor:
        maps = [layer(tokens, rows, cols) for layer, tokens in zip(self.reassemble_stage.layers, taken, strict=True)]
        maps = [conv(x) for conv, x in zip(self.convs, maps, strict=True)][::-1]  # the smallest first
        sizes = [*(x.shape[2:] for x in maps[1:]), (2 * maps[-1].shape[2], 2 * maps[-1].shape[3])]
        deep: Any = None
        for fuse, here, size in zip(self.fusion_stage.layers, maps, sizes, strict=True):
            deep = fuse(deep, here, size)
        return deep


class Head(nn.Module):
    def __init__(self, config: DepthConfig):
        super().__init__()
        self.conv1 = nn.Conv2d(config.fused, config.fused // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(config.fused // 2, config.inner, 3, padding=1)
        self.conv3 = nn.Conv2d(config.inner, 1, 1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        x = F.interpolate(self.conv1(x), size=tuple(size), mode="bilinear", align_corners=True)
        return F.relu(self.conv3(F.relu(self.conv2(x))))


class DepthAnything(nn.Module):
    """A picture (b, 3, h, w), normalised by ImageNet's mean and deviation, sides multiples of 14 -> nearness (b, 1, h, w), not negative."""

    def __init__(self, config: DepthConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.neck = Neck(config)
        self.head = Head(config)

    def forward(self, x: Tensor) -> Tensor:
        patch = self.config.patch
        if x.shape[2] % patch or x.shape[3] % patch:
            raise ArgumentError(f"got a picture of {x.shape[3]}x{x.shape[2]}, expected multiples of {patch}: resize or crop it")
        rows, cols = x.shape[2] // patch, x.shape[3] // patch
        return self.head(self.neck(self.backbone(x), rows, cols), x.shape[2:])
