"""ControlNet of Zhang et al. (2023), figure 3: a copy of a U-Net's way down and middle, which reads a picture and adds to the original.

    h    = conv(x) + features(hint)
    down, middle as in the U-Net, with its text and times
    residual k = zero convolution(what the way down keeps k-th), and a last one of the middle

The U-Net adds each residual where it took its own copy from. Zero convolutions start at zero, so training starts from the plain U-Net.
Module names are those of diffusers; there are published nets for Stable Diffusion 1 and 2 (13 residuals) and SDXL (10).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.networks.unet import Encoder, UNetConfig, kept_widths, start_as_identity


@dataclass(frozen=True)
class ControlNetConfig:
    """Defaults: the nets of Stable Diffusion 1 (361,279,120 parameters)."""

    kind: ClassVar[str] = "controlnet"

    unet: UNetConfig = field(default_factory=UNetConfig)
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)  # each after the first at half the size of the one before
    channel_order: Literal["rgb", "bgr"] = "rgb"  # of the pictures it was trained on
    global_pool: bool = False  # residuals are averaged over the picture: the nets of "shuffle", which see a style and no places

    def build(self) -> ControlNet:
        return ControlNet(self)

    @property
    def residuals(self) -> int:
        """How many the net gives."""
        return len(kept_widths(self.unet)) + 1

    def hint_shape(self, x: Tensor) -> tuple[int, ...]:
        """(c, H, W) of the hint for x (b, c, h, w)."""
        times = 2 ** (len(self.hint_widths) - 1)
        return (self.hint_channels, *(times * side // self.unet.patch for side in x.shape[2:]))

    def places(self, network: object) -> list[int | None]:
        """Return which residual each place of the controlled network takes, by the network's config.

        Raises ArgumentError for a network that this net does not fit.
        """
        if not isinstance(network, UNetConfig):
            kind = getattr(network, "kind", type(network).__name__)
            raise ArgumentError(f"got a ControlNet of U-Nets for a network of kind {kind!r}: use one that was made for this family")
        for name in ("widths", "blocks", "context_width", "pooled_width", "patch"):
            one, other = getattr(self.unet, name), getattr(network, name)
            if one != other:
                raise ArgumentError(f"got a ControlNet of {name} {one} for a U-Net of {other}: use one that was made for this family")
        return list(range(self.residuals))


class HintBlock(nn.Module):
    """Hint (b, c, H, W) -> features (b, out, H/8, W/8): two convolutions a width, the second of which halves the picture."""

    def __init__(self, channels: int, widths: tuple[int, ...], out: int):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        steps = [nn.Conv2d(a, width, 3, stride, 1) for a, b in pairwise(widths) for width, stride in ((a, 1), (b, 2))]
        self.blocks = nn.ModuleList(steps)
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, hint: Tensor) -> Tensor:
        h = F.silu(self.conv_in(hint))
        for block in self.blocks:
            h = F.silu(block(h))
        return self.conv_out(h)


class ControlNet(Encoder):
    """x (b, c, h, w), timestep (b,), Cond, hint (b, 3, 8h, 8w) in 0..1 -> residuals, each (b, width, rows, cols), or (b, width, 1, 1)
    where they are averaged. Of the conditions it takes those of its U-Net, but for channels that join x."""

    def __init__(self, config: ControlNetConfig):
        unet = config.unet
        super().__init__(unet)
        self.control = config
        self.controlnet_cond_embedding = HintBlock(config.hint_channels, config.hint_widths, unet.widths[0])
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in kept_widths(unet))
        self.controlnet_mid_block = nn.Conv2d(unet.widths[-1], unet.widths[-1], 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        start_as_identity(self, self.controlnet_cond_embedding.conv_out, self.controlnet_down_blocks, self.controlnet_mid_block)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, hint: Tensor, network: nn.Module | None = None) -> list[Tensor]:
        """network: the one that is controlled, of which this kind borrows nothing. Raises ArgumentError for a hint of another size."""
        expected = self.control.hint_shape(x)
        if hint.shape[1:] != expected:
            raise ArgumentError(f"got a hint of {tuple(hint.shape[1:])}, expected {expected} for x of {x.shape[2]}x{x.shape[3]}")
        hint = hint.flip(1) if self.control.channel_order == "bgr" else hint
        h = self.enter(x) + self.controlnet_cond_embedding(hint.to(x))
        kept, middle = self.descend(h, self.embed(x, t, cond), self.text(cond))
        residuals = [zero(picture) for zero, picture in zip(self.controlnet_down_blocks, kept, strict=True)]
        residuals.append(self.controlnet_mid_block(middle))
        return [r.mean((2, 3), keepdim=True) for r in residuals] if self.control.global_pool else residuals
