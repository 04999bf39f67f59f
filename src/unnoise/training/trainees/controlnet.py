"""ControlNet (Zhang et al. 2023): a copy of the first half of a frozen network learns to read a hint, and adds to what the network does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unnoise.checkpoints import keys
from unnoise.checkpoints.layouts import controlnet as layouts
from unnoise.checkpoints.layouts import diffusers
from unnoise.checkpoints.store import write
from unnoise.conditioning import Hint
from unnoise.errors import ArgumentError
from unnoise.networks.controlnet import ControlNet, ControlNetConfig
from unnoise.networks.controlnet_mmdit import MMDiTControlNet, MMDiTControlNetConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.unet import UNetConfig
from unnoise.pipeline.model import Model
from unnoise.runtime import control
from unnoise.training import texts
from unnoise.training.trainee import Trainee, Values, denoiser, holding, trained

Net = ControlNet | MMDiTControlNet
Sizes = ControlNetConfig | MMDiTControlNetConfig


def controlnet(model: Model, sizes: Sizes | None = None, *, seed: int = 0) -> Trainee:
    """Train a new ControlNet, whose last layers start at zero, so that training starts from the model itself.

    A batch's hint is a picture (b, 3, 8h, 8w) in 0..1 for a U-Net, latents (b, c, h, w) for an MMDiT. sizes: None gives a U-Net the net of
    the published families, and an MMDiT one of half its blocks. Parameters have the names of the ControlNet. `save` writes a file that
    `load_control` and diffusers read. Raises ArgumentError for a network that takes no residuals, or sizes that do not fit it.
    """
    network = model.networks["network"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _new(sizes or _usual(model.spec.network, model.spec.name))
    net.load_state_dict(_copied(net, network), strict=False)
    net = net.to(model.device).train()
    parameters = trained(model, net.named_parameters())

    def save(path: Path, values: Values | None = None) -> None:
        with holding(parameters, values):
            write.tensors(path, {key: tensor.contiguous() for key, tensor in keys.write(_layout(net), net.state_dict()).items()})

    def hints(pictures: Tensor) -> tuple[Hint, ...]:
        return (control.hint(net, pictures),)

    return Trainee(model, denoiser(model), parameters, save, texts.encoder(model), hints)


def _usual(config: object, name: str) -> Sizes:
    if isinstance(config, UNetConfig):
        return ControlNetConfig(config)
    if isinstance(config, MMDiTConfig):
        depth = config.depth // 2
        blocks = replace(config, depth=depth, dual_blocks=min(depth, config.dual_blocks))
        return MMDiTControlNetConfig(blocks, "joint", config.in_channels)
    raise ArgumentError(f"got {name}, whose blocks take no residuals of a ControlNet: expected a U-Net (SD 1, 2, XL) or an MMDiT (SD 3)")


def _new(sizes: Sizes) -> Net:
    return ControlNet(sizes) if isinstance(sizes, ControlNetConfig) else MMDiTControlNet(sizes)


def _copied(net: Net, network: nn.Module) -> Mapping[str, Tensor]:
    """The network's tensors that the ControlNet has too, under its names: the MMDiT's `joint_blocks` are its `transformer_blocks`."""
    named = {name.replace("joint_blocks.", "transformer_blocks."): tensor for name, tensor in network.state_dict().items()}
    return {name: named[name] for name, tensor in net.state_dict().items() if name in named and named[name].shape == tensor.shape}


def _layout(net: Net) -> keys.Layout:
    return diffusers.unet({}) if isinstance(net, ControlNet) else layouts.diffusers_mmdit(net.config)
