"""The CLIP vision tower (Radford et al. 2021): a picture cut into patches, a transformer over them, read out at the class token.

Module names are those of the published `image_encoder` and `safety_checker` folders, the misspelt `pre_layrnorm` too. Beside it stands the
safety checker of Stable Diffusion: the tower, its projection, and twenty concepts in the projection's space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from unnoise.errors import ArgumentError
from unnoise.networks.text import Encoder


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Defaults: the vision tower of CLIP ViT-L/14 (303,966,208 parameters with its projection)."""

    kind: ClassVar[str] = "clip_vision"

    image: int = 224  # pixels a side
    patch: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp: int = 4096
    activation: str = "quick_gelu"
    projection: int = 768  # width of the projected vector; 0: none
    eps: float = 1e-5

    def build(self) -> CLIPVisionEncoder:
        return CLIPVisionEncoder(self)

    @property
    def positions(self) -> int:
        return (self.image // self.patch) ** 2 + 1


VISION = {  # OpenAI's towers that the aesthetic heads were trained on
    "vit_l_14": CLIPVisionConfig(),
    "vit_b_32": CLIPVisionConfig(patch=32, width=768, layers=12, heads=12, mlp=3072, projection=512),
}


class VisionStates(NamedTuple):
    last: Tensor  # (b, 1 + patches, width) after the last layer, before the final norm
    pooled: Tensor  # (b, width): the class token after the final norm
    projected: Tensor | None  # (b, projection)


class Embeddings(nn.Module):
    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(config.width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.position_embedding = nn.Embedding(config.positions, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (b, patches, width)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        places = torch.arange(self.position_embedding.num_embeddings, device=pixels.device)
        return torch.cat([first, patches], dim=1) + self.position_embedding(places)


class VisionModel(nn.Module):
    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=config.eps)
        sizes = (config.layers, config.width, config.heads, config.mlp, config.activation)
        self.encoder = Encoder(*sizes, causal=False, eps=config.eps)
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.eps)


class CLIPVisionEncoder(nn.Module):
    """pixels (b, 3, image, image), normalised by `images.safety.clip_pixels` -> VisionStates."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config)
        self.visual_projection = nn.Linear(config.width, config.projection, bias=False) if config.projection else None

    def forward(self, pixels: Tensor) -> VisionStates:
        side = self.config.image
        if pixels.shape[1:] != (3, side, side):
            raise ArgumentError(f"got pixels of {tuple(pixels.shape)}, expected (b, 3, {side}, {side}): make them with clip_pixels")
        x = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pixels))
        for layer in self.vision_model.encoder.layers:
            x = layer(x)
        pooled = self.vision_model.post_layernorm(x[:, 0])
        return VisionStates(x, pooled, self.visual_projection(pooled) if self.visual_projection else None)


@dataclass(frozen=True)
class SafetyConfig:
    """Defaults: CompVis' safety checker."""

    kind: ClassVar[str] = "safety"

    vision: CLIPVisionConfig = CLIPVisionConfig()

    def build(self) -> SafetyNetwork:
        return SafetyNetwork(self.vision)


class Concepts(NamedTuple):
    """How near pictures are to each concept: its cosine and the concept's threshold, side by side, in float32."""

    special: Tensor  # (b, 3, 2)
    plain: Tensor  # (b, 17, 2)


class SafetyNetwork(nn.Module):
    """pixels (b, 3, image, image) -> Concepts: CompVis/stable-diffusion-safety-checker."""

    def __init__(self, config: CLIPVisionConfig | None = None, *, concepts: int = 17, special: int = 3):
        super().__init__()
        config = config or CLIPVisionConfig()
        self.config = config
        self.vision_model = CLIPVisionEncoder(replace(config, projection=0))
        self.visual_projection = nn.Linear(config.width, config.projection, bias=False)
        self.concept_embeds, self.concept_embeds_weights = _frozen(concepts, config.projection), _frozen(concepts)
        self.special_care_embeds, self.special_care_embeds_weights = _frozen(special, config.projection), _frozen(special)

    def forward(self, pixels: Tensor) -> Concepts:
        seen = self.visual_projection(self.vision_model(pixels).pooled)
        special = _beside(cosines(seen, self.special_care_embeds), self.special_care_embeds_weights)
        return Concepts(special, _beside(cosines(seen, self.concept_embeds), self.concept_embeds_weights))


def _beside(near: Tensor, thresholds: Tensor) -> Tensor:
    return torch.stack([near, thresholds.to(near).expand_as(near)], dim=-1)


def _frozen(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape), requires_grad=False)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Of every row of a (n, width) with every row of b (m, width): (n, m)."""
    return nn.functional.normalize(a.float()) @ nn.functional.normalize(b.float()).T
