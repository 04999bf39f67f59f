"""M-LSD (Gu et al. 2022): straight lines of a picture, by a MobileNetV2 and a few fusing blocks.

    features at strides 4, 8, 16 (and 2 and 16 again, in the large one), fused from the deepest up
    -> for every second pixel: how surely a line has its centre here, and where its two ends are

Parameters are called as in the authors' PyTorch files. Read in the released files' code: a strided convolution is padded at the right and
bottom only, as TensorFlow does; the activation of the backbone is cut at 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPAQUE = 1 / 127.5 - 1  # the fourth input channel: a 1 that went through the colours' normalisation


@dataclass(frozen=True)
class Fusion:
    """One step up: the widths of the shallow and the deep features, before and after their 1x1 convolutions."""

    shallow: int
    deep: int
    to_shallow: int = 64
    to_deep: int = 64
    double: bool = True  # the deep ones are half as large


@dataclass(frozen=True)
class MLSDConfig:
    """Defaults: mlsd_tiny_512_fp32."""

    kind: ClassVar[str] = "mlsd"

    stages: tuple[tuple[int, int, int, int], ...] = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
    """Expansion, channels, blocks and stride, as in MobileNetV2's table 2."""
    taps: tuple[int, ...] = (3, 6, 10)  # blocks whose features are fused
    fusions: tuple[Fusion, ...] = (Fusion(32, 64), Fusion(24, 64, 32, 32))  # the deepest first
    first: int = 12  # the number of the first fusing block
    double: bool = True  # the result is made twice as large

    def build(self) -> MLSD:
        return MLSD(self)


MLSD_TINY = MLSDConfig()
MLSD_LARGE = MLSDConfig(  # mlsd_large_512_fp32
    stages=(*MLSD_TINY.stages, (6, 96, 3, 1)),
    taps=(1, 3, 6, 10, 13),
    fusions=(Fusion(64, 96, double=False), Fusion(32, 64), Fusion(24, 64), Fusion(16, 64)),
    first=15,
    double=False,
)


class ConvNorm(nn.Sequential):
    """Convolution, batch norm, and an activation cut at 6."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, *, stride: int = 1, groups: int = 1):
        padding = (kernel - 1) // 2 if stride == 1 else 0
        super().__init__(nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(c_out), nn.ReLU6())
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride == 2 else x)


class InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int):
        super().__init__()
        inner = c_in * expansion
        wider = [ConvNorm(c_in, inner, 1)] if expansion > 1 else []
        narrow = [nn.Conv2d(inner, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]
        self.conv = nn.Sequential(*wider, ConvNorm(inner, inner, stride=stride, groups=inner), *narrow)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class Backbone(nn.Module):
    def __init__(self, config: MLSDConfig):
        super().__init__()
        self.taps = config.taps
        self.features = nn.Sequential(ConvNorm(4, 32, stride=2), *_blocks(config, 32))

    def forward(self, x: Tensor) -> list[Tensor]:
        taken = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                taken.append(x)
        return taken


def _blocks(config: MLSDConfig, width: int) -> Iterator[InvertedResidual]:
    for expansion, channels, blocks, stride in config.stages:
        for i in range(blocks):
            yield InvertedResidual(width, channels, 1 if i else stride, expansion)
            width = channels


def _conv(c_in: int, c_out: int, kernel: int, *, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())


class Fuse(nn.Module):
    def __init__(self, sizes: Fusion):
        super().__init__()
        self.conv1 = _conv(sizes.deep, sizes.to_deep, 1)
        self.conv2 = _conv(sizes.shallow, sizes.to_shallow, 1)
        self.doubles = sizes.double

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        deep = self.conv1(deep)
        return torch.cat([self.conv2(shallow), doubled(deep) if self.doubles else deep], dim=1)


class Mix(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv1 = _conv(c_in, c_in, 3)
        self.conv2 = _conv(c_in, c_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(x + self.conv1(x))


class Head(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv1 = _conv(c_in, c_in, 3, dilation=5)
        self.conv2 = _conv(c_in, c_in, 3)
        self.conv3 = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class MLSD(nn.Module):
    """A picture (b, 3, h, w) in [-1, 1], sides multiples of 16 -> (b, 9, h/2, w/2).

    Channel 0: the logit of a line's centre; 1 to 4: x and y from there to its start, x and y to its end, in pixels of the result.
    """

    def __init__(self, config: MLSDConfig = MLSD_TINY):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        for i, sizes in enumerate(config.fusions):  # block12, block13 ... as the files call them
            self.add_module(f"block{config.first + 2 * i}", Fuse(sizes))
            self.add_module(f"block{config.first + 2 * i + 1}", Mix(sizes.to_shallow + sizes.to_deep, 64))
        self.add_module(f"block{config.first + 2 * len(config.fusions)}", Head(64, 16))

    def forward(self, x: Tensor) -> Tensor:
        *shallow, h = self.backbone(torch.cat([x, x.new_full((len(x), 1, *x.shape[2:]), OPAQUE)], dim=1))
        blocks = [module for name, module in self.named_children() if name != "backbone"]
        for fuse, mix, features in zip(blocks[:-1:2], blocks[1::2], reversed(shallow), strict=True):
            h = mix(fuse(features, h))
        h = blocks[-1](h)[:, 7:]  # the first seven channels are the other half of a loss
        return doubled(h) if self.config.double else h


def segments(found: Tensor, *, score: float = 0.1, length: float = 20.0, most: int = 200) -> Tensor:
    """(9, h/2, w/2), one picture of MLSD's -> (n, 4): x and y of a start, x and y of its end, in pixels of the picture (h, w).

    A line counts where its centre is the surest of 3x3, surer than `score`, and its ends lie over `length` pixels of the result apart.
    """
    heat = found[0].sigmoid()
    heat = heat * (heat == F.max_pool2d(heat[None], 3, stride=1, padding=1)[0])
    scores, places = heat.flatten().topk(min(most, heat.numel()))
    ends = found[1:5].flatten(1)[:, places].T  # (n, 4)
    width = found.shape[2]
    centres = torch.stack([places % width, places // width] * 2, dim=1)
    kept = (scores > score) & ((ends[:, :2] - ends[:, 2:]).norm(dim=1) > length)
    return 2 * (centres + ends)[kept]
