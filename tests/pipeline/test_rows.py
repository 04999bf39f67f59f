"""Unlike requests share every forward: each picture is bit-equal to the same request alone, whoever joins, leaves or fails beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unnoise
from pretend import cases, models
from unnoise.diffusion.sampling import Run, advance
from unnoise.pipeline.classifiers import ClassifierModel
from unnoise.pipeline.inputs import Control
from unnoise.pipeline.model import Model
from unnoise.pipeline.request import Request

LOG = logging.getLogger("rows")  # the figures, for `pytest -o log_cli=true --log-cli-level=INFO`
PICTURE, MASK = cases.picture(), cases.half()
TEXT = {"prompt": "a red apple"}


def _control(name: str, **settings: Any) -> Control:
    return Control(models.control(name), PICTURE, **settings)


def _classifier() -> ClassifierModel:
    return models.classifier()


# Eight requests a model, as unlike as its family allows; lambdas, for networks are made when a test runs.
UNLIKE: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "sd1": lambda: [
        TEXT | {"sampler": "euler", "num_inference_steps": 5, "guidance_scale": 7.0},
        TEXT | {"sampler": "heun", "num_inference_steps": 4, "guidance_scale": 1.0},
        TEXT | {"sampler": "dpmpp_2m", "num_inference_steps": 6, "guidance_scale": 0.0, "num_images_per_prompt": 2},
        TEXT | {"sampler": "ddim", "sampler_options": {"eta": 1.0}, "num_inference_steps": 5, "guidance_rescale": 0.7},
        TEXT | {"sampler": "dpmpp_sde", "num_inference_steps": 3, "guidance_interval": (0.3, 0.8), "control": _control("sd1", scale=0.7)},
        {
            "prompt": cases.LONG,
            "negative_prompt": "blurry",
            "num_inference_steps": 4,
            "control": _control("sd1 pooled", guess=True, end=0.6),
        },
        TEXT | {"image": PICTURE, "strength": 0.6, "num_inference_steps": 6, "sampler": "unipc"},
        TEXT | {"image": PICTURE, "mask_image": MASK, "num_inference_steps": 4, "clip_skip": 1},
    ],
    "sdxl": lambda: [
        TEXT | {"num_inference_steps": 4, "guidance_scale": 7.0},
        TEXT | {"sampler": "heun", "num_inference_steps": 3, "guidance_scale": 1.0},
        TEXT | {"num_inference_steps": 5, "guidance_scale": 0.0},
        TEXT | {"sampler": "lms", "num_inference_steps": 5, "guidance_rescale": 0.7, "original_size": (32, 32)},
        TEXT | {"num_inference_steps": 4, "guidance_interval": (0.2, 0.9), "control": _control("sdxl", scale=0.6)},
        {"prompt": cases.LONG, "negative_prompt": "blurry", "num_inference_steps": 4, "num_images_per_prompt": 2},
        TEXT | {"image": PICTURE, "strength": 0.5, "num_inference_steps": 6},
        TEXT | {"image": PICTURE, "mask_image": MASK, "num_inference_steps": 4, "sampler": "euler_ancestral"},
    ],
    "sd3.5-medium": lambda: [
        TEXT | {"num_inference_steps": 4, "guidance_scale": 7.0},
        TEXT | {"sampler": "heun", "num_inference_steps": 3, "guidance_scale": 1.0},
        TEXT | {"num_inference_steps": 5, "guidance_scale": 0.0},
        TEXT | {"num_inference_steps": 4, **cases.PULLED},
        TEXT | {"num_inference_steps": 4, "control": _control("sd3 joint", scale=0.6), **cases.PULLED},
        {"prompt": cases.LONG, "negative_prompt": "blurry", "num_inference_steps": 4, "control": _control("sd3 2b", start=0.3)},
        TEXT | {"image": PICTURE, "strength": 0.5, "num_inference_steps": 6, "guidance_rescale": 0.5},
        TEXT | {"image": PICTURE, "mask_image": MASK, "num_inference_steps": 4, "guidance_interval": (0.3, 1.0)},
    ],
    "dit-xl-2": lambda: [
        {"class_labels": 1, "num_inference_steps": 4, "guidance_scale": 7.0},
        {"class_labels": 2, "num_inference_steps": 3, "guidance_scale": 1.0, "sampler": "heun"},
        {"class_labels": 3, "num_inference_steps": 5, "guidance_scale": 0.0, "sampler": "dpmpp_2m"},
        {"class_labels": [4, 5], "num_inference_steps": 4, "guidance_rescale": 0.6, "sampler": "ddim"},
        {"class_labels": 6, "num_inference_steps": 4, "guidance_interval": (0.2, 0.8), "sampler": "euler"},
        {"class_labels": 7, "num_inference_steps": 6, "sampler": "er_sde"},
        {"class_labels": 8, "image": PICTURE, "strength": 0.5, "num_inference_steps": 6},
        {"class_labels": 9, "image": PICTURE, "mask_image": MASK, "num_inference_steps": 4},
    ],
    "adm-64": lambda: [
        {"class_labels": 1, "num_inference_steps": 4},
        {"class_labels": 2, "num_inference_steps": 3, "sampler": "heun"},
        {"class_labels": 3, "num_inference_steps": 5, "classifier": _shared_classifier(), "classifier_scale": 2.0},
        {"class_labels": [4, 5], "num_inference_steps": 4, "classifier": _shared_classifier(), "classifier_scale": 0.5, "sampler": "ddim"},
        {"class_labels": 6, "num_inference_steps": 4, "classifier": _classifier(), "sampler": "euler"},
        {"class_labels": 7, "num_inference_steps": 6, "sampler": "dpmpp_2m"},
        {"class_labels": 8, "image": PICTURE, "strength": 0.5, "num_inference_steps": 6},
        {"class_labels": 9, "image": PICTURE, "mask_image": MASK, "num_inference_steps": 4},
    ],
    "emoji": lambda: [
        TEXT | {"num_inference_steps": 4, "guidance_scale": 7.0},
        TEXT | {"sampler": "heun", "num_inference_steps": 3, "guidance_scale": 1.0},
        TEXT | {"num_inference_steps": 5, "guidance_scale": 0.0},
        TEXT | {"sampler": "dpmpp_2m", "num_inference_steps": 4, "guidance_rescale": 0.7},
        TEXT | {"sampler": "ddim", "sampler_options": {"eta": 1.0}, "num_inference_steps": 4, "guidance_interval": (0.2, 0.9)},
        {"prompt": ["파란 자동차", "a blue heart"], "negative_prompt": "red", "num_inference_steps": 4},
        TEXT | {"image": PICTURE, "strength": 0.5, "num_inference_steps": 6},
        TEXT | {"image": PICTURE, "mask_image": MASK, "num_inference_steps": 4},
    ],
}
_SHARED: list[ClassifierModel] = []


def _shared_classifier() -> ClassifierModel:
    """One classifier of two requests: their rows are joined by it."""
    if not _SHARED:
        _SHARED.append(_classifier())
    return _SHARED[0]


def started(model: Model, arguments: dict[str, Any], seed: int) -> Run:
    return model.start(model.resolve(Request(**arguments, seed=seed)))


@torch.no_grad()
def alone(model: Model, run: Run) -> tuple[Tensor, int]:
    """The last state of a run by itself, and how often it asked."""
    asked = 0
    while not run.done:
        (state,) = advance([run], model.denoiser)
        assert not isinstance(state, Exception), state
        asked += 1
    return run.state, asked


@dataclass
class Counted:
    """The model's denoiser, and how often it was asked."""

    model: Model
    calls: int = 0
    times_on_cpu = True

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.model.denoiser(*arguments)


@torch.no_grad()
def together(runs: list[Run], denoiser: Any) -> tuple[list[Tensor | Exception], int]:
    """The last states of runs, one of which joins at every step; and how many forwards it took."""
    ended: list[Tensor | Exception | None] = [None] * len(runs)
    steps = 0
    while any(end is None for end in ended):
        here = [i for i, end in enumerate(ended) if end is None and i <= steps]
        for i, state in zip(here, advance([runs[i] for i in here], denoiser), strict=True):
            if isinstance(state, Exception):
                ended[i] = state
            elif runs[i].done:
                ended[i] = runs[i].state
        steps += 1
    return ended, steps  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_requests_share_every_forward_and_keep_their_bits(name: str):
    model, requests = models.model(name), UNLIKE[name]()
    expected = [alone(model, started(model, request, seed)) for seed, request in enumerate(requests)]
    counted = Counted(model)
    ended, steps = together([started(model, request, seed) for seed, request in enumerate(requests)], counted)
    longest = max(joined + asked for joined, (_, asked) in enumerate(expected))
    LOG.info("%s: %d forwards for %d questions of 8 requests", name, counted.calls, sum(asked for _, asked in expected))
    assert counted.calls == steps == longest
    for i, (end, (state, _)) in enumerate(zip(ended, expected, strict=True)):
        assert isinstance(end, Tensor), end
        assert torch.equal(end, state), f"request {i} differs by {(end - state).abs().max():.1e}"


@pytest.mark.parametrize("name", ["sd1", "sd3.5-medium", "emoji"])
def test_a_forward_that_fails_fails_its_own_request_only(name: str):
    """The network breaks wherever it sees the marked request, alone or among others; so does one solver's answer."""
    model, requests = models.model(name), UNLIKE[name]()
    expected = [alone(model, started(model, request, seed))[0] for seed, request in enumerate(requests)]
    runs = [started(model, request, seed) for seed, request in enumerate(requests)]
    marked = runs[2].x[0].clone()

    class Breaks(Counted):
        def __call__(self, x: Tensor, t: Tensor, ask: Any) -> Any:
            if self.calls == 4 or any(torch.equal(row, marked) for row in x):
                self.calls += self.calls == 4
                raise torch.OutOfMemoryError("injected")
            return super().__call__(x, t, ask)

    def out_of_memory(estimate: Any) -> Any:
        raise MemoryError("injected")

    runs[5].answer = out_of_memory  # pyright: ignore[reportAttributeAccessIssue]
    ended, _ = together(runs, Breaks(model))
    assert isinstance(ended[2], torch.OutOfMemoryError) and isinstance(ended[5], MemoryError)
    for i in {*range(len(requests))} - {2, 5}:
        end = ended[i]
        assert isinstance(end, Tensor) and torch.equal(end, expected[i])


@pytest.mark.parametrize("name", ["sd1", "adm-64", "emoji"])
def test_a_run_is_saved_and_continued_at_any_step(name: str):
    model, requests = models.model(name), UNLIKE[name]()
    with torch.no_grad():
        for seed, request in enumerate(requests):
            expected, asked = alone(model, started(model, request, seed))
            for stop in range(asked):
                run = started(model, request, seed)
                for _ in range(stop):
                    advance([run], model.denoiser)
                fresh = started(model, request, seed)
                resumed = Run.resumed(run.snapshot(), fresh.plan, fresh.noise, fresh.cond)  # pyright: ignore[reportArgumentType]
                assert torch.equal(alone(model, resumed)[0], expected), (seed, stop)


def test_hints_join_by_their_net_and_not_by_their_position():
    """Request B is not drawn under A's ControlNet, although both are the first of their request."""
    model = models.model("sd1")
    nets = [_control("sd1"), _control("sd1 pooled")]
    requests = [TEXT | {"num_inference_steps": 3, "control": net} for net in nets]
    expected = [alone(model, started(model, request, 1))[0] for request in requests]
    ended, _ = together([started(model, request, 1) for request in requests], model.denoiser)
    assert torch.equal(ended[0], expected[0]) and torch.equal(ended[1], expected[1])  # pyright: ignore[reportArgumentType]
    assert not torch.equal(*expected)


def test_a_mask_stays_with_its_picture():
    """One picture is painted into beside two that are new: nothing of it is seen in them."""
    model = models.model("ddpm-cifar")
    sides = {"height": 16, "width": 16, "num_inference_steps": 3}
    requests = [sides | {"image": PICTURE, "mask_image": MASK}, sides | {"num_images_per_prompt": 2}]
    expected = [alone(model, started(model, request, 1))[0] for request in requests]
    ended, _ = together([started(model, request, 1) for request in requests], model.denoiser)
    for end, state in zip(ended, expected, strict=True):
        assert isinstance(end, Tensor) and torch.equal(end, state)


def test_generate_is_the_same_engine_and_few_frames_above_the_network(monkeypatch: pytest.MonkeyPatch):
    """From `generate` to the network's `forward` there are at most six frames of the package."""
    import sys

    model, depths = unnoise.load("emoji", device="cpu"), []
    forward = nn.Module._call_impl

    def counted(self: nn.Module, *arguments: Any, **more: Any) -> Any:
        if self is model.networks["network"]:
            frame, names = sys._getframe(1), []
            while frame is not None:
                if "unnoise" in frame.f_code.co_filename and "tests" not in frame.f_code.co_filename:
                    names.append(frame.f_code.co_name)
                frame = frame.f_back
            depths.append(names)
        return forward(self, *arguments, **more)

    monkeypatch.setattr(nn.Module, "__call__", counted)
    model.generate("a red apple", num_inference_steps=2, seed=1)
    assert {len(names) for names in depths} == {6}, depths[0]
    assert depths[0][-1] == "generate" and depths[0][0] == "output"
