"""The record that a picture carries: its request for one picture with every effective setting, and what made it.

The same JSON is a line of a batch, so `request_of` reads both. Pictures and networks are named by the paths that were given, with ten
digits of a picture's sha256; what came from no file is named by its hash alone, and has to be given again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unnoise.pipeline import adapters, inputs
from unnoise.pipeline.inputs import Control
from unnoise.pipeline.job import Job
from unnoise.pipeline.lines import request_of as request_of
from unnoise.pipeline.request import Request

PICTURES = ("image", "mask_image")
PER_PICTURE = ("prompt", "negative_prompt", "seed", "class_labels")
UNRECORDED = {*PER_PICTURE, "num_images_per_prompt", "output_type"}


def records(job: Job, asked: Request) -> list[dict[str, Any]]:
    """Return the request of each picture, ready for JSON. asked: the request as it was given, with paths and not objects."""
    settings = {
        "sampler": job.sampler,
        "spacing": job.spacing,
        "num_inference_steps": job.steps,
        "guidance_scale": job.guidance_scale,
        "guidance_interval": list(job.guidance_interval),
        "width": job.width,
        "height": job.height,
    }
    plain = {name: to_json(name, value) for name, value in asked.fields().items() if name not in UNRECORDED}
    common = {
        **plain,
        **settings,
        **({"strength": job.strength} if asked.image is not None and job.request.denoising_start is None else {}),
    }
    one_each = {name: plain[name] for name in PICTURES if isinstance(plain.get(name), list) and len(plain[name]) > 1}
    rows = zip(job.prompts, job.negative_prompts, job.seeds, job.labels, strict=True)
    return [
        {"prompt": prompt, "negative_prompt": negative, "seed": seed, **({} if label is None else {"class_labels": label}), **common}
        | {name: several[i] for name, several in one_each.items()}
        for i, (prompt, negative, seed, label) in enumerate(rows)
    ]


def to_json(name: str, value: Any) -> Any:
    """Return one field of a request as JSON holds it."""
    if name == "latents" or (name in PICTURES and isinstance(value, Tensor)):
        return {"sha256": inputs.digest(value)}
    if name in PICTURES:
        return inputs.to_json(value)
    if name == "control":
        controls = [one if isinstance(one, Control) else inputs.control_from_json(one) for one in _several(value)]
        return [inputs.control_to_json(one) for one in controls]
    if name in ("refiner", "classifier"):
        return str(value) if isinstance(value, str | Path) else str(getattr(value, "name", None) or getattr(value, "path", ""))
    if name == "lora":
        return [[str(getattr(file, "path", file)), scale] for file, scale in adapters.pairs(value)]
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]
