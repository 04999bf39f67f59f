"""The classifier of noisy pictures that guides ADM (Dhariwal & Nichol 2021, section 4): the U-Net's way down, and one vector of it all.

    emb     = mlp(sinusoids(t))
    down:     [residual block, attention] x blocks; then half the size
    middle:   residual block, attention, residual block
    logits  = pool(silu(norm(h)))

The pool is CLIP's: the mean of all pixels attends to them and itself; or the mean alone, and a linear layer ("adaptive").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.networks.attention import attention
from unnoise.networks.blocks import to_tokens
from unnoise.networks.unet import Encoder, UNetConfig


@dataclass(frozen=True)
class ClassifierConfig:
    """Defaults: ADM's classifier of ImageNet at 256x256 (54,096,360 parameters)."""

    kind: ClassVar[str] = "classifier"

    side: int = 256  # of the pictures: attention pooling has a position for every pixel of the smallest level
    classes: int = 1000
    in_channels: int = 3
    widths: tuple[int, ...] = (128, 128, 256, 256, 512, 512)  # channels of each level, the largest picture first
    depths: tuple[int, ...] = (0, 0, 0, 1, 1, 1)  # 1: attention behind each residual block
    blocks: int = 2
    heads: int = 4  # in every attention, unless
    head_width: int = 64  # channels a head is set
    waves: int = 0  # how many sinusoids of t; 0: widths[0]
    scale_shift: bool = True
    resample: Literal["conv", "residual"] = "residual"
    pool: Literal["attention", "adaptive"] = "attention"

    def build(self) -> Classifier:
        return Classifier(self)

    @property
    def unet(self) -> UNetConfig:
        """The U-Net whose way down this is."""
        return UNetConfig(
            in_channels=self.in_channels,
            widths=self.widths,
            blocks=self.blocks,
            depths=self.depths,
            heads=self.heads,
            head_width=self.head_width,
            context_width=0,
            waves=self.waves,
            scale_shift=self.scale_shift,
            resample=self.resample,
        )

    @property
    def cells(self) -> int:
        """Pixels of the smallest level."""
        return (self.side // 2 ** (len(self.widths) - 1)) ** 2


class AttentionPool(nn.Module):
    """(b, c, h, w) -> (b, classes): what the mean of all pixels reads when it attends to itself and to them (Radford et al. 2021)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        width = config.widths[-1]
        self.heads = width // config.head_width if config.head_width else config.heads
        self.positions = nn.Parameter(torch.randn(width, config.cells + 1) / width**0.5)  # the mean's, then the pixels'
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, config.classes)

    def forward(self, h: Tensor) -> Tensor:
        h = to_tokens(h)
        h = torch.cat([h.mean(1, keepdim=True), h], dim=1) + self.positions.T
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        return self.projection(attention(q, k, v, self.heads)[:, 0])


class MeanPool(nn.Module):
    """(b, c, h, w) -> (b, classes)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.projection = nn.Linear(config.widths[-1], config.classes)

    def forward(self, h: Tensor) -> Tensor:
        return self.projection(h.mean((2, 3)))


class Classifier(Encoder):
    """x (b, 3, side, side), timestep (b,) -> logits (b, classes). Raises ArgumentError for other sizes."""

    def __init__(self, config: ClassifierConfig):
        super().__init__(config.unet)
        self.side = config.side
        self.conv_norm_out = config.unet.style.norm(config.widths[-1])
        self.pool = AttentionPool(config) if config.pool == "attention" else MeanPool(config)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if x.shape[2:] != (self.side, self.side):
            raise ArgumentError(f"got x of {x.shape[2]}x{x.shape[3]}, expected {self.side}x{self.side}: this classifier knows one size")
        _, h = self.descend(self.enter(x), self.embed(x, t, Cond()), None)
        return self.pool(F.silu(self.conv_norm_out(h)))


def slope(classifier: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The gradient of log p(label | x_t) in x_t, (b, c, h, w). `classifier` is (x, t) -> logits."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = classifier(x, t)
        likely = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1).gather(1, labels[:, None])
        return torch.autograd.grad(likely.sum(), x)[0]
