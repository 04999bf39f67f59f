"""ControlNets by file, folder or hub id, for `unnoise.Control`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unnoise.checkpoints import recognise
from unnoise.checkpoints.layouts import controlnet
from unnoise.errors import ArgumentError, FileError
from unnoise.networks.controlnet import ControlNetConfig
from unnoise.networks.controlnet_mmdit import MMDiTControlNetConfig
from unnoise.pipeline.locating import locate
from unnoise.pipeline.model import Model
from unnoise.runtime import control, first_stage
from unnoise.runtime.placement import Networks, Placement


@dataclass(frozen=True)
class ControlModel:
    """A ControlNet, ready for `unnoise.Control`."""

    network: nn.Module
    family: str  # "sd1", "sd2", "sdxl" or "sd3"
    kind: str = ""  # of hint, where the file says it: "blur", "canny", "depth"
    config: ControlNetConfig | MMDiTControlNetConfig | None = None  # None: the network's own
    placement: Placement | None = None  # None: unknown, for a net that came from no file
    path: str = ""  # of its file, as it was given

    @property
    def sizes(self) -> ControlNetConfig | MMDiTControlNetConfig:
        """What the net was built from."""
        return self.config or control.own_config(self.network)

    @property
    def latents(self) -> bool:
        """Whether it is shown latents, not pixels."""
        return isinstance(self.sizes, MMDiTControlNetConfig)

    def check(self, network: object, name: str) -> None:
        """Raise ArgumentError if this ControlNet does not fit a network of this config. name: the model's family, for the message."""
        check(self.sizes, self.family, network, name)

    def shown(self, networks: Networks, hint: Tensor) -> Tensor:
        """Return latents of a hint (b, 3, h, w) in 0..1, as the net was trained to see them.

        Stability's Canny net of the form 8b saw pixels 127.5 times as far apart (sd3_infer.py of sd3.5, `vae_encode`); nets that hear no
        pooled text saw latents that were not shifted (diffusers' pipeline of SD3ControlNetModel).
        """
        config = self.sizes
        if not isinstance(config, MMDiTControlNetConfig):
            raise ArgumentError(f"got a ControlNet of {self.family}, which is shown pixels: latents are for nets of Stable Diffusion 3")
        x = hint * 127.5 + 0.5 if config.form == "8b" and self.kind == "canny" else 2 * hint - 1
        stage = first_stage.Stage(networks)
        with networks.on("autoencoder") as autoencoder:
            latents = autoencoder(x.to(stage.dtype), "encode").mean
        return (latents * stage.config.scale if config.zero_pooled else stage.scaled(latents)).float()


def check(net: ControlNetConfig | MMDiTControlNetConfig, family: str, network: object, name: str) -> None:
    """Raise ArgumentError if a net of this config, made for `family`, does not fit a network of that config. name: the model's family."""
    try:
        net.places(network)
    except ArgumentError as error:
        raise ArgumentError(f"got a ControlNet of {family} for {name}: {error}") from None


def load_control(
    control: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    model: Model | None = None,
    variant: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> ControlModel:
    """A ControlNet from a .safetensors file, a diffusers folder or a hub id "owner/name".

    Files of lllyasviel and diffusers for Stable Diffusion 1, 2 and SDXL; of diffusers and Stability AI for Stable Diffusion 3 and 3.5.
    dtype and device: as for `load`; with a model they are the model's, and a net that was made for another family is refused at once.
    variant: of a folder's files, such as "fp16". config: fields of the network's config that the file does not show, such as {"heads": 4}.
    Raises ArgumentError, UnknownName or FileError.
    """
    if model is None:
        return opened(control, Placement.named(device, dtype), variant, config)
    return opened(control, model.networks.placement, variant, config, model)


def opened(
    control: str | Path,
    placement: Placement,
    variant: str | None = None,
    config: Mapping[str, Any] | None = None,
    model: Model | None = None,
) -> ControlModel:
    """Load a ControlNet to a place; with a model, refuse one that does not fit before its weights are read. Raises FileError."""
    part = recognise.control(locate(control, variant), config or {}, variant)
    sizes = part.config
    family = controlnet.family(sizes)
    if family == "sd3" and sizes.hint_channels != sizes.mmdit.in_channels:
        raise FileError(f"{part.weights.path} wants a mask beside its hint: expected a ControlNet that is shown a picture")
    if model is not None:
        check(sizes, family, model.networks.config("network"), model.spec.name)
    network = part.load(placement.dtype, placement.device)
    return ControlModel(network, family, controlnet.kind(part.weights), sizes, placement, str(control))
