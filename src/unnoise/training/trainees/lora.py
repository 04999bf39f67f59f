"""LoRA (Hu et al. 2021): two small matrices beside each attention projection are trained, the model itself is frozen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unnoise.checkpoints.adapters import files
from unnoise.checkpoints.adapters.files import Adapter
from unnoise.errors import ArgumentError, UnknownName
from unnoise.networks.lora import Deltas, LowRank, live
from unnoise.pipeline.model import Model
from unnoise.training import texts
from unnoise.training.trainee import Trainee, Values, denoiser, trained

ATTENTION = r"(^|\.)(attn\d?|self_attn)\.(to_q|to_k|to_v|to_out|qkv|proj|q_proj|k_proj|v_proj|out_proj)$"
PLACES = ("network", "text_encoder", "text_encoder_2")  # T5 takes a weight without a call of its layer, where nothing can stand beside it


def lora(
    model: Model,
    rank: int = 4,
    alpha: float | None = None,
    *,
    targets: str = ATTENTION,
    places: Sequence[str] = ("network",),
    seed: int = 0,
) -> Trainee:
    """Train factors of this rank beside the Linear and Conv2d layers whose path `targets`, a regular expression, finds.

    The change of a layer is (alpha / rank) up down; alpha None is the rank. `down` starts uniform in ±1/sqrt(inputs) and `up` at 0, as in
    kohya's scripts, so that training starts from the model itself. Parameters are named "place.layer.up" and ".down". `save` writes
    kohya's form. Raises UnknownName for a place that the model lacks, ArgumentError where `targets` finds no layer or rank is below 1.
    """
    if missing := [place for place in places if place not in PLACES or place not in model.networks]:
        raise UnknownName("network for LoRA", missing[0], [place for place in PLACES if place in model.networks])
    if rank < 1:
        raise ArgumentError(f"got rank {rank}: expected a whole number above 0")
    strength, generator = torch.tensor(float(rank if alpha is None else alpha)), torch.Generator().manual_seed(seed)
    deltas = {place: _factors(model.networks[place], targets, rank, strength, generator) for place in places}
    if not any(deltas.values()):
        raise ArgumentError(f"got targets {targets!r}: no Linear or Conv2d of {', '.join(places)} has such a path")
    parameters = trained(model, _named(deltas).items())
    networks = nn.ModuleDict({place: live(network, [(deltas.get(place, {}), 1.0)]) for place, network in model.networks.items()})

    def save(path: Path, values: Values | None = None) -> None:
        parts = {place: network for place, network in model.networks.items() if place == "network" or place.startswith("text_encoder")}
        files.save(path, _adapter(path, parameters if values is None else values, strength, rank), parts)

    encode = texts.encoder(model, networks=networks)
    return Trainee(model, denoiser(model, networks["network"]), parameters, save, encode)


def _factors(network: nn.Module, targets: str, rank: int, alpha: Tensor, generator: torch.Generator) -> Deltas:
    chosen = ((name, layer) for name, layer in network.named_modules() if re.search(targets, name))
    layers = {name: layer for name, layer in chosen if isinstance(layer, nn.Linear | nn.Conv2d)}
    return {f"{name}.weight": (_factor(layer, rank, alpha, generator),) for name, layer in layers.items()}


def _factor(layer: nn.Linear | nn.Conv2d, rank: int, alpha: Tensor, generator: torch.Generator) -> LowRank:
    out, *inputs = layer.weight.shape
    bound = 1 / math.sqrt(math.prod(inputs))
    down = torch.empty(rank, *inputs).uniform_(-bound, bound, generator=generator)
    up = torch.zeros(out, rank, *[1] * (len(inputs) - 1))
    return LowRank(*(nn.Parameter(factor.to(layer.weight.device)) for factor in (up, down)), alpha=alpha)


def _named(deltas: Mapping[str, Deltas]) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = {}
    for place, changes in deltas.items():
        for name, (delta, *_) in changes.items():
            for side in ("up", "down"):
                found[f"{place}.{name.removesuffix('weight')}{side}"] = getattr(delta, side)
    return found


def _adapter(path: Path, values: Values, alpha: Tensor, rank: int) -> Adapter:
    """The factors as a file's adapter; what kohya's metadata says of rank and alpha stands in it too."""
    deltas: dict[str, dict[str, tuple[LowRank, ...]]] = {}
    for name in values:
        layer, _, side = name.rpartition(".")
        if side == "up":
            place, _, module = layer.partition(".")
            up, down = values[f"{layer}.up"].detach(), values[f"{layer}.down"].detach()
            deltas.setdefault(place, {})[f"{module}.weight"] = (LowRank(up, down, alpha=alpha.clone()),)  # a file shares no tensors
    metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": f"{float(alpha):g}"}
    return Adapter(path, deltas, sum(map(len, deltas.values())), metadata=metadata)
