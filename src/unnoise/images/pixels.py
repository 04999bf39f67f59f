"""Between tensors and pictures: (3, h, w) in -1..1 or 0..1, and bytes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """-1..1 to 0..1."""
    return ((x.float() + 1) / 2).clamp(0, 1)


def picture(row: Tensor) -> Image.Image:
    """(3, h, w) in 0..1."""
    return Image.fromarray((row.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8))


def tensor(picture: Image.Image) -> Tensor:
    """(3, h, w) in 0..1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)


def composed(painted: Image.Image, image: Tensor, mask: Tensor) -> Image.Image:
    """The painted picture where the mask is 1, the image's bytes elsewhere."""
    return Image.fromarray(np.where(mask[0, :, :, None].numpy() > 0, np.asarray(painted), np.asarray(picture(image))))
