"""What a request names beside words and numbers: pictures as tensors, ControlNets, and a second model or a classifier by their files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from unnoise.errors import ArgumentError, FileError, UnknownName
from unnoise.images import hints
from unnoise.pipeline.classifiers import ClassifierModel
from unnoise.pipeline.request import Request
from unnoise.runtime.placement import Networks

# A PIL image, a path, bytes of a picture file, an array (h, w, 3) of 0..255 or 0..1, a tensor (3, h, w) in 0..1, or from JSON
# {"path": ...}, {"base64": ...} or {"sha256": ...}; several as a list, or with b in front.
Picture = Any
MAX_SCALE = 100.0


@dataclass(frozen=True)
class Control:
    """A ControlNet in a request, and what it is shown.

    net: what `unnoise.load_control` gives, or a file for it. scale 0 is exactly off; it acts in the steps from `start` to `end`, shares of
    all. guess: only the prompted half sees the hint, and more so in the middle of the network. hint: a preprocessor that makes the hint of
    the image, with its options. Raises ArgumentError for other numbers.
    """

    net: Any
    image: Picture
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False
    hint: str | None = None
    hint_options: Mapping[str, Any] | None = None

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

    def shown(self) -> Picture:
        """Return the hint: the image itself, or what the preprocessor makes of it. Raises UnknownName or MissingExtra."""
        if self.hint is None:
            return self.image
        options = dict(self.hint_options or {})
        return hints.hint(self.hint, pil(self.image, "control image"), options.pop("model", None), **options)


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
    if isinstance(picture, Mapping):
        picture = from_json(picture, name)
    if isinstance(picture, bytes | bytearray):
        picture = io.BytesIO(picture)
    if isinstance(picture, str | Path | io.BytesIO):
        shown = repr(str(picture)) if isinstance(picture, str | Path) else "from its bytes"
        try:
            with Image.open(picture) as file:
                return ImageOps.exif_transpose(file).copy()
        except OSError as error:
            raise FileError(f"cannot read the {name} {shown}: {error.strerror or error}") from None
    values = _values(picture, name)
    if values.dtype != np.uint8:
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ArgumentError(f"got {name} with values outside 0..1: expected 0..1, or 0..255 as unsigned bytes")
        values = (values * 255).round().astype(np.uint8)
    return Image.fromarray(values)


def from_json(value: Mapping[str, Any], name: str) -> Path | bytes:
    """Return the path or the bytes that a picture's JSON names. Raises ArgumentError, also where only the hash is there."""
    if isinstance(path := value.get("path"), str):
        return Path(path)
    if isinstance(text := value.get("base64"), str):
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ArgumentError(f"got {name} with base64 that cannot be decoded: expected the bytes of a picture file") from None
    if isinstance(sha := value.get("sha256"), str):
        raise ArgumentError(f"the {name} with sha256 {sha} was no file: give it again")
    raise ArgumentError(f"got {name} {dict(value)!r}: expected a path, or an object with path or base64")


def to_json(picture: Picture) -> Any:
    """Return what a record says of a picture: its path as it was given and ten digits of its hash, or the hash alone; several as a list."""
    if isinstance(picture, list | tuple):
        return [to_json(one) for one in picture]
    path = picture.get("path") if isinstance(picture, Mapping) else picture
    named = {"path": str(path)} if isinstance(path, str | Path) else {}
    return {**named, "sha256": digest(picture)}


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


@dataclass(frozen=True)
class Inputs:
    """The pictures and networks of a request for one model."""

    latents: Tensor | None = None  # unit noise instead of the seeds' own
    image: Tensor | None = None  # (b, 3, h, w) in 0..1
    x0: Tensor | None = None  # (b, c, h', w') latents instead of an image, or the state that another model left
    mask: Tensor | None = None  # (b, 1, h, w): 1 is painted
    controls: tuple[Control, ...] = ()


class Files(Protocol):
    """Opens what a request names by its file; `loading.py` has the one that `load` gives to its models."""

    def model(self, path: Any) -> Any: ...

    def control(self, path: Any) -> Any: ...

    def classifier(self, path: Any) -> ClassifierModel: ...


def opened(request: Request, files: Files | None) -> Request:
    """Return the request with objects in place of the files of networks. Raises FileError, ArgumentError."""
    changes: dict[str, Any] = {}
    if _is_path(request.refiner):
        changes["refiner"] = _files(files, "refiner").model(request.refiner)
    if _is_path(request.classifier):
        changes["classifier"] = _files(files, "classifier").classifier(request.classifier)
    if request.control is not None:
        changes["control"] = tuple(_opened_control(one, files) for one in _several(request.control))
    return request.changed(**changes) if changes else request


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path)


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _files(files: Files | None, name: str) -> Files:
    if files is None:
        raise ArgumentError(f"got a path as {name} for a model that no file was loaded for: give the object that unnoise loads")
    return files


def _opened_control(given: Any, files: Files | None) -> Control:
    """A Control with its net open, also from JSON."""
    if isinstance(given, Mapping):
        given = control_from_json(given)
    if not isinstance(given, Control):
        raise ArgumentError(f"got control {given!r}: expected unnoise.Control(net, image), or a list of them")
    if not _is_path(given.net):
        return given
    return replace(given, net=_files(files, "net of a control").control(given.net))


def control_from_json(value: Mapping[str, Any]) -> Control:
    """Read a control of a line of JSONL or of a record. Raises UnknownName or ArgumentError."""
    known = tuple(Control.__dataclass_fields__)
    for name in value:
        if name not in known:
            raise UnknownName("field of a control", name, known)
    if "net" not in value or "image" not in value:
        raise ArgumentError(f"got control {dict(value)!r}: expected unnoise.Control(net, image), or an object with a net and an image")
    fields = {name: value[name] for name in known if name in value}
    return Control(**fields)


def control_to_json(control: Control) -> dict[str, Any]:
    """Return what a record says of a control; a net that came from no file is named by its family."""
    net = control.net if _is_path(control.net) else getattr(control.net, "path", None) or getattr(control.net, "family", "")
    plain = {"scale": control.scale, "start": control.start, "end": control.end, "guess": control.guess}
    options = {"hint": control.hint, "hint_options": dict(control.hint_options or {}) or None}
    return {"net": str(net), "image": to_json(control.image), **plain, **{key: value for key, value in options.items() if value}}


def check_controls(controls: Sequence[Control], networks: Networks, name: str) -> None:
    """Raise ArgumentError for a net that cannot steer the model's network. name: the model's family, for the message."""
    for one in controls:
        if not hasattr(one.net, "network"):
            raise ArgumentError(f"got {one.net!r} as the net of a control: expected what unnoise.load_control(FILE) gives")
        one.net.check(networks.config("network"), name)
        if one.net.placement is not None and one.net.placement != networks.placement:
            own, place = one.net.placement, networks.placement
            raise ArgumentError(
                f"got a ControlNet in {own.dtype} on {own.device} for a model in {place.dtype} on {place.device}: "
                "load it with unnoise.load_control(FILE, model=MODEL)"
            )
