"""The networks behind hints, from a model file that the user names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unnoise.checkpoints.store.weights import Weights
from unnoise.checkpoints.store.write import match
from unnoise.errors import ArgumentError, FileError, UnknownName
from unnoise.networks.annotators import HED, BodyPose
from unnoise.networks.depth import DepthAnything, DepthConfig
from unnoise.networks.meta import meta
from unnoise.networks.mlsd import MLSD, MLSD_LARGE, MLSD_TINY


@dataclass(frozen=True)
class Annotator:
    """A kind's files. `build` gets the tensors, on the meta device, and the config.json beside them."""

    files: str  # what people have, for messages
    network: type[nn.Module]
    build: Callable[[Mapping[str, Tensor], dict], nn.Module]
    name: Callable[[str], str] = str  # a key of the file to ours; "": nothing needs it


def _mlsd(weights: Mapping[str, Tensor], settings: dict) -> MLSD:
    return MLSD(MLSD_LARGE if "block23.conv3.weight" in weights else MLSD_TINY)


ANNOTATORS = {
    "mlsd": Annotator("mlsd_tiny_512_fp32 or mlsd_large_512_fp32", MLSD, _mlsd),
    "hed": Annotator("ControlNetHED", HED, lambda weights, settings: HED()),
    "depth": Annotator(
        "the model.safetensors of a depth-anything/…-hf folder",
        DepthAnything,
        lambda weights, settings: DepthAnything(DepthConfig.of(weights, settings)),
        lambda key: "" if key.endswith(".mask_token") else key,  # of DINOv2's training
    ),
    "pose": Annotator("body_pose_model", BodyPose, lambda weights, settings: BodyPose(), lambda key: f"layers.{key}"),
}


def load(kind: str, path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The network of a kind of hint, in float32 and eval mode. Raises FileError where the file is not one of its kind."""
    if kind not in ANNOTATORS:
        raise UnknownName("annotator", kind, ANNOTATORS)
    row, weights = ANNOTATORS[kind], Weights.open(path)
    names = {key: row.name(key) for key in weights}
    with meta():
        network = row.build({key: torch.empty(shape) for key, shape in weights.shapes.items()}, _beside(Path(path)))
    found = {name: weights.shapes[key] for key, name in names.items() if name}
    match(Path(path), found, {name: value.shape for name, value in network.state_dict().items()})
    state = {name: weights.read(key, torch.float32).to(device) for key, name in names.items() if name}
    network.load_state_dict(state, assign=True)
    return network.eval()


def _beside(path: Path) -> dict:
    """The config.json in the file's folder, empty where there is none."""
    try:
        settings = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError:
        raise FileError(f"{path.with_name('config.json')} is not JSON: download the folder again") from None
    return settings if isinstance(settings, dict) else {}


def annotator(kind: str, model: str | Path | nn.Module | None) -> nn.Module:
    """A network as it is, or from the file."""
    row = ANNOTATORS[kind]
    if model is None:
        raise ArgumentError(f"the hint {kind!r} needs a network: pass model=, the path of {row.files} as .safetensors")
    network = model if isinstance(model, nn.Module) else load(kind, model)
    if not isinstance(network, row.network):
        raise ArgumentError(f"got a {type(network).__name__} for the hint {kind!r}, expected {row.network.__name__} or a path")
    return network


def run(network: nn.Module, x: Tensor):
    """The network's answer to x (b, 3, h, w), on its own device and in its own dtype."""
    with torch.inference_mode():
        return network(x.to(next(network.parameters())))
