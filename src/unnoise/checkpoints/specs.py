"""What a model is, as data: its networks' sizes, its process, its prediction, its defaults. One frozen spec a family."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import nn

from unnoise.diffusion import schedules
from unnoise.diffusion.schedules import Schedule
from unnoise.networks.dit import DiT, DiTConfig
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.unet import UNet, UNetConfig


class Strict(BaseModel):
    """Frozen; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleSpec(Strict):
    """A schedule by name and its options; those of other schedules are ignored."""

    kind: Literal["vp", "edm", "flow"] = "flow"
    shift: float = Field(default=1.0, gt=0)
    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    zero_terminal_snr: bool = False

    def build(self) -> Schedule:
        if self.kind == "vp":
            return schedules.vp(self.betas, zero_terminal_snr=self.zero_terminal_snr)
        return schedules.edm() if self.kind == "edm" else schedules.flow(self.shift)


class Defaults(Strict):
    """What `generate` uses where the caller says nothing."""

    sampler: str = "dpmpp_2m"
    spacing: str | None = None
    num_inference_steps: int = Field(default=20, ge=1)
    guidance_scale: float = 4.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # shares of noise, 0 clean, between which guidance acts


class ModelSpec(Strict):
    """A text-to-image model in pixels: a CLIP-style text encoder and one backbone, a U-Net or a diffusion transformer."""

    name: str
    family: Literal["pixel"] = "pixel"
    summary: str = ""
    prediction: Literal["eps", "x0", "v", "flow"] = "x0"
    schedule: ScheduleSpec = ScheduleSpec()
    size: PositiveInt = 64  # side of the pictures that it was trained on
    multiple: PositiveInt = 8  # a side is a multiple of this
    unet: UNetConfig | None = None
    dit: DiTConfig | None = None
    text: CLIPTextConfig
    defaults: Defaults = Defaults()

    @model_validator(mode="after")
    def _one_backbone(self) -> ModelSpec:
        if (self.unet is None) == (self.dit is None):
            raise ValueError("expected exactly one of unet and dit")
        return self

    @property
    def channels(self) -> int:
        """Of the state that is denoised."""
        return self.unet.out_channels if self.unet else self.dit.in_channels if self.dit else 0

    def build(self, device: str | torch.device = "cpu") -> nn.ModuleDict:
        """The networks, freshly initialised; on "meta" they cost nothing."""
        with torch.device(device):
            backbone = UNet(self.unet) if self.unet else DiT(self.dit or DiTConfig())
            return nn.ModuleDict({"text_encoder": CLIPTextEncoder(self.text), "network": backbone})
