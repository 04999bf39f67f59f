"""What a model is, as data: its networks' sizes, its process, its prediction, its defaults. One frozen spec a family."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator
from torch import nn

from unnoise.diffusion import schedules, solvers
from unnoise.diffusion.grids import GRIDS
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import UnknownName
from unnoise.networks.dit import DiT, DiTConfig
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.unet import UNet, UNetConfig


class Strict(BaseModel):
    """Frozen; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleSpec(Strict):
    """A schedule by name and its options; those of another schedule are refused."""

    kind: Literal["vp", "edm", "flow"] = "flow"
    shift: float = Field(default=1.0, gt=0)
    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    zero_terminal_snr: bool = False

    @model_validator(mode="after")
    def _own_options(self) -> ScheduleSpec:
        own = {"vp": ("betas", "zero_terminal_snr"), "edm": (), "flow": ("shift",)}[self.kind]
        for name in ("shift", "betas", "zero_terminal_snr"):
            if name not in own and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} {getattr(self, name)!r} does nothing for kind {self.kind!r}: leave it out")
        return self

    def build(self) -> Schedule:
        if self.kind == "vp":
            return schedules.vp(self.betas, zero_terminal_snr=self.zero_terminal_snr)
        return schedules.edm() if self.kind == "edm" else schedules.flow(self.shift)


class Defaults(Strict):
    """What `generate` uses where the caller says nothing."""

    sampler: str = "dpmpp_2m"
    spacing: str | None = None
    num_inference_steps: int = Field(default=20, ge=1, le=1000)
    guidance_scale: float = Field(default=4.0, ge=-100, le=100)
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # shares of noise, 0 clean, between which guidance acts

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, name: str) -> str:
        return solvers.solver(name).name

    @field_validator("spacing")
    @classmethod
    def _known_spacing(cls, name: str | None) -> str | None:
        if name is not None and name not in GRIDS:
            raise UnknownName("spacing", name, GRIDS)
        return name

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= interval[0] < interval[1] <= 1:  # NaN fails too
            raise ValueError("expected two shares of noise (low, high) with 0 <= low < high <= 1")
        return interval


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
