"""A stand-in for the model: the surface of `unnoise.load(...)` without torch, for tests of the command alone.

Run as a program it is the real command over that model, for tests that need a process of their own (signals).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

import unnoise
from unnoise.errors import UnknownName

if TYPE_CHECKING:
    from unnoise.pipeline.request import Request

PAUSE = float(os.environ.get("FAKE_STEP_SECONDS", "0"))
ROOM = 14  # words that the model reads
LOADS = Path(os.environ.get("FAKE_LOADS", os.devnull))  # a file that gets a line for each load


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
    evidence: tuple[str, ...] = ()

    def answer(self, request: Request) -> Iterator[State]:
        if request.sampler not in (None, "euler", "dpmpp_2m"):
            raise UnknownName("sampler", request.sampler, ["euler", "dpmpp_2m"])
        return self.steps(request)

    def steps(self, request: Request) -> Iterator[State]:
        seed = random.randrange(2**31) if request.seed in (None, -1) else request.seed
        common = {"model": self.name, "model_hash": "ab12" * 16, "negative_prompt": request.negative_prompt or ""}
        common |= {"sampler": request.sampler or "dpmpp_2m", "spacing": request.spacing}
        common |= {"num_inference_steps": request.num_inference_steps or 3, "guidance_scale": request.guidance_scale or 5.0}
        common |= {"width": request.width or 64, "height": request.height or 64, "version": "0.1.0", "dtype": "float32", "device": "cpu"}
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        texts = [text for text in prompts for _ in range(request.num_images_per_prompt)]
        metadata = [{**common, "prompt": text, "seed": seed + i} for i, text in enumerate(texts)]
        for entry in metadata:
            entry |= {"dropped_tokens": len(entry["prompt"].split()) - ROOM} if len(entry["prompt"].split()) > ROOM else {}
        images = [picture(entry) for entry in metadata]
        for step in range(1, common["num_inference_steps"] + 1):
            time.sleep(PAUSE)
            yield State(step, common["num_inference_steps"], Result(images, [entry["seed"] for entry in metadata], metadata))


def picture(settings: dict) -> Image.Image:
    """Pixels that depend on everything that was asked."""
    values = random.Random(repr(sorted(settings.items())))
    return Image.frombytes("RGB", (settings["width"], settings["height"]), values.randbytes(3 * settings["width"] * settings["height"]))


def load(name, dtype="auto", device="auto", variant=None, prediction=None, parts=None):
    if name not in ("emoji", "other"):
        raise UnknownName("model", name, ["emoji", "other"])
    with LOADS.open("a") as file:
        file.write(f"{name}\n")
    return Model(name)


NAMES = {"load": load, "samplers": lambda: [SamplerInfo()], "models": lambda: [ModelInfo()]}


def environment(**more: str) -> dict:
    """For a process that runs the command from this source tree."""
    source = str(Path(unnoise.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": source, "PYTHONUTF8": "1", **more}


if __name__ == "__main__":
    vars(unnoise).update(NAMES)
    from unnoise.cli import main

    main()
