"""A stand-in for the model: the surface of `unnoise.load(...)` without torch, for tests of the command alone.

Run as a program it is the real command over that model, for tests that need a process of their own (signals).
"""

from __future__ import annotations

import os
import random
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

import unnoise
from unnoise.errors import ArgumentError, UnknownName

PAUSE = float(os.environ.get("FAKE_STEP_SECONDS", "0"))
ROOM = 14  # words that the model reads
ENTRIES = {
    "model": "model",
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "sampler": "sampler",
    "spacing": "spacing",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "seed": "seed",
    "width": "width",
    "height": "height",
}


@dataclass(frozen=True)
class SamplerInfo:
    name: str = "dpmpp_2m"
    order: int = 2
    evaluations: int = 1
    stochastic: bool = False
    summary: str = "multistep [second] order"


@dataclass(frozen=True)
class ModelInfo:
    name: str = "emoji"
    family: str = "unnoise"
    summary: str = "64x64 emoji"
    parameters: int = 9_600_000
    bytes: int = 38_000_000


@dataclass
class Result:
    images: list = field(default_factory=list)
    seeds: list = field(default_factory=list)
    metadata: list = field(default_factory=list)


@dataclass
class State:
    step: int
    steps: int
    finished: Result

    def result(self) -> Result:
        return self.finished


@dataclass
class Model:
    name: str
    dtype: str
    device: str

    def stream(
        self,
        prompt,
        negative_prompt="",
        num_inference_steps=None,
        guidance_scale=None,
        sampler=None,
        spacing=None,
        height=None,
        width=None,
        num_images_per_prompt=1,
        seed=None,
        output_type="pil",
    ):
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if num_images_per_prompt < 1:
            raise ArgumentError(f"num_images_per_prompt: got {num_images_per_prompt}, expected at least 1")
        if sampler not in (None, "euler", "dpmpp_2m"):
            raise UnknownName("sampler", sampler, ["euler", "dpmpp_2m"])
        seed = random.randrange(2**31) if seed is None else seed
        common = {"model": self.name, "model_hash": "ab12" * 16, "negative_prompt": negative_prompt, "sampler": sampler or "dpmpp_2m"}
        common |= {"spacing": spacing, "steps": num_inference_steps or 3, "guidance_scale": guidance_scale or 5.0}
        common |= {"width": width or 64, "height": height or 64, "version": "0.1.0", "dtype": "float32", "device": "cpu"}
        texts = [text for text in prompts for _ in range(num_images_per_prompt)]
        metadata = [{**common, "prompt": text, "seed": seed + i} for i, text in enumerate(texts)]
        for entry in metadata:
            entry |= {"dropped_tokens": len(entry["prompt"].split()) - ROOM} if len(entry["prompt"].split()) > ROOM else {}
        images = [picture(entry) for entry in metadata]
        for step in range(1, common["steps"] + 1):
            time.sleep(PAUSE)
            yield State(step, common["steps"], Result(images, [entry["seed"] for entry in metadata], metadata))


def picture(settings: dict) -> Image.Image:
    """Pixels that depend on everything that was asked."""
    values = random.Random(repr(sorted(settings.items())))
    return Image.frombytes("RGB", (settings["width"], settings["height"]), values.randbytes(3 * settings["width"] * settings["height"]))


def load(name, dtype="auto", device="auto"):
    if name not in ("emoji",):
        raise UnknownName("model", name, ["emoji"])
    return Model(name, dtype, device)


def arguments(metadata: dict) -> dict:
    return {argument: metadata[key] for key, argument in ENTRIES.items() if key in metadata}


NAMES = {"load": load, "samplers": lambda: [SamplerInfo()], "models": lambda: [ModelInfo()]}


def module() -> types.ModuleType:
    """What `unnoise.pipeline.model` offers the command."""
    stand_in = types.ModuleType("unnoise.pipeline.model")
    stand_in.arguments = arguments
    return stand_in


def environment(**more: str) -> dict:
    """For a process that runs the command from this source tree."""
    source = str(Path(unnoise.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": source, "PYTHONUTF8": "1", **more}


if __name__ == "__main__":
    vars(unnoise).update(NAMES)
    sys.modules["unnoise.pipeline.model"] = module()
    from unnoise.cli import main

    main()
