"""What a model is, as data: the configs of its networks by place, its process, its prediction and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    WrapSerializer,
    field_validator,
    model_validator,
)
from torch import nn

from unnoise.diffusion import schedules, solvers
from unnoise.diffusion.grids import GRIDS
from unnoise.diffusion.schedules import Schedule
from unnoise.errors import UnknownName
from unnoise.networks.kinds import Backbone, FirstStage, TextConfig
from unnoise.networks.labels import ClassTokensConfig
from unnoise.networks.meta import meta
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.ncsnpp import NCSNppConfig
from unnoise.networks.unet import UNetConfig


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


class ByKind:
    """Makes pydantic tell the configs of a union apart by `kind`, which stands beside their fields in JSON."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        members = [Annotated[config, BeforeValidator(_bare), WrapSerializer(_written), Tag(config.kind)] for config in get_args(source)]
        return handler.generate_schema(Annotated[Union[tuple(members)], Discriminator(_kind)])  # noqa: UP007


def _kind(value: Any) -> str | None:
    return value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)


def _bare(value: Any) -> Any:
    return {key: item for key, item in value.items() if key != "kind"} if isinstance(value, Mapping) else value


def _written(config: Any, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
    return {"kind": config.kind, **fields(config)}


NetworkConfig = Annotated[Backbone | FirstStage | TextConfig, ByKind()]
Place = Literal["network", "autoencoder", "text_encoder", "text_encoder_2", "text_encoder_3"]
PLACES: tuple[Place, ...] = get_args(Place)
TEXT_PLACES = PLACES[2:]
_UNIONS = {"network": Backbone, "autoencoder": FirstStage}
FITS: dict[str, tuple[type, ...]] = {place: get_args(_UNIONS.get(place, TextConfig)) for place in PLACES}  # the configs of each place

# How text, sizes and labels become the network's condition: see `pipeline/conditionings.py`
Conditioning = Literal["none", "labels", "label_tokens", "draft", "clip", "clip_penultimate", "bert", "sdxl", "refiner", "sd3"]


class ModelSpec(Strict):
    """A model: one network that denoises, and where it has them a first stage (else it works on pixels) and up to three text encoders."""

    name: str
    family: str = "pixel"
    summary: str = ""
    prediction: Literal["eps", "score", "x0", "v", "flow", "edm", "consistency", "lcm"] = "x0"
    schedule: ScheduleSpec = ScheduleSpec()
    size: PositiveInt = 64  # side of the pictures that it was trained on
    multiple: PositiveInt = 8  # a side is a multiple of this
    networks: Mapping[Place, NetworkConfig]
    conditioning: Conditioning = "draft"
    null_label: int | None = None  # the label that stands for none, where the model was trained with one
    guided_channels: int | None = None  # guidance acts on so many of the channels, from the first: 3 of 4 in DiT's own code
    extra_channels: tuple[
        Literal["mask", "masked_image", "depth", "low_res"], ...
    ] = ()  # what joins x, in this order: inpainting, depth, upsampling
    defaults: Defaults = Defaults()

    @field_validator("networks")
    @classmethod
    def _in_their_places(cls, networks: Mapping[Place, NetworkConfig]) -> Mapping[Place, NetworkConfig]:
        if "network" not in networks:
            raise ValueError(f"got {', '.join(networks) or 'nothing'}: expected a network that denoises in the place 'network'")
        for place, config in networks.items():
            if not isinstance(config, FITS[place]):
                expected = " or ".join(kind.__name__ for kind in FITS[place])
                raise ValueError(f"got a {type(config).__name__} in the place {place!r}: expected {expected}")
        return _ordered(networks)

    @property
    def network(self) -> Backbone:
        """The config of the network that denoises."""
        return self.networks["network"]  # pyright: ignore[reportReturnType]

    @property
    def first_stage(self) -> FirstStage | None:
        """The config of the autoencoder; None for a model of pixels."""
        return self.networks.get("autoencoder")  # pyright: ignore[reportReturnType]

    @property
    def factor(self) -> int:
        """Pixels a side of one cell of the state."""
        return self.first_stage.factor if self.first_stage else 1

    @property
    def classes(self) -> int:
        """Number of labels that a picture can be asked for by, without the label that stands for none."""
        table = self.networks.get("text_encoder")
        if isinstance(table, ClassTokensConfig):
            return table.classes - (self.null_label is not None)
        return getattr(self.network, "num_classes", 0)

    @property
    def channels(self) -> int:
        """Channels of the state that is denoised."""
        network = self.network
        return network.out_channels if isinstance(network, UNetConfig | NCSNppConfig) else network.in_channels

    @property
    def guidance_distilled(self) -> bool:
        """Whether the network itself is given the guidance scale and answers guided, as latent consistency models do."""
        return isinstance(self.network, UNetConfig) and self.network.guidance_width > 0

    @property
    def joint_blocks(self) -> int:
        """Number of MMDiT blocks, which skip-layer guidance can leave out; 0 for another network."""
        return self.network.depth if isinstance(self.network, MMDiTConfig) else 0

    def with_networks(self, networks: Mapping[str, Any]) -> ModelSpec:
        """The spec with these configs in their places; None removes a place."""
        merged = {**self.networks, **networks}
        return self.model_copy(update={"networks": _ordered({place: config for place, config in merged.items() if config})})

    def build(self, device: str | torch.device = "cpu") -> nn.ModuleDict:
        """The networks by place, freshly initialised; on "meta" they cost nothing."""
        with meta() if str(device) == "meta" else torch.device(device):
            return nn.ModuleDict({place: config.build() for place, config in self.networks.items()})


def _ordered(networks: Mapping[Any, Any]) -> dict[Any, Any]:
    return {place: networks[place] for place in PLACES if place in networks}
