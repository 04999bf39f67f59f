"""A class label as a text of one token: the condition of class-conditional latent diffusion (Rombach et al. 2022, section 4.3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class ClassTokensConfig:
    """Defaults: ImageNet's classes and one more that stands for none."""

    kind: ClassVar[str] = "class_tokens"

    classes: int = 1001
    width: int = 512

    def build(self) -> ClassTokens:
        return ClassTokens(self)


class ClassTokens(nn.Module):
    """labels (b,) -> (b, 1, width)."""

    def __init__(self, config: ClassTokensConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.classes, config.width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding(labels)[:, None]
