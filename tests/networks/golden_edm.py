"""The golden networks of EDM and of score_sde, opened as any file of theirs is, and EDM's three denoisers of one network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks import golden, golden_pixels
from unnoise import schedules
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions
from unnoise.families.table import FAMILIES
from unnoise.runtime.denoise import NetworkDenoiser


def edm(shared: Path, name: str) -> tuple[nn.Module, golden.Tensors, dict[str, Any]]:
    """(the raw network F, inputs and outputs, the record) of golden/edm/`name`."""
    file = golden_pixels.read(shared / "golden/edm" / name)
    return file.network(), file.io, file.record


def score_sde(shared: Path, name: str) -> tuple[nn.Module, golden.Tensors, dict[str, Any]]:
    """(the raw network, inputs and outputs, the record) of golden/score_sde/`name`: ddpm, ddpmpp or ncsnpp.

    The authors' "net" is this network for VP with t = 999 t; for VE it is network(2x - 1, log sigma) / sigma.
    """
    file = golden_pixels.read(shared / "golden/score_sde" / name)
    return file.network(), file.io, file.record


# EDM's three ways to make a denoiser (x, sigma, cond) -> x_0 of one network, in our words (Karras et al. 2022, table 1)

Denoiser = Callable[[Tensor, Tensor, Cond], Tensor]


def _as(family: str, network: nn.Module) -> Denoiser:
    """By the schedule and the prediction of a published family."""
    spec = FAMILIES[family]
    predicts = predictions.prediction(spec.prediction)
    return NetworkDenoiser(network, spec.schedule.build(), predicts, dtype=torch.float32)  # pyright: ignore[reportReturnType]


def _edm_precond(network: nn.Module) -> Denoiser:
    return _as("edm-cifar", network)


def _vp_precond(network: nn.Module) -> Denoiser:
    """The VP process, entered where its sigma / alpha is this sigma."""
    vp, denoiser = schedules.ContinuousVP(), _as("edm-baseline-vp", network)

    def denoise(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        t = vp.time(-2 * sigma.double().log())
        return denoiser(x * vp.alpha(t).to(x).view(-1, 1, 1, 1), t, cond)

    return denoise


def _ve_precond(network: nn.Module) -> Denoiser:
    """The network is told log(sigma / 2), because score_sde's pictures lie in 0..1, and says sigma times the score."""
    return _as("edm-baseline-ve", network)


PRECONDITIONED = {"EDMPrecond": _edm_precond, "VPPrecond": _vp_precond, "VEPrecond": _ve_precond}


def labels(io: golden.Tensors, name: str = "class_labels") -> Cond:
    return Cond(labels=io[name].argmax(1)) if name in io else Cond()
