"""A cheap look at latents while they are made: three numbers a channel, or a tiny autoencoder.

    RGB = latents · factors + bias, in -1..1, at the latents' own size

The factors of a latent space are the least squares of its autoencoder's pictures, averaged over each latent's pixels (`fit`). The figures
here are the published ones: Keturn's idea (Hugging Face forum, topic 23204), the values those of ComfyUI's latent_formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unnoise.errors import ArgumentError, NonFiniteError
from unnoise.runtime.placement import Placement


@dataclass(frozen=True)
class Factors:
    """Red, green and blue in -1..1 for each channel of latents as the diffusion model sees them, and where all are 0."""

    channels: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __call__(self, latents: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, 3, h, w), not clamped."""
        if latents.shape[1] != len(self.channels):
            raise ArgumentError(
                f"got latents of {latents.shape[1]} channels, expected {len(self.channels)}: these factors are another space's"
            )
        weight, bias = torch.tensor(self.channels), torch.tensor(self.bias)
        return torch.einsum("bchw,cr->brhw", latents.float().cpu(), weight) + bias[:, None, None]


SD = Factors(((0.3512, 0.2297, 0.3227), (0.3250, 0.4974, 0.2350), (-0.2829, 0.1762, 0.2721), (-0.2120, -0.2616, -0.7177)))
SDXL = Factors(
    ((0.3651, 0.4232, 0.4341), (-0.2533, -0.0042, 0.1068), (0.1076, 0.1111, -0.0362), (-0.3165, -0.2492, -0.2188)),
    (0.1084, -0.0175, -0.0011),
)
SD3 = Factors(
    (
        (-0.0922, -0.0175, 0.0749), (0.0311, 0.0633, 0.0954), (0.1994, 0.0927, 0.0458), (0.0856, 0.0339, 0.0902),
        (0.0587, 0.0272, -0.0496), (-0.0006, 0.1104, 0.0309), (0.0978, 0.0306, 0.0427), (-0.0042, 0.1038, 0.1358),
        (-0.0194, 0.0020, 0.0669), (-0.0488, 0.0130, -0.0268), (0.0922, 0.0988, 0.0951), (-0.0278, 0.0524, -0.0542),
        (0.0332, 0.0456, 0.0895), (-0.0069, -0.0030, -0.0810), (-0.0596, -0.0465, -0.0293), (-0.1448, -0.1463, -0.1189),
    ),
    (0.2394, 0.2135, 0.1925),
)  # fmt: skip

# By how a family's name begins; DiT was trained on Stable Diffusion's latents.
SPACES: dict[str, Factors] = {"sd1": SD, "sd2": SD, "dit": SD, "sdxl": SDXL, "sd3": SD3}


def factors(family: str) -> Factors | None:
    """Those of a family of `families.table`; None where nobody has published any."""
    return next((SPACES[name] for name in SPACES if family.startswith(name)), None)


def preview(latents: Tensor, by: str | Factors) -> list[Image.Image]:
    """Make b pictures of h times w pixels of latents (b, c, h, w) as the diffusion model sees them.

    by: a family's name, or factors. A family without factors gives the latents' strongest direction in grey: shapes, no colours. Raises
    NonFiniteError for latents that hold NaN, which would look black.
    """
    known = factors(by) if isinstance(by, str) else by
    return _pictures(known(_finite(latents)) if known else strongest(_finite(latents)))


def decoded(latents: Tensor, network: nn.Module, placement: Placement) -> list[Image.Image]:
    """Make whole pictures of latents (b, c, h, w) by a tiny autoencoder. Raises NonFiniteError for latents that hold NaN."""
    with torch.inference_mode():
        return _pictures(network(_finite(latents).to(placement.device, placement.dtype), "decode"))


def _finite(latents: Tensor) -> Tensor:
    if not latents.isfinite().all():
        raise NonFiniteError("the latents of the preview hold NaN or infinity")
    return latents


def strongest(latents: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, 3, h, w) in -1..1: each image's first principal component, three times."""
    rows = latents.float().cpu().flatten(2).transpose(1, 2)  # (b, h*w, c)
    rows = rows - rows.mean(dim=1, keepdim=True)
    direction = torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors[:, :, -1:]  # (b, c, 1)
    direction = torch.where(direction.sum(dim=1, keepdim=True) < 0, -direction, direction)  # its sign is arbitrary: always this one
    along = rows @ direction
    along = along / along.abs().amax(dim=1, keepdim=True).clamp(min=1e-8)
    return along.transpose(1, 2).unflatten(2, latents.shape[2:]).expand(-1, 3, -1, -1)


def fit(latents: Tensor | Sequence[Tensor], pictures: Tensor | Sequence[Tensor]) -> Factors:
    """The factors of a latent space by least squares, from pairs: latents (c, h, w) and their pictures (3, H, W) in -1..1.

    One row of equations a latent: its channels and 1 against the mean colour of its pixels. A few dozen photographs do.
    """
    if len(latents) != len(pictures) or not len(latents):
        raise ArgumentError(f"got {len(latents)} latents and {len(pictures)} pictures, expected pairs, one at least")
    rows, colours = [], []
    for z, picture in zip(latents, pictures, strict=True):
        rows.append(F.pad(z.double().flatten(1).T, (0, 1), value=1.0))
        colours.append(F.adaptive_avg_pool2d(picture.double(), (z.shape[1], z.shape[2])).flatten(1).T)
    solved = torch.linalg.lstsq(torch.cat(rows), torch.cat(colours)).solution.tolist()
    *channels, bias = (tuple(row) for row in solved)
    return Factors(tuple(channels), bias)


def _pictures(rgb: Tensor) -> list[Image.Image]:
    """(b, 3, h, w) in -1..1 -> pictures."""
    values = ((rgb.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(row) for row in values]
