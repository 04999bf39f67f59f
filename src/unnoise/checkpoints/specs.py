"""What a model is, as data: its networks' sizes, its process, its prediction, its defaults. One frozen spec a family."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from unnoise.diffusion import schedules
from unnoise.diffusion.schedules import Schedule
from unnoise.networks.dit import DiT, DiTConfig
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder


class Strict(BaseModel):
    """Frozen; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleSpec(Strict):
    """A schedule by name and its options; those of other schedules are ignored."""

    kind: Literal["vp", "edm", "flow"] = "flow"
    shift: float = Field(1.0, gt=0)
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
    num_inference_steps: int = Field(20, ge=1)
    guidance_scale: float = 4.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # share of the noise levels, 0 clean, where guidance acts


class ModelSpec(Strict):
    """A text-to-image model in pixels: a CLIP-style text encoder and a diffusion transformer."""

    name: str
    family: Literal["pixel-dit"] = "pixel-dit"
    summary: str = ""
    prediction: Literal["eps", "x0", "v", "flow"] = "x0"
    schedule: ScheduleSpec = ScheduleSpec()
    network: DiTConfig
    text: CLIPTextConfig
    defaults: Defaults = Defaults()

    def build(self, device: str | torch.device = "cpu") -> nn.ModuleDict:
        """The networks, freshly initialised; on "meta" they cost nothing."""
        with torch.device(device):
            return nn.ModuleDict({"text_encoder": CLIPTextEncoder(self.text), "network": DiT(self.network)})
