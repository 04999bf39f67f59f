"""Pictures that a caller gives, as tensors: the image to start from, the mask, what a ControlNet is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from unnoise.errors import ArgumentError, FileError

Picture = Any  # a PIL image, a path, an array (h, w, 3) of 0..255 or 0..1, a tensor (b, 3, h, w) or (3, h, w) in 0..1


@dataclass(frozen=True)
class Control:
    """A ControlNet in a request, and what it is shown.

    net: what `unnoise.load_control` gives. scale 0 is exactly off; it acts in the steps from `start` to `end`, shares of all.
    guess: only the prompted half sees the hint, and more so in the middle of the network.
    """

    net: Any
    image: Picture
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False

    def record(self) -> dict[str, Any]:
        """What a picture's record says of it."""
        settings = {name: getattr(self, name) for name in ("scale", "start", "end", "guess")}
        return {"net": getattr(self.net, "family", ""), "image": digest(self.image), **settings}


def pixels(picture: Picture, height: int, width: int, name: str = "image") -> Tensor:
    """(1, 3, height, width) in 0..1, resized where it has another size. Raises ArgumentError or FileError."""
    image = pil(picture, name).convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


def mask(picture: Picture, height: int, width: int) -> Tensor:
    """(1, 1, height, width): 1 is painted anew, 0 stays."""
    image = pil(picture, "mask_image").convert("L")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.NEAREST)
    return torch.from_numpy((np.asarray(image) >= 128).astype(np.float32))[None, None]


def pil(picture: Picture, name: str) -> Image.Image:
    """Raises ArgumentError for what is no picture, FileError for a file that cannot be read."""
    if isinstance(picture, Image.Image):
        return ImageOps.exif_transpose(picture)
    if isinstance(picture, str | Path):
        try:
            with Image.open(picture) as file:
                return ImageOps.exif_transpose(file).copy()
        except OSError as error:
            raise FileError(f"cannot read the {name} {str(picture)!r}: {error.strerror or error}") from None
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().float().squeeze(0)
        picture = picture.permute(1, 2, 0).squeeze(-1).numpy() if picture.ndim == 3 else picture.numpy()
    if not isinstance(picture, np.ndarray) or picture.ndim not in (2, 3):
        raise ArgumentError(
            f"got {name} of type {type(picture).__name__}: expected a PIL image, a path, an array (h, w, 3) or a tensor (3, h, w)"
        )
    if picture.dtype != np.uint8:
        if not np.isfinite(picture).all() or picture.min() < 0 or picture.max() > 1:
            raise ArgumentError(f"got {name} with values outside 0..1: expected 0..1, or 0..255 as unsigned bytes")
        picture = (picture * 255).round().astype(np.uint8)
    return Image.fromarray(picture)


def digest(given: Any) -> str:
    """Ten hexadecimal digits of the sha256 of a picture's, or several pictures', or a tensor's values."""
    found = hashlib.sha256()
    for one in given if isinstance(given, list | tuple) else [given]:
        raw = one.detach().cpu().numpy() if isinstance(one, Tensor) else np.asarray(pil(one, "image"))
        found.update(np.ascontiguousarray(raw).tobytes())
    return found.hexdigest()[:10]


def several(given: Any, pictures: int, name: str) -> list[Any]:
    """One for every picture of the request."""
    rows = list(given) if isinstance(given, list | tuple) else list(given) if isinstance(given, Tensor) and given.ndim == 4 else [given]
    if len(rows) not in (1, pictures):
        raise ArgumentError(f"got {len(rows)} of {name} for {pictures} pictures: expected one, or one each")
    return rows * (pictures // len(rows))


def stack(given: Any, pictures: int, height: int, width: int, name: str = "image") -> Tensor:
    """(b, 3, height, width) in 0..1."""
    return torch.cat([pixels(one, height, width, name) for one in several(given, pictures, name)])


def masks(given: Any, pictures: int, height: int, width: int) -> Tensor:
    """(b, 1, height, width)"""
    return torch.cat([mask(one, height, width) for one in several(given, pictures, "mask_image")])


def are_latents(given: Any, channels: int) -> bool:
    """A tensor with the state's channels that is no picture: it is taken as latents, as the refiner takes the base's."""
    return isinstance(given, Tensor) and given.ndim == 4 and given.shape[1] == channels and channels != 3


def controls(given: Control | Sequence[Control] | None) -> list[Control]:
    found = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    for one in found:
        if not isinstance(one, Control):
            raise ArgumentError(f"got control {one!r}: expected unnoise.Control(net, image), or a list of them")
        if not hasattr(one.net, "network"):
            raise ArgumentError(f"got {one.net!r} as the net of a control: expected what unnoise.load_control(FILE) gives")
    return found
