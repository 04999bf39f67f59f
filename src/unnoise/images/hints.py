"""Hints for ControlNet: a picture to a picture of the same size. HINTS has every kind; `hint(kind, picture, ...)` makes one.

Kinds that need a network take `model`: the path of a file that the user has, as .safetensors, or the network itself (`annotators.load`),
which saves reading it for every picture. Networks see the picture with its shorter side at `resolution`, as in lllyasviel's annotators.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor

from unnoise.errors import ArgumentError, MissingExtra, UnknownName
from unnoise.images import pose as poses
from unnoise.images.annotators import Loaded, annotator
from unnoise.networks.mlsd import segments

Model = str | Path | Loaded | None
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of red, green, blue in 0..1


def canny(image: Image.Image, *, low_threshold: float = 100, high_threshold: float = 200) -> Image.Image:
    """White edges on black. Thresholds of the gradient, 0 to some 1500: over the high one an edge starts, over the low one it goes on."""
    try:
        import cv2
    except ImportError:
        raise MissingExtra("opencv-python-headless", "control") from None
    if not 0 <= low_threshold <= high_threshold:
        raise ArgumentError(f"got low_threshold {low_threshold} and high_threshold {high_threshold}, expected 0 <= low <= high")
    return Image.fromarray(cv2.Canny(np.asarray(image), low_threshold, high_threshold)).convert("RGB")


def blur(image: Image.Image, *, sigma: float = 9.0) -> Image.Image:
    """sigma: the Gaussian's deviation in pixels."""
    return image.filter(ImageFilter.GaussianBlur(_positive("sigma", sigma)))


def tile(image: Image.Image, *, factor: float = 1.0) -> Image.Image:
    """The picture with its details below `factor` pixels averaged away; 1 leaves it as it is."""
    if factor < 1:
        raise ArgumentError(f"got factor {factor}, expected 1 or more: how many pixels become one")
    small = image.resize([max(1, round(side / factor)) for side in image.size], Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def lineart(image: Image.Image, *, sigma: float = 6.0, threshold: float = 8.0) -> Image.Image:
    """White lines on black where the picture is darker than its surroundings of deviation `sigma` (at 512 pixels), in every channel.

    The median of what is over `threshold` (0..255) becomes a middle grey.
    """
    around = image.filter(ImageFilter.GaussianBlur(_positive("sigma", sigma) * min(image.size) / 512))
    darker = (np.asarray(around, dtype=np.float32) - np.asarray(image, dtype=np.float32)).min(axis=2).clip(0)
    over = darker[darker > threshold]
    typical = max(16.0, float(np.median(over)) if over.size else 0.0)
    return Image.fromarray((darker * 127 / typical).clip(0, 255).astype(np.uint8)).convert("RGB")


def gray(image: Image.Image) -> Image.Image:
    return ImageOps.grayscale(image).convert("RGB")


def invert(image: Image.Image) -> Image.Image:
    return ImageOps.invert(image)


def color(image: Image.Image, *, cells: int = 64) -> Image.Image:
    """Squares of `cells` pixels, each of its mean colour."""
    small = image.resize([max(1, round(side / _positive("cells", cells))) for side in image.size], Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def mlsd(image: Image.Image, model: Model = None, *, score: float = 0.1, length: float = 0.1, resolution: int = 512) -> Image.Image:
    """Straight lines by M-LSD, white on black: those surer than `score`, longer than `length` at half the resolution."""
    seen = _fitted(image, resolution, 64)
    (found,) = annotator("mlsd", model)(_tensor(seen) / 127.5 - 1).float().cpu()
    scale = torch.tensor([image.width / seen.width, image.height / seen.height] * 2)
    page = Image.new("RGB", image.size)
    draw = ImageDraw.Draw(page)
    for ends in (segments(found, score=score, length=length) * scale).tolist():
        draw.line(ends, fill=(255, 255, 255), width=max(1, round(min(image.size) / 512)))
    return page


def hed(image: Image.Image, model: Model = None, *, resolution: int = 512) -> Image.Image:
    """Soft edges, white on black."""
    edges = annotator("hed", model)(_tensor(_fitted(image, resolution, 64)))
    return _gray(edges * 255, image.size)


def depth(image: Image.Image, model: Model = None, *, resolution: int = 518) -> Image.Image:
    """Nearness by Depth Anything: the nearest white, the farthest black."""
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    near = annotator("depth", model)((_tensor(_fitted(image, resolution, 14)) / 255 - mean) / std).float()
    low, high = near.min(), near.max()
    return _gray((near - low) / (high - low).clamp(min=1e-8) * 255, image.size)


def pose(image: Image.Image, model: Model = None, *, resolution: int = 512) -> Image.Image:
    """The bodies of people as OpenPose draws them, on black; without hands and faces."""
    seen = _fitted(image, resolution, 64)
    people = poses.people(poses.look(annotator("pose", model), _tensor(seen)))
    return poses.drawn(people, image.size, (image.width / seen.width, image.height / seen.height))


@dataclass(frozen=True)
class Hint:
    make: Callable[..., Image.Image]
    text: str
    model: bool = False  # needs a file that the user names


HINTS: dict[str, Hint] = {
    "canny": Hint(canny, "edges by Canny's method, with OpenCV"),
    "mlsd": Hint(mlsd, "straight lines by M-LSD", True),
    "hed": Hint(hed, "soft edges by HED", True),
    "lineart": Hint(lineart, "lines where the picture is darker than around them"),
    "depth": Hint(depth, "nearness by Depth Anything", True),
    "pose": Hint(pose, "bodies by OpenPose", True),
    "blur": Hint(blur, "the picture blurred"),
    "tile": Hint(tile, "the picture itself, coarser if asked"),
    "gray": Hint(gray, "the picture without colours"),
    "invert": Hint(invert, "the negative: for lines that are drawn dark on light"),
    "color": Hint(color, "squares of mean colour"),
}


def hint(kind: str, image: Image.Image, model: Model = None, **options: float) -> Image.Image:
    """A hint of a kind in HINTS, RGB and of the picture's size; transparent parts of the picture count as white.

    Raises UnknownName for a kind or an option that is not there, ArgumentError for values and for a missing or surplus `model`, FileError
    for its file, MissingExtra where OpenCV is absent.
    """
    if kind not in HINTS:
        raise UnknownName("hint", kind, HINTS)
    row = HINTS[kind]
    known = [name for name, p in inspect.signature(row.make).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise UnknownName(f"option of the hint {kind!r}", name, known)
    if model is not None and not row.model:
        raise ArgumentError(f"got a model for the hint {kind!r}, which needs none: leave it out")
    return row.make(_rgb(image), *([model] if row.model else []), **options)


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _fitted(image: Image.Image, short: int, multiple: int) -> Image.Image:
    """The shorter side at `short`, both at the nearest multiple."""
    scale = _positive("resolution", short) / min(image.size)
    size = [max(1, round(side * scale / multiple)) * multiple for side in image.size]
    return image.resize(size, Image.Resampling.LANCZOS if scale > 1 else Image.Resampling.BOX)


def _tensor(image: Image.Image) -> Tensor:
    """(1, 3, h, w) in 0..255."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None]


def _gray(values: Tensor, size: tuple[int, int]) -> Image.Image:
    """(1, 1, h, w) in 0..255 -> a picture of that width and height."""
    values = F.interpolate(values.float().cpu(), size=size[::-1], mode="bilinear", align_corners=False)
    return Image.fromarray(values[0, 0].clamp(0, 255).byte().numpy()).convert("RGB")


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ArgumentError(f"got {name} {value}, expected more than 0")
    return value
