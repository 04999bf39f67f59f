"""Networks that read a picture for ControlNet hints: soft edges (HED) and the joints of people (OpenPose).

Parameters are called as in the files of `lllyasviel/Annotators`, body_pose_model's too, which name a layer without its branch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EdgeBlock(nn.Module):
    """3x3 convolutions at one scale, and a map of edges seen there."""

    def __init__(self, c_in: int, c_out: int, layers: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c_out if i else c_in, c_out, 3, padding=1) for i in range(layers))
        self.projection = nn.Conv2d(c_out, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x, self.projection(x)


class HED(nn.Module):
    """Holistically-nested edges (Xie and Tu 2015) as in ControlNetHED: RGB (b, 3, h, w) in 0..255 -> edges (b, 1, h, w) in 0..1.

    VGG-16's convolutions; the edges of its five scales are averaged, where the paper weighs them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))  # the mean colour
        self.block1 = EdgeBlock(3, 64, 2)
        self.block2 = EdgeBlock(64, 128, 2)
        self.block3 = EdgeBlock(128, 256, 3)
        self.block4 = EdgeBlock(256, 512, 3)
        self.block5 = EdgeBlock(512, 512, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, edges = self.block1(x - self.norm)
        maps = [edges]
        for block in (self.block2, self.block3, self.block4, self.block5):
            h, edges = block(F.max_pool2d(h, 2))
            maps.append(F.interpolate(edges, size=x.shape[2:], mode="bilinear", align_corners=False))
        return torch.stack(maps).mean(dim=0).sigmoid()


PARTS, LIMB_CHANNELS = 18, 38  # joints, of which a neck between two shoulders; two numbers for each of 19 limbs


class Joints(NamedTuple):
    limbs: Tensor  # (b, 38, h/8, w/8): for each limb the direction in which it runs here, x and y
    parts: Tensor  # (b, 19, h/8, w/8): how surely each joint is here, then the ground


class BodyPose(nn.Module):
    """OpenPose's body (Cao et al. 2017), body_pose_model: blue, green, red (b, 3, h, w) in -0.5..0.5 -> Joints.

    VGG-19's first ten layers, then six stages of two branches; each stage sees what the one before it thought.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        widths = {"conv1": (3, 64, 2), "conv2": (64, 128, 2), "conv3": (128, 256, 4), "conv4": (256, 512, 2)}
        for name, (c_in, c_out, count) in widths.items():
            for i in range(count):
                self.layers[f"{name}_{i + 1}"] = nn.Conv2d(c_out if i else c_in, c_out, 3, padding=1)
        self.layers["conv4_3_CPM"] = nn.Conv2d(512, 256, 3, padding=1)
        self.layers["conv4_4_CPM"] = nn.Conv2d(256, 128, 3, padding=1)
        for branch, out in ((1, LIMB_CHANNELS), (2, PARTS + 1)):
            for i, (c_in, c_out, kernel) in enumerate([(128, 128, 3)] * 3 + [(128, 512, 1), (512, out, 1)]):
                self.layers[f"conv5_{i + 1}_CPM_L{branch}"] = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)
            for stage in range(2, 7):
                sizes = [(128 + LIMB_CHANNELS + PARTS + 1, 128, 7), *[(128, 128, 7)] * 4, (128, 128, 1), (128, out, 1)]
                for i, (c_in, c_out, kernel) in enumerate(sizes):
                    self.layers[f"Mconv{i + 1}_stage{stage}_L{branch}"] = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Joints:
        seen = self._vgg(x)
        limbs, parts = (self._run([f"conv5_{i}_CPM_L{branch}" for i in range(1, 6)], seen) for branch in (1, 2))
        for stage in range(2, 7):
            h = torch.cat([limbs, parts, seen], dim=1)
            limbs, parts = (self._run([f"Mconv{i}_stage{stage}_L{branch}" for i in range(1, 8)], h) for branch in (1, 2))
        return Joints(limbs, parts.relu())  # the PyTorch port that wrote the file has it, and only here

    def _vgg(self, x: Tensor) -> Tensor:
        for name, layer in self.layers.items():
            if not name.startswith("conv") or "_L" in name:
                break
            if name in ("conv2_1", "conv3_1", "conv4_1"):
                x = F.max_pool2d(x, 2)
            x = F.relu(layer(x))
        return x

    def _run(self, names: list[str], x: Tensor) -> Tensor:
        for name in names[:-1]:
            x = F.relu(self.layers[name](x))
        return self.layers[names[-1]](x)
