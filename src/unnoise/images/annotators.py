"""The networks behind hints, from a model file that the user names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unnoise.checkpoints.store.weights import Weights
from unnoise.checkpoints.store.write import match
from unnoise.errors import ArgumentError, FileError, UnknownName
from unnoise.networks.annotators import HED, BodyPose
from unnoise.networks.depth import DepthAnything, DepthConfig
from unnoise.networks.meta import meta
from unnoise.networks.mlsd import MLSD, MLSD_LARGE, MLSD_TINY
from unnoise.runtime.placement import Placement


@dataclass(frozen=True)
class Annotator:
    """A kind's files. `build` gets the tensors, on the meta device, and the config.json beside them."""

    files: str  # what people have, for messages
    build: Callable[[Mapping[str, Tensor], dict], nn.Module]
    name: Callable[[str], str] = str  # a key of the file to ours; "": nothing needs it


def _mlsd(weights: Mapping[str, Tensor], settings: dict) -> MLSD:
    return MLSD(MLSD_LARGE if "block23.conv3.weight" in weights else MLSD_TINY)


ANNOTATORS = {
    "mlsd": Annotator("mlsd_tiny_512_fp32 or mlsd_large_512_fp32", _mlsd),
    "hed": Annotator("ControlNetHED", lambda weights, settings: HED()),
    "depth": Annotator(
        "the model.safetensors of a depth-anything/…-hf folder",
        lambda weights, settings: DepthAnything(DepthConfig.of(weights, settings)),
        lambda key: "" if key.endswith(".mask_token") else key,  # of DINOv2's training
    ),
    "pose": Annotator("body_pose_model", lambda weights, settings: BodyPose(), lambda key: f"layers.{key}"),
}


@dataclass(frozen=True)
class Loaded:
    """The network of a kind of hint, and where it runs."""

    kind: str
    network: nn.Module
    placement: Placement

    def __call__(self, x: Tensor) -> Any:
        """Ask the network about x (b, 3, h, w)."""
        with torch.inference_mode():
            return self.network(x.to(self.placement.device, self.placement.dtype))


def load(kind: str, path: str | Path, device: torch.device | str = "cpu") -> Loaded:
    """Read the network of a kind of hint, in float32 and eval mode. Raises FileError for a file of another kind."""
    if kind not in ANNOTATORS:
        raise UnknownName("annotator", kind, ANNOTATORS)
    row, weights = ANNOTATORS[kind], Weights.open(path)
    names = {key: row.name(key) for key in weights}
    with meta():
        network = row.build({key: torch.empty(shape) for key, shape in weights.shapes.items()}, _beside(Path(path)))
    found = {name: weights.shapes[key] for key, name in names.items() if name}
    match(Path(path), found, {name: value.shape for name, value in network.state_dict().items()})
    here = Placement(torch.device(device), torch.float32)
    state = {name: weights.read(key, here.dtype).to(here.device) for key, name in names.items() if name}
    network.load_state_dict(state, assign=True)
    return Loaded(kind, network.eval(), here)


def _beside(path: Path) -> dict:
    """The config.json in the file's folder, empty where there is none."""
    try:
        settings = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError:
        raise FileError(f"{path.with_name('config.json')} is not JSON: download the folder again") from None
    return settings if isinstance(settings, dict) else {}


def annotator(kind: str, model: str | Path | Loaded | None) -> Loaded:
    """A network that is loaded already as it is, or that of the file. Raises ArgumentError for one of another kind, or none at all."""
    if model is None:
        raise ArgumentError(f"the hint {kind!r} needs a network: pass model=, the path of {ANNOTATORS[kind].files} as .safetensors")
    loaded = load(kind, model) if isinstance(model, str | Path) else model
    if not isinstance(loaded, Loaded) or loaded.kind != kind:
        got = f"the network of {loaded.kind!r}" if isinstance(loaded, Loaded) else f"a {type(loaded).__name__}"
        raise ArgumentError(f"got {got} for the hint {kind!r}, expected a path or what annotators.load({kind!r}, FILE) gives")
    return loaded
