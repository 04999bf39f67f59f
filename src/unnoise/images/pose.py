"""People out of OpenPose's maps (Cao et al. 2017, section 3), and how ControlNet was shown them.

joints: peaks of each part's smoothed map
limbs:  pairs of joints along which the limb's field points; the best pairs first, each joint used once
people: limbs that share joints; kept with four joints or more and a mean score of 0.4
"""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from unnoise.images.annotators import Loaded
from unnoise.networks.annotators import PARTS, Joints

HEIGHT = 184  # pixels: half of the 368 that the network was trained at, as in ControlNet's annotator
# Parts: nose, neck; shoulder, elbow, wrist, right then left; hip, knee, ankle, right then left; eyes and ears, right before left.
LIMBS = (  # from part, to part, channel of the field's x
    (1, 2, 12), (1, 5, 20), (2, 3, 14), (3, 4, 16), (5, 6, 22), (6, 7, 24), (1, 8, 0), (8, 9, 2), (9, 10, 4), (1, 11, 6),
    (11, 12, 8), (12, 13, 10), (1, 0, 28), (0, 14, 30), (14, 16, 34), (0, 15, 32), (15, 17, 36), (2, 16, 18), (5, 17, 26),
)  # fmt: skip
DRAWN = 17  # limbs; the last two, from shoulder to ear, only tie people together
COLOURS = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(i / PARTS, 1, 1)) for i in range(PARTS)]
SURE, ALONG = 0.1, 0.05  # a joint's least value; the least projection of the field on a limb


@dataclass(frozen=True)
class Joint:
    x: float
    y: float
    score: float


@dataclass(eq=False)
class Person:
    joints: dict[int, Joint] = field(default_factory=dict)  # by part
    score: float = 0.0

    def add(self, part: int, joint: Joint) -> None:
        self.joints[part] = joint
        self.score += joint.score


def look(network: Loaded, picture: Tensor) -> Joints:
    """picture (1, 3, h, w) in 0..255 -> the network's maps at its size."""
    size = picture.shape[2:]
    width = max(1, round(size[1] * HEIGHT / size[0]))
    small = F.interpolate(picture, size=(HEIGHT, width), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
    x = F.pad(small.flip(1) / 256 - 0.5, (0, -width % 8, 0, -HEIGHT % 8))

    def at_size(maps: Tensor) -> Tensor:
        maps = F.interpolate(maps.float().cpu(), scale_factor=8, mode="bicubic", align_corners=False)[:, :, :HEIGHT, :width]
        return F.interpolate(maps, size=size, mode="bicubic", align_corners=False)

    return Joints(*map(at_size, network(x)))


def people(maps: Joints) -> list[Person]:
    """Of one picture's maps: limbs (1, 38, h, w), parts (1, 19, h, w)."""
    peaks = [joints(part) for part in maps.parts[0, :PARTS]]
    found: list[Person] = []
    for number, (a, b, channel) in enumerate(LIMBS):
        for start, end, score in limbs(peaks[a], peaks[b], maps.limbs[0, channel : channel + 2]):
            _join(found, (a, start), (b, end), score, new=number < DRAWN)
    return [person for person in found if len(person.joints) >= 4 and person.score / len(person.joints) >= 0.4]


def joints(heat: Tensor) -> list[Joint]:
    """Local maxima of one part's map (h, w), smoothed by a Gaussian of deviation 3; the score is the map's own."""
    smooth = _gaussian(heat)
    peak = (smooth > SURE) & (smooth >= F.max_pool2d(smooth[None], (3, 1), 1, (1, 0))[0])
    peak &= smooth >= F.max_pool2d(smooth[None], (1, 3), 1, (0, 1))[0]
    return [Joint(x, y, heat[y, x].item()) for y, x in peak.nonzero().tolist()]


def _gaussian(x: Tensor, sigma: float = 3.0) -> Tensor:
    reach = int(4 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    x = F.pad(x[None, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, kernel[None, None, :, None]), kernel[None, None, None])[0, 0]


def limbs(starts: Sequence[Joint], ends: Sequence[Joint], along: Tensor) -> list[tuple[Joint, Joint, float]]:
    """Pairs that the field (2, h, w) ties together, the surest first, each joint once."""
    pairs = [(score, a, b) for a, b in itertools.product(starts, ends) if (score := agreement(a, b, along)) > 0]
    chosen: list[tuple[Joint, Joint, float]] = []
    for score, a, b in sorted(pairs, key=lambda pair: -pair[0]):
        if all(a is not start and b is not end for start, end, _ in chosen):
            chosen.append((a, b, score))
    return chosen


def agreement(a: Joint, b: Joint, along: Tensor, points: int = 10) -> float:
    """Mean of the field's projection on the way from a to b, less where that is over half the picture; 0 where too little of it agrees."""
    dx, dy = b.x - a.x, b.y - a.y
    distance = max(0.001, math.hypot(dx, dy))
    steps = torch.linspace(0, 1, points)
    values = along[:, (a.y + steps * dy).round().long(), (a.x + steps * dx).round().long()]  # (2, points)
    projected = (values[0] * dx + values[1] * dy) / distance
    mean = projected.mean().item() + min(0.5 * along.shape[1] / distance - 1, 0)
    return mean if (projected > ALONG).sum().item() > 0.8 * points else 0.0


def _join(found: list[Person], start: tuple[int, Joint], end: tuple[int, Joint], score: float, *, new: bool) -> None:
    """Add a limb to the person that has one of its joints, or join the two that have one each."""
    (a, from_), (b, to) = start, end
    sharing = [person for person in found if person.joints.get(a) is from_ or person.joints.get(b) is to]
    if len(sharing) > 1 and not sharing[0].joints.keys() & sharing[1].joints.keys():
        person, other = sharing[:2]
        person.joints |= other.joints
        person.score += other.score + score
        found.remove(other)
    elif sharing:
        person = sharing[0]
        if person.joints.get(b) is not to:
            person.add(b, to)
            person.score += score
    elif new:
        person = Person(score=score)
        person.add(a, from_)
        person.add(b, to)
        found.append(person)


def drawn(people: Sequence[Person], size: tuple[int, int], scale: tuple[float, float] = (1.0, 1.0)) -> Image.Image:
    """Limbs as darker ellipses, then joints as dots, each in its colour. scale: pixels of the picture a pixel of the maps."""
    page = Image.new("RGB", size)
    draw, width = ImageDraw.Draw(page), max(1.0, 4 * min(size) / 512)
    for (a, b, _), colour in zip(LIMBS[:DRAWN], COLOURS, strict=False):
        for person in people:
            if a in person.joints and b in person.joints:
                start, end = ((person.joints[part].x * scale[0], person.joints[part].y * scale[1]) for part in (a, b))
                draw.polygon(_ellipse(start, end, width), fill=tuple(int(0.6 * c) for c in colour))
    for part, person in itertools.product(range(PARTS), people):
        if part in person.joints:
            x, y = person.joints[part].x * scale[0], person.joints[part].y * scale[1]
            draw.ellipse((x - width, y - width, x + width, y + width), fill=COLOURS[part])
    return page


def _ellipse(a: tuple[float, float], b: tuple[float, float], width: float) -> list[tuple[float, float]]:
    """From a to b, `width` to each side."""
    half_x, half_y = (b[0] - a[0]) / 2, (b[1] - a[1]) / 2
    side = width / max(0.001, math.hypot(half_x, half_y))
    turns = [(math.cos(angle), math.sin(angle) * side) for angle in (math.tau * i / 64 for i in range(64))]
    return [(a[0] + half_x + u * half_x - v * half_y, a[1] + half_y + u * half_y + v * half_x) for u, v in turns]
