"""What is asked of the tiny models: every family, and everything that stands beside a model at a step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pretend import models
from unnoise.diffusion.solvers import SOLVERS
from unnoise.pipeline.inputs import Control
from unnoise.runtime.placement import CPU, Placement

PROMPT = "a red apple on (a table:1.3)"
LONG = ", ".join(f"{number} red apples on a table" for number in range(40))
STEPS = 4
Place = Callable[[nn.Module], Any]  # a network as the run has it: itself, a copy on the device, wrapped


def here(network: nn.Module) -> Any:
    return network


@dataclass(frozen=True)
class Case:
    """A request to the model of that name. `beside` makes the arguments that hold networks, where the run is.

    exact: whether the device sees the rows that the CPU sees. A CPU fills a forward of one row up, so that a picture is the same to the
    bit in any batch, and elsewhere a row of such a forward is rounded otherwise.
    """

    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    beside: Callable[[Place, Placement], Mapping[str, Any]] = lambda place, placement: {}
    exact: bool = True

    def request(self, place: Place, placement: Placement = CPU) -> dict[str, Any]:
        return {**usual(self.model), **self.arguments, **self.beside(place, placement)}


def usual(name: str) -> dict[str, Any]:
    """Two rows for the network: two pictures of one row each, or one guided picture. So many it sees at once on a CPU and elsewhere."""
    spec = models.model(name).spec
    texts = "text_encoder" in models.model(name).tokenizers
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "seed": 3, **({"prompt": PROMPT} if texts else {})}
    asked |= {"class_labels": 4} if spec.classes else {}
    guided = (texts or spec.null_label is not None) and spec.prediction != "lcm"
    asked |= {"guidance_scale": 3.0} if guided else {"num_images_per_prompt": 2}
    asked |= {} if guided or spec.prediction == "lcm" else {"guidance_scale": 1.0}
    asked |= {"image": picture()} if {"mask", "low_res"} & {*spec.extra_channels} else {}
    return asked | ({"mask_image": half()} if "mask" in spec.extra_channels else {})


def picture(side: int = 64) -> Image.Image:
    """Smooth colours."""
    rows, cols = np.mgrid[0:side, 0:side] / side
    channels = [0.5 + 0.4 * np.sin(6 * rows + i) * np.cos(5 * cols + 2 * i) for i in range(3)]
    return Image.fromarray((np.stack(channels, axis=-1) * 255).astype(np.uint8))


def half(side: int = 64) -> Image.Image:
    """A mask whose right half is painted anew."""
    return Image.fromarray(np.repeat((np.arange(side) >= side // 2)[None], side, axis=0).astype(np.uint8) * 255)


def _control(name: str, place: Place, placement: Placement, **settings: Any) -> Control:
    net = models.control(name)
    return Control(replace(net, network=place(net.network), placement=placement), picture(), **settings)


def _controlled(name: str, **settings: Any) -> Case:
    return Case(models.CONTROLS[name][0], beside=lambda *run: {"control": _control(name, *run, **settings)})


def _two_nets(place: Place, placement: Placement) -> dict[str, Any]:
    run = (place, placement)
    return {"control": [_control("sd1", *run, scale=0.7, end=0.6), _control("sd1 pooled", *run, scale=0.4, start=0.3)]}


def _refined(place: Place, placement: Placement) -> dict[str, Any]:
    return {"refiner": models.changed(models.model("sdxl-refiner"), lambda _, network: place(network), placement), "denoising_end": 0.5}


def _lora(name: str, folder: Path) -> Case:
    path = folder / f"{name}.safetensors"
    save_file(dict(models.lora(name)), path)
    return Case(name, {"lora": [(path, 0.8)]})


def _classified(place: Place, placement: Placement) -> dict[str, Any]:
    net = models.classifier()
    return {"classifier": replace(net, network=place(net.network), placement=placement), "classifier_scale": 2.0}


FROM_PICTURE = {"image": picture(), "strength": 0.7, "num_inference_steps": STEPS + 2}
REPAINT = {"image": picture(), "mask_image": half(), "strength": 0.9, "num_inference_steps": STEPS + 1}
PULLED = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.9}
NAMES = (*models.SIZES, "emoji")
CASES: dict[str, Callable[[Path], Case]] = {
    **{f"text/{name}": functools.partial(lambda name, _: Case(name), name) for name in NAMES},
    **{
        f"image/{name}": functools.partial(
            lambda name, _: Case(name, {"image": picture(), "strength": 0.7, "num_inference_steps": 6}), name
        )
        for name in ("sd1", "sdxl", "sd3.5-medium", "ldm-text", "ddpm-cifar", "emoji")
    },
    **{f"inpainting/{name}": functools.partial(lambda name, _: Case(name, REPAINT), name) for name in ("sd1", "sd3.5-medium", "emoji")},
    **{f"control/{name}": functools.partial(lambda name, _: _controlled(name), name) for name in models.CONTROLS},
    "control/guess": lambda _: replace(_controlled("sd1", guess=True), exact=False),
    "control/two windows": lambda _: Case("sd1", beside=_two_nets),
    "refiner": lambda _: Case("sdxl", {"num_inference_steps": 8}, _refined),
    **{f"lora/{name}": functools.partial(_lora, name) for name in ("sd1", "sdxl", "sd3.5-medium")},
    "classifier": lambda _: Case("adm-64", beside=_classified, exact=False),  # by its gradient: see device.py
    "skip layers": lambda _: Case("sd3.5-medium", PULLED, exact=False),
    "rescale": lambda _: Case("sd1", {"guidance_rescale": 0.7}),
    "interval": lambda _: Case("sd1", {"guidance_interval": (0.2, 0.9)}, exact=False),
    "no prompt's side": lambda _: Case("sd1", {"guidance_scale": 0.0, "num_images_per_prompt": 2}),
    "one and four chunks": lambda _: Case("sd1", {"prompt": [PROMPT, LONG], "negative_prompt": ["", LONG]}),
    "long": lambda _: Case("sd3.5-medium", {"prompt": LONG}, exact=False),
    **{f"sampler/{name}": functools.partial(lambda name, _: Case("ddpm-cifar", {"sampler": name}), name) for name in SOLVERS},
    "sampler/stochastic": lambda _: Case("sd1", {"sampler": "ddim", "sampler_options": {"eta": 1.0}}),
}
