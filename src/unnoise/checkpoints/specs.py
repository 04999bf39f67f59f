"""What a model is, as data: its networks' sizes, its process, its prediction, its defaults. `families.py` has one of each published."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator
from torch import nn

from unnoise.diffusion import schedules, solvers
from unnoise.diffusion.grids import GRIDS
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import UnknownName
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig
from unnoise.networks.bert import BertConfig, BertEncoder
from unnoise.networks.dit import DiT, DiTConfig
from unnoise.networks.labels import ClassTokens, ClassTokensConfig
from unnoise.networks.meta import meta
from unnoise.networks.mmdit import MMDiT, MMDiTConfig
from unnoise.networks.ncsnpp import NCSNpp, NCSNppConfig
from unnoise.networks.t5 import T5Config, T5Encoder
from unnoise.networks.taesd import TinyAutoencoder, TinyAutoencoderConfig
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.unet import UNet, UNetConfig
from unnoise.networks.vq import VQAutoencoder, VQConfig


class Strict(BaseModel):
    """Frozen; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


KINDS = {"vp": schedules.vp, "vp_sde": schedules.ContinuousVP, "edm": schedules.edm, "flow": schedules.flow}
OPTIONS = {
    "vp": ("betas", "beta_start", "beta_end", "steps", "told_steps", "zero_terminal_snr"),
    "vp_sde": (),
    "edm": ("sigma_min", "sigma_max", "time_scale", "unit"),
    "flow": ("shift",),
}


class ScheduleSpec(Strict):
    """A schedule by name and its options; those of another schedule are refused."""

    kind: Literal["vp", "vp_sde", "edm", "flow"] = "flow"
    shift: float = Field(default=1.0, gt=0)
    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_start: float | None = None
    beta_end: float | None = None
    steps: int = Field(default=1000, ge=2)
    told_steps: int | None = None  # the network is told t as if there were so many steps: IDDPM's 4000 are told as 1000
    zero_terminal_snr: bool = False
    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    time_scale: float = 0.25  # the network is told time_scale ln(unit sigma)
    unit: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _own_options(self) -> ScheduleSpec:
        for name in type(self).model_fields.keys() - {"kind", *OPTIONS[self.kind]}:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} {getattr(self, name)!r} does nothing for kind {self.kind!r}: leave it out")
        return self

    def build(self) -> Schedule:
        options = {name: getattr(self, name) for name in OPTIONS[self.kind]}
        return KINDS[self.kind](**options)


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


# How text, sizes and labels become the network's condition: see `conditions.py`
Conditioning = Literal["none", "labels", "label_tokens", "draft", "clip", "clip_penultimate", "bert", "sdxl", "refiner", "sd3"]
BACKBONES = {"unet": UNet, "dit": DiT, "mmdit": MMDiT, "ncsnpp": NCSNpp}
FIRST_STAGES = {"autoencoder": Autoencoder, "vq": VQAutoencoder, "tiny": TinyAutoencoder}
TEXTS = {"text": CLIPTextEncoder, "text_2": CLIPTextEncoder, "text_3": T5Encoder, "bert": BertEncoder, "class_tokens": ClassTokens}


class ModelSpec(Strict):
    """A model: one backbone, and where it has them a first stage (else it works on pixels) and up to three text encoders."""

    name: str
    family: str = "pixel"
    summary: str = ""
    prediction: Literal["eps", "score", "x0", "v", "flow", "edm", "consistency", "lcm"] = "x0"
    schedule: ScheduleSpec = ScheduleSpec()
    size: PositiveInt = 64  # side of the pictures that it was trained on
    multiple: PositiveInt = 8  # a side is a multiple of this
    unet: UNetConfig | None = None
    dit: DiTConfig | None = None
    mmdit: MMDiTConfig | None = None
    ncsnpp: NCSNppConfig | None = None
    autoencoder: AutoencoderConfig | None = None
    vq: VQConfig | None = None
    tiny: TinyAutoencoderConfig | None = None
    text: CLIPTextConfig | None = None
    text_2: CLIPTextConfig | None = None
    text_3: T5Config | None = None
    bert: BertConfig | None = None
    class_tokens: ClassTokensConfig | None = None
    conditioning: Conditioning = "draft"
    null_label: int | None = None  # the label that stands for none, where the model was trained with one
    guided_channels: int | None = None  # guidance acts on so many of the channels, from the first: 3 of 4 in DiT's own code
    extra_channels: tuple[
        Literal["mask", "masked_image", "depth", "low_res"], ...
    ] = ()  # what joins x, in this order: inpainting, depth, upsampling
    defaults: Defaults = Defaults()

    @model_validator(mode="after")
    def _one_backbone(self) -> ModelSpec:
        for names in (BACKBONES, FIRST_STAGES):
            given = [name for name in names if getattr(self, name)]
            if len(given) > 1 or (not given and names is BACKBONES):
                raise ValueError(f"expected exactly one of {', '.join(names)}, got {' and '.join(given) or 'none'}")
        return self

    @property
    def backbone(self) -> UNetConfig | DiTConfig | MMDiTConfig | NCSNppConfig:
        return next(config for name in BACKBONES if (config := getattr(self, name)))

    @property
    def first_stage(self) -> AutoencoderConfig | VQConfig | TinyAutoencoderConfig | None:
        return self.autoencoder or self.vq or self.tiny

    @property
    def factor(self) -> int:
        """Pixels a side of one cell of the state."""
        return self.first_stage.factor if self.first_stage else 1

    @property
    def classes(self) -> int:
        """Labels that a picture can be asked for by, without the one for none."""
        table = self.class_tokens.classes if self.class_tokens else getattr(self.backbone, "num_classes", 0)
        return table - (self.class_tokens is not None and self.null_label is not None)

    @property
    def channels(self) -> int:
        """Of the state that is denoised."""
        backbone = self.backbone
        return backbone.out_channels if isinstance(backbone, UNetConfig | NCSNppConfig) else backbone.in_channels

    def parts(self) -> dict[str, tuple[type[nn.Module], Any]]:
        """The networks that the model is made of: the name under which `Model.networks` has each, its class, its config."""
        found: dict[str, tuple[type[nn.Module], Any]] = {}
        for field, place, kinds in (*((name, "network", BACKBONES) for name in BACKBONES), *_PLACES):
            if config := getattr(self, field):
                found[place] = (kinds[field], config)
        return found

    def build(self, device: str | torch.device = "cpu") -> nn.ModuleDict:
        """The networks, freshly initialised; on "meta" they cost nothing."""
        with meta() if str(device) == "meta" else torch.device(device):
            return nn.ModuleDict({place: network(config) for place, (network, config) in self.parts().items()})


TEXT_FIELDS = {
    "text_encoder": "text",
    "text_encoder_2": "text_2",
    "text_encoder_3": "text_3",
}  # by place; other conditions have one of their own
_PLACES = (
    ("autoencoder", "autoencoder", FIRST_STAGES),
    ("vq", "autoencoder", FIRST_STAGES),
    ("tiny", "autoencoder", FIRST_STAGES),
    *((name, place, TEXTS) for place, name in TEXT_FIELDS.items()),
    ("bert", "text_encoder", TEXTS),
    ("class_tokens", "text_encoder", TEXTS),
)
