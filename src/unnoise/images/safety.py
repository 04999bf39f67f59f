"""The safety checker of Stable Diffusion: is one of twenty concepts in the picture? Its scores come with the answer.

    score of a special concept = cosine - threshold
    score of a concept         = cosine - threshold + 0.01 if a special concept was seen before

rounded to three digits as CompVis does; a picture is flagged when a concept's score is above 0. What happens to a flagged picture is the
request's decision: one of ACTIONS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from unnoise.errors import ArgumentError, NonFiniteError, UnknownName
from unnoise.networks.vision import SafetyConfig
from unnoise.runtime.placement import CPU, Placement

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])  # of CLIP's training pictures, red, green, blue in 0..1
STD = np.array([0.26862954, 0.26130258, 0.27577711])
STRICTER = 0.01  # added to every later score once a special concept was seen
BATCH = 16  # pictures a forward


def clip_pixels(pictures: Sequence[Image.Image], size: int = 224) -> Tensor:
    """What CLIP's vision tower reads, (n, 3, size, size): the shorter side resized to `size`, the centre cut out, normalised."""
    return torch.stack([_pixels(picture.convert("RGB"), size) for picture in pictures])


def _pixels(picture: Image.Image, size: int) -> Tensor:
    short = min(picture.size)
    picture = picture.resize((size * picture.width // short, size * picture.height // short), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    values = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    return torch.from_numpy(((values - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)


@dataclass(frozen=True)
class Verdict:
    """One picture's. Scores by the concept's index; above 0: seen. CompVis publishes no names of the concepts."""

    flagged: bool
    scores: dict[int, float]  # of the 17 concepts
    special: dict[int, float]  # of the 3 that make the rest stricter


class SafetyChecker:
    """checker(pictures) -> one Verdict a picture. `network`: a SafetyNetwork of `config` with CompVis's weights, at `placement`."""

    def __init__(self, network: nn.Module, config: SafetyConfig | None = None, placement: Placement = CPU):
        self.network, self.config, self.placement = network.eval(), config or SafetyConfig(), placement

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        verdicts = []
        for start in range(0, len(pictures), BATCH):
            pixels = clip_pixels(pictures[start : start + BATCH], self.config.vision.image)
            concepts = self.network(pixels.to(self.placement.device, self.placement.dtype))
            of_pictures = torch.cat(concepts, dim=1).cpu()  # all that is read back, at once
            verdicts += [self._verdict(row, concepts.special.shape[1]) for row in of_pictures]
        return verdicts

    def _verdict(self, concepts: Tensor, special: int) -> Verdict:
        """concepts (n, 2): cosine and threshold, the special concepts first."""
        if not concepts.isfinite().all():
            raise NonFiniteError("the safety checker gave NaN: run it in float32 or bfloat16")  # NaN > 0 would pass every picture
        cares, adjustment = {}, 0.0
        for index, (cosine, threshold) in enumerate(concepts[:special].tolist()):
            cares[index] = round(cosine - threshold + adjustment, 3)
            adjustment = STRICTER if cares[index] > 0 else adjustment
        rows = enumerate(concepts[special:].tolist())
        scores = {index: round(cosine - threshold + adjustment, 3) for index, (cosine, threshold) in rows}
        return Verdict(any(score > 0 for score in scores.values()), scores, cares)


def black(picture: Image.Image) -> Image.Image:
    return Image.new(picture.mode, picture.size)


def blur(picture: Image.Image) -> Image.Image:
    """No shape is left that is smaller than an eighth of the picture."""
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 16))


def flag(picture: Image.Image) -> Image.Image:
    return picture


ACTIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "black": black,  # what diffusers does
    "blur": blur,
    "flag": flag,  # the picture stays; its verdict says what was seen
}


def act(action: str, pictures: Sequence[Image.Image], verdicts: Sequence[Verdict]) -> list[Image.Image]:
    """The pictures, the flagged ones as the action leaves them."""
    if action not in ACTIONS:
        raise UnknownName("safety action", action, ACTIONS)
    if len(pictures) != len(verdicts):
        raise ArgumentError(f"got {len(verdicts)} verdicts for {len(pictures)} pictures, expected one each")
    return [ACTIONS[action](picture) if verdict.flagged else picture for picture, verdict in zip(pictures, verdicts, strict=True)]
