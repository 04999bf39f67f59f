"""Pictures that a caller gives, as tensors: the image to start from, the mask, what a ControlNet is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from unnoise.errors import ArgumentError, FileError

Picture = Any  # a PIL image, a path, an array (h, w, 3) of 0..255 or 0..1, a tensor (3, h, w) in 0..1; several as a list or with b in front
MAX_SCALE = 100.0


@dataclass(frozen=True)
class Control:
    """A ControlNet in a request, and what it is shown.

    net: what `unnoise.load_control` gives. scale 0 is exactly off; it acts in the steps from `start` to `end`, shares of all.
    guess: only the prompted half sees the hint, and more so in the middle of the network. Raises ArgumentError for other numbers.
    """

    net: Any
    image: Picture
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("scale", -MAX_SCALE, MAX_SCALE), ("start", 0.0, 1.0), ("end", 0.0, 1.0)):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:  # NaN fails too
                raise ArgumentError(f"got {name} {value!r} of a Control: expected a number from {low:g} to {high:g}")
            object.__setattr__(self, name, float(value))
        if self.start > self.end:
            raise ArgumentError(f"got start {self.start:g} and end {self.end:g} of a Control: expected start <= end, shares of the steps")
        if not isinstance(self.guess, bool):
            raise ArgumentError(f"got guess {self.guess!r} of a Control: expected True or False")

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
    values = _values(picture, name)
    if values.dtype != np.uint8:
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ArgumentError(f"got {name} with values outside 0..1: expected 0..1, or 0..255 as unsigned bytes")
        values = (values * 255).round().astype(np.uint8)
    return Image.fromarray(values)


def _values(picture: Picture, name: str) -> np.ndarray:
    """(h, w) or (h, w, 3 or 4) of numbers, at least one."""
    if isinstance(picture, Tensor):
        tensor = picture.detach().cpu().float()
        tensor = tensor[0] if tensor.ndim == 4 and len(tensor) == 1 else tensor
        picture = (tensor.movedim(-3, -1) if tensor.ndim > 2 else tensor).numpy()
    if not isinstance(picture, np.ndarray) or picture.dtype.kind not in "buif":
        raise ArgumentError(
            f"got {name} of type {type(picture).__name__}: expected a PIL image, a path, an array (h, w, 3) or a tensor (3, h, w)"
        )
    values = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
    if values.size == 0 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (3, 4)):
        raise ArgumentError(f"got {name} of shape {picture.shape}, channels last: expected (h, w) or (h, w, c) with 1, 3 or 4 channels")
    return values


def digest(given: Any) -> str:
    """Ten hexadecimal digits of the sha256 of a picture's, or several pictures', or a tensor's values."""
    found = hashlib.sha256()
    for one in [given] if isinstance(given, Tensor) else _rows(given):
        raw = one.detach().cpu().numpy() if isinstance(one, Tensor) else np.asarray(pil(one, "image"))
        found.update(np.ascontiguousarray(raw).tobytes())
    return found.hexdigest()[:10]


def several(given: Any, pictures: int, name: str) -> list[Any]:
    """One for every picture of the request."""
    rows = _rows(given)
    if len(rows) not in (1, pictures):
        raise ArgumentError(f"got {len(rows)} of {name} for {pictures} pictures: expected one, or one each")
    return rows * (pictures // len(rows))


def _rows(given: Any) -> list[Any]:
    many = isinstance(given, list | tuple) or (isinstance(given, Tensor | np.ndarray) and given.ndim == 4)
    return list(given) if many else [given]


def stack(given: Any, pictures: int, height: int, width: int, name: str = "image") -> Tensor:
    """(b, 3, height, width) in 0..1."""
    return torch.cat([pixels(one, height, width, name) for one in several(given, pictures, name)])


def masks(given: Any, pictures: int, height: int, width: int) -> Tensor:
    """(b, 1, height, width)"""
    return torch.cat([mask(one, height, width) for one in several(given, pictures, "mask_image")])


def are_latents(given: Any, channels: int) -> bool:
    """A tensor with the state's channels that is no picture: it is taken as latents, as the refiner takes the base's."""
    return isinstance(given, Tensor) and given.ndim == 4 and given.shape[1] == channels and channels != 3


def controls(given: Control | Sequence[Control] | None, network: nn.Module, name: str) -> tuple[Control, ...]:
    """Those of a request to the network, `name` of which is its family's. Raises ArgumentError for a net that cannot steer it."""
    found: tuple[Any, ...] = () if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)
    for one in found:
        if not isinstance(one, Control):
            raise ArgumentError(f"got control {one!r}: expected unnoise.Control(net, image), or a list of them")
        if not hasattr(one.net, "network"):
            raise ArgumentError(f"got {one.net!r} as the net of a control: expected what unnoise.load_control(FILE) gives")
        one.net.check(network, name)
        own, wanted = (next(module.parameters()) for module in (one.net.network, network))
        if (own.dtype, own.device) != (wanted.dtype, wanted.device):
            raise ArgumentError(
                f"got a ControlNet in {own.dtype} on {own.device} for a model in {wanted.dtype} on {wanted.device}: "
                "load it with unnoise.load_control(FILE, model=MODEL)"
            )
    return found
