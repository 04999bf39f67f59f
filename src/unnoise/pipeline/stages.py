"""What stands behind the steps: latents become pictures, the safety checker looks at them, and a second model may take over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unnoise.errors import ArgumentError
from unnoise.families.spec import ModelSpec
from unnoise.images import pixels
from unnoise.images import safety as checking
from unnoise.images.safety import SafetyChecker
from unnoise.pipeline.conditionings import CONDITIONINGS
from unnoise.pipeline.inputs import Inputs
from unnoise.pipeline.job import Job
from unnoise.pipeline.request import Request
from unnoise.pipeline.start import Parts
from unnoise.runtime import first_stage

# What the first of two models takes alone
OF_BASE = ("latents", "control", "image", "mask_image", "denoising_end", "strength", "refiner", "lora")


@dataclass(frozen=True)
class Result:
    """Pictures, and what made each of them."""

    images: list[Image.Image] | np.ndarray | Tensor  # by output_type; numpy (b, h, w, 3) and pt (b, 3, h, w) in 0..1
    latents: Tensor  # (b, c, h, w) the final state
    seeds: list[int]
    metadata: list[dict[str, Any]]  # one a picture; `records.request_of` reads the request that makes the picture again


class AnyModel(Protocol):
    """As much of a `Model` as the stages around the steps use."""

    spec: ModelSpec

    @property
    def name(self) -> str: ...

    def answer(self, asked: Request) -> Iterator[Progress]: ...

    def resolve(self, asked: Request) -> Job: ...

    def preview(self, x0: Tensor) -> list[Image.Image]: ...

    def finish(self, latents: Tensor, job: Job, given: Inputs, asked: Request | None = None) -> Result: ...

    def describe(self, job: Job, asked: Request | None = None) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Progress:
    """A step of `Model.stream`, done."""

    step: int  # steps taken
    steps: int
    latents: Tensor  # (b, c, h, w) the current state
    x0: Tensor  # the current estimate of the picture
    asked: Request
    job: Job
    model: AnyModel
    inputs: Inputs
    base: Progress | None = None  # of a refiner's step: the last of the model before it, which the record is of

    def preview(self) -> list[Image.Image]:
        """Return the pictures as the model sees them now: a cheap look at latents, the pictures themselves where it works on pixels."""
        return self.model.preview(self.x0)

    def result(self) -> Result:
        """Return what `generate` returns; meant for the last step."""
        made = self.model.finish(self.latents, self.job, self.inputs, self.asked)
        if self.base is None:
            return made
        kept = []
        for record, own in zip(self.base.model.describe(self.base.job, self.asked), made.metadata, strict=True):
            said = {key: own[key] for key in ("decoded_in", "safety_checker") if key in own}
            kept.append({**record, **said, "refiner": self.model.name})
        return replace(made, metadata=kept)


@torch.no_grad()
def decode(parts: Parts, latents: Tensor) -> first_stage.Decoded:
    """Turn the final state into pictures (b, 3, h, w) about -1..1. Raises NonFiniteError."""
    if parts.spec.first_stage:
        return parts.stage().decode(latents)
    return first_stage.Decoded(latents, parts.networks.placement.dtype)


def finished(
    parts: Parts, checker: SafetyChecker | None, latents: Tensor, job: Job, given: Inputs, records: list[dict[str, Any]]
) -> Result:
    """Make of latents what was asked for; what the mask leaves alone is the image's own to the byte."""
    output_type = job.request.output_type
    if output_type == "latent":
        return Result(latents, latents, list(job.seeds), records)
    decoded = decode(parts, latents)
    if decoded.dtype != parts.networks.placement.dtype:
        records = [{**record, "decoded_in": str(decoded.dtype).removeprefix("torch.")} for record in records]
    exact = pixels.unit(decoded.pictures)
    pictures = [pixels.picture(row) for row in exact]
    if given.mask is not None and given.image is not None:
        pictures = [pixels.composed(*row) for row in zip(pictures, given.image, given.mask, strict=True)]
    pictures, records = judged(parts, checker, pictures, job, records)
    if output_type == "pil":
        return Result(pictures, latents, list(job.seeds), records)
    if given.mask is not None or any(record.get("safety_checker") == "flagged" for record in records):
        exact = torch.stack([pixels.tensor(picture) for picture in pictures])
    images = exact if output_type == "pt" else exact.permute(0, 2, 3, 1).cpu().numpy()
    return Result(images, latents, list(job.seeds), records)


def judged(
    parts: Parts, checker: SafetyChecker | None, pictures: list[Image.Image], job: Job, records: list[dict[str, Any]]
) -> tuple[list[Image.Image], list[dict[str, Any]]]:
    """Ask the safety checker about every photograph; where its weights are not there, the record says so."""
    if not CONDITIONINGS[parts.spec.conditioning].photographs or job.request.safety == "off":
        return pictures, records
    if checker is None:
        return pictures, [{**record, "safety_checker": "absent"} for record in records]
    verdicts = checker(pictures)
    marks = ["flagged" if verdict.flagged else "passed" for verdict in verdicts]
    marked = [{**record, "safety_checker": mark} for record, mark in zip(records, marks, strict=True)]
    return checking.act(job.request.safety, pictures, verdicts), marked


def refined(base: AnyModel, refiner: Any, request: Request) -> Iterator[Progress]:
    """Take the first steps by one model, the last by another of the same latents (Podell et al. 2023, section 2.5).

    Raises ArgumentError before anything runs.
    """
    if not isinstance(refiner, type(base)):
        raise ArgumentError(f"got refiner of type {type(refiner).__name__}: expected a model that unnoise.load gave")
    share = 0.8 if request.denoising_end is None else request.denoising_end
    stages = [model.spec.first_stage for model in (base, refiner)]
    if None in stages or len({(stage.latent_channels, stage.scale, stage.shift) for stage in stages if stage}) > 1:
        raise ArgumentError(f"got {refiner.spec.name} as refiner of {base.spec.name}: expected a model of the same latents")
    if request.mask_image is not None or not 0 < share < 1:
        raise ArgumentError(f"got refiner with mask_image or denoising_end {share!r}: expected no mask, and a share between 0 and 1")
    first = base.answer(request.changed(refiner=None, denoising_end=share, output_type="latent"))
    second = Request(**{name: value for name, value in request.fields().items() if name not in OF_BASE}, denoising_start=share)
    refiner.resolve(second)
    return _handed_over(first, refiner, second, request)


def _handed_over(first: Iterator[Progress], refiner: AnyModel, second: Request, request: Request) -> Iterator[Progress]:
    last = None
    for last in first:
        yield last
    if last is None:
        raise ArgumentError("got a refiner whose base takes no step: expected a larger denoising_end")
    job = last.job
    asked = second.changed(
        seed=job.seeds[0],
        image=last.latents,
        height=job.height,
        width=job.width,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance_scale,
        sampler=job.sampler,
        spacing=job.spacing,
    )
    for state in refiner.answer(asked):
        yield replace(state, base=last, asked=request)
