"""The checker's arithmetic on concepts that are chosen so that the scores are known; what becomes of a flagged picture."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor

from unnoise.errors import ArgumentError, NonFiniteError, UnknownName
from unnoise.images.safety import ACTIONS, SafetyChecker, Verdict, act, clip_pixels
from unnoise.networks.vision import CLIPVisionConfig, Concepts, SafetyConfig, SafetyNetwork

TINY = CLIPVisionConfig(image=28, patch=14, width=32, layers=1, heads=2, mlp=32, projection=4)


class Seen(SafetyNetwork):
    """Sees what it is told, a row a picture: three special cosines, then two plain ones."""

    def __init__(self, *rows: list[float]):
        super().__init__(TINY, concepts=2, special=3)
        self.rows, self.sizes = torch.tensor(rows), []

    def forward(self, pixels: Tensor) -> Concepts:
        rows, self.rows = self.rows[: len(pixels)], self.rows[len(pixels) :]
        self.sizes.append(len(pixels))
        thresholds = torch.tensor([0.2] * 3 + [0.3] * 2).expand_as(rows)
        return Concepts(*torch.stack([rows, thresholds], dim=-1).split([3, 2], dim=1))


def judge(*rows: list[float]) -> list[Verdict]:
    return SafetyChecker(Seen(*rows), SafetyConfig(TINY))([Image.new("RGB", (40, 30))] * len(rows))


def test_scores_are_cosines_less_thresholds() -> None:
    (verdict,) = judge([0.1, 0.15, 0.0, 0.25, 0.35])
    assert verdict == Verdict(True, {0: -0.05, 1: 0.05}, {0: -0.1, 1: -0.05, 2: -0.2})


def test_a_special_concept_makes_all_later_scores_stricter() -> None:
    before, after = judge([0.1, 0.1, 0.1, 0.295, 0.0], [0.1, 0.25, 0.195, 0.295, 0.0])
    assert not before.flagged and before.scores[0] == -0.005
    assert after.flagged and after.scores[0] == 0.005
    assert after.special == {0: -0.1, 1: 0.05, 2: 0.005}  # the third is seen only because the second was


def test_scores_are_rounded_before_they_count() -> None:
    assert [verdict.flagged for verdict in judge([0, 0, 0, 0.3004, 0], [0, 0, 0, 0.3006, 0])] == [False, True]


def test_many_pictures_go_in_batches() -> None:
    network = Seen(*([0, 0, 0, 0, i / 40] for i in range(40)))
    verdicts = SafetyChecker(network, SafetyConfig(TINY))([Image.new("RGB", (30, 30))] * 40)
    assert [verdict.flagged for verdict in verdicts] == [i / 40 > 0.3 for i in range(40)]
    assert max(network.sizes) <= 16
    assert SafetyChecker(network, SafetyConfig(TINY))([]) == []


def test_nan_does_not_pass() -> None:
    with pytest.raises(NonFiniteError, match="safety checker"):
        judge([0, 0, 0, float("nan"), 0])


def test_every_mode_of_picture_is_read() -> None:
    for mode in ("RGB", "L", "RGBA", "P"):
        assert clip_pixels([Image.new(mode, (50, 90))], 28).shape == (1, 3, 28, 28)


def test_actions() -> None:
    clean, bad = Verdict(False, {}, {}), Verdict(True, {}, {})
    picture = Image.effect_noise((64, 48), 90).convert("RGB")
    for action in ACTIONS:
        kept, changed = act(action, [picture, picture], [clean, bad])
        assert kept is picture and changed.size == picture.size and changed.mode == picture.mode
    assert act("black", [picture], [bad])[0].getextrema() == ((0, 0),) * 3
    assert act("flag", [picture], [bad])[0] is picture
    low, high = act("blur", [picture], [bad])[0].convert("L").getextrema()
    assert high - low < 64  # of the noise's whole range
    with pytest.raises(UnknownName, match="did you mean 'blur'"):
        act("blurr", [picture], [bad])
    with pytest.raises(ArgumentError, match="1 verdicts for 2 pictures"):
        act("blur", [picture, picture], [bad])
