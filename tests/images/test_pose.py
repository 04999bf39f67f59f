"""People are put into maps as OpenPose would see them, and must come out again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unnoise.images import pose
from unnoise.images.annotators import Loaded
from unnoise.images.hints import hint
from unnoise.images.pose import COLOURS, LIMBS, Joint, drawn, people
from unnoise.networks.annotators import BodyPose, Joints
from unnoise.runtime.placement import Placement

STANDING = {  # by part, in pixels from the neck
    0: (0, -30), 1: (0, 0), 2: (-25, 5), 3: (-32, 45), 4: (-36, 80), 5: (25, 5), 6: (32, 45), 7: (36, 80), 8: (-15, 85), 9: (-17, 140),
    10: (-18, 190), 11: (15, 85), 12: (17, 140), 13: (18, 190), 14: (-6, -38), 15: (6, -38), 16: (-14, -34), 17: (14, -34),
}  # fmt: skip


def maps(*necks: tuple[int, int], without: tuple[int, ...] = (), size: tuple[int, int] = (320, 400)) -> Joints:
    """What a perfect network would answer for people with these necks."""
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    parts, limbs = torch.zeros(1, 19, *size), torch.zeros(1, 38, *size)
    for neck in necks:
        places = {part: (neck[0] + dx, neck[1] + dy) for part, (dx, dy) in STANDING.items() if part not in without}
        for part, (px, py) in places.items():
            parts[0, part] = torch.maximum(parts[0, part], torch.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 7**2)))
        for a, b, channel in LIMBS:
            if a in places and b in places:
                limbs[0, channel : channel + 2] += along(x, y, places[a], places[b])
    return Joints(limbs, parts)


def along(x: Tensor, y: Tensor, a: tuple[float, float], b: tuple[float, float]) -> Tensor:
    """The unit vector from a to b within 5 pixels of the limb."""
    length = math.dist(a, b)
    u, v = (b[0] - a[0]) / length, (b[1] - a[1]) / length
    way, aside = (x - a[0]) * u + (y - a[1]) * v, (x - a[0]) * v - (y - a[1]) * u
    inside = (way >= -5) & (way <= length + 5) & (aside.abs() <= 5)
    return torch.stack([u * inside, v * inside])


def assert_standing(person: pose.Person, neck: tuple[int, int]) -> None:
    for part, (dx, dy) in STANDING.items():
        if part in person.joints:
            joint = person.joints[part]
            assert math.dist((joint.x, joint.y), (neck[0] + dx, neck[1] + dy)) <= 2, part


def test_two_people_keep_their_limbs_apart() -> None:
    found = sorted(people(maps((100, 80), (290, 100))), key=lambda person: person.joints[1].x)
    assert [len(person.joints) for person in found] == [18, 18]
    assert_standing(found[0], (100, 80))
    assert_standing(found[1], (290, 100))


def test_hidden_joints_stay_away() -> None:
    (person,) = people(maps((200, 90), without=(3, 4, 16)))
    assert set(person.joints) == set(STANDING) - {3, 4, 16}
    assert_standing(person, (200, 90))


def test_fewer_than_four_joints_are_nobody() -> None:
    assert people(maps((200, 90), without=tuple(range(3, 18)))) == []
    assert people(maps()) == []


def test_a_field_that_points_the_other_way_ties_nothing() -> None:
    seen = maps((200, 90))
    assert people(Joints(-seen.limbs, seen.parts)) == []


def test_colours_are_a_circle_of_hues() -> None:
    """As ControlNet was shown them: from red in steps of 20 degrees."""
    assert COLOURS[:4] == [(255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0)] and COLOURS[17] == (255, 0, 85)


def test_drawing() -> None:
    person = pose.Person({1: Joint(20, 20, 1.0), 2: Joint(60, 20, 1.0)})
    page = np.asarray(drawn([person], (200, 100), (2.0, 2.0)))
    assert tuple(page[40, 80]) == (153, 0, 0)  # the limb from neck to shoulder is the first: 0.6 of red
    assert tuple(page[40, 40]) == COLOURS[1] and tuple(page[40, 120]) == COLOURS[2]
    assert page[80:].max() == 0


HERE = Placement(torch.device("cpu"), torch.float32)


class Told(BodyPose):
    """Answers with a person at an eighth of the size that it is shown."""

    def forward(self, x: Tensor) -> Joints:
        self.seen = x
        whole = maps((200, 90), size=(320, 384))
        return Joints(*(nn.functional.interpolate(m, size=(23, 28), mode="area") for m in whole))


def test_the_hint() -> None:
    network = Told()
    made = hint("pose", Image.new("RGB", (384, 320), (255, 128, 0)), Loaded("pose", network, HERE), resolution=320)
    assert network.seen.shape == (1, 3, 184, 224)  # 221 wide, filled up to a multiple of 8
    assert network.seen[0, :, 90, 90].tolist() == pytest.approx([-0.5, 0.0, 255 / 256 - 0.5], abs=1e-6)  # blue, green, red
    assert network.seen[0, :, 90, 222].tolist() == [0, 0, 0]
    page = np.asarray(made)
    assert made.size == (384, 320)
    assert page[90 + 85 - 5 : 90 + 85 + 5, 180:190].max() > 200  # a hip
    assert page[:, 310:].max() == 0


def test_the_networks_size() -> None:
    """52,311,446 parameters, of body_pose_model's 209 MB; one layer without its activation at the end of each branch."""
    with torch.device("meta"):
        network = BodyPose()
    assert sum(p.numel() for p in network.parameters()) == 52_311_446
    assert network(torch.zeros(1, 3, 64, 80, device="meta")).limbs.shape == (1, 38, 8, 10)
