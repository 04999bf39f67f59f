"""LAION's aesthetic heads: how much people like a picture, from 1 to 10, by one linear layer on its CLIP embedding.

The files sa_0_4_vit_l_14_linear and sa_0_4_vit_b_32_linear of LAION-AI/aesthetic-predictor: trained on the SAC ratings, on embeddings of
OpenAI's CLIP ViT-L/14 and ViT-B/32 divided by their length. LAION-Aesthetics V1, of which Stable Diffusion was made, was chosen so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import ArgumentError, FileError
from unnoise.images.safety import clip_pixels
from unnoise.networks.vision import VISION, CLIPVisionEncoder

WIDTHS = {config.projection: name for name, config in VISION.items()}  # of an embedding: the tower that it comes from
BATCH = 16  # pictures a forward


class AestheticHead:
    """head(embeddings (n, width)) -> scores (n,)."""

    def __init__(self, weight: Tensor, bias: Tensor):
        self.weight, self.bias = weight.float(), bias.float()  # (1, width), (1,)

    @classmethod
    def load(cls, path: str | Path) -> AestheticHead:
        """From .safetensors. Raises FileError where the file is not a head of a width that is known."""
        weights = Weights.open(path)
        shapes = {name: tuple(shape) for name, shape in weights.shapes.items()}
        if shapes not in [{"weight": (1, width), "bias": (1,)} for width in WIDTHS]:
            raise FileError(f"{path} is not an aesthetic head: got {shapes}, expected weight (1, 512) or (1, 768) and bias (1,)")
        return cls(weights.read("weight"), weights.read("bias"))

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    @property
    def tower(self) -> str:
        """The name in `networks.vision.VISION` of the tower whose embeddings it scores."""
        return WIDTHS[self.width]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Of any length; raises ArgumentError for another width."""
        if embeddings.dim() != 2 or embeddings.shape[1] != self.width:
            raise ArgumentError(f"got embeddings of {tuple(embeddings.shape)}, expected (n, {self.width}): projected, by CLIP {self.tower}")
        unit = torch.nn.functional.normalize(embeddings.float().cpu())
        return (unit @ self.weight.T + self.bias)[:, 0]


@torch.no_grad()
def scores(pictures: Sequence[Image.Image], tower: CLIPVisionEncoder, head: AestheticHead) -> list[float]:
    """One a picture, by the head's own CLIP tower with its projection."""
    found = []
    for start in range(0, len(pictures), BATCH):
        pixels = clip_pixels(pictures[start : start + BATCH], tower.config.image).to(tower.vision_model.embeddings.class_embedding)
        projected = tower(pixels).projected
        if projected is None:
            raise ArgumentError("got a vision tower without its projection, expected one with: the head scores projected embeddings")
        found += head(projected).tolist()
    return found
