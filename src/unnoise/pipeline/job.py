"""A request for one model: every default filled in, one prompt, label and seed a picture, and every refusal that needs the model."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from unnoise.diffusion import grids
from unnoise.diffusion.grids import GRIDS
from unnoise.diffusion.sampling import default_spacing
from unnoise.diffusion.solvers import SOLVERS, solver
from unnoise.errors import ArgumentError, UnknownName
from unnoise.families.spec import ModelSpec
from unnoise.pipeline.conditionings import CONDITIONINGS, readers
from unnoise.pipeline.prompts import loras
from unnoise.pipeline.request import MAX_SEED, MAX_SIDE, Request

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What to make with one model. The tuples have one entry a picture. It holds no tensor of its own."""

    request: Request
    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]  # None: none at all, which SDXL tells from an empty one
    seeds: tuple[int, ...]
    labels: tuple[int | None, ...]
    sampler: str
    sampler_options: tuple[tuple[str, Any], ...]
    spacing: str | None
    spacing_options: tuple[tuple[str, Any], ...]
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    height: int
    width: int
    strength: float  # of a picture to start from

    def __len__(self) -> int:
        return len(self.prompts)


def resolve(request: Request, spec: ModelSpec) -> Job:
    """Fill in a model's defaults. The classifier of the request is an object. Raises ArgumentError or UnknownName, one line each."""
    classes = _classes(request, spec)
    labels = _labels(request, spec, classes)
    prompts = _prompts(request, spec, len(labels))
    negatives = (None,) if request.negative_prompt is None else _tuple(request.negative_prompt)
    for name, column in (("texts as negative_prompt", negatives), ("class_labels", labels)):
        if len(column) not in (1, len(prompts)):
            raise ArgumentError(f"got {len(column)} {name} for {len(prompts)} prompts: expected one, or one each")
    each, pictures = request.num_images_per_prompt, len(prompts) * request.num_images_per_prompt
    texts, negative, classes_of = _rows(prompts, pictures, each), _rows(negatives, pictures, each), _rows(labels, pictures, each)
    scale = spec.defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    _check_read(request, spec, scale)
    _check_texts(request, spec, texts, negative)
    _check_skipped(request, spec)
    sampler, spacing = _sampling(request, spec)
    return Job(
        request=request,
        prompts=texts,
        negative_prompts=negative,
        seeds=_seeds(request.seed, len(texts)),
        labels=classes_of,
        sampler=sampler,
        sampler_options=tuple(sorted((request.sampler_options or {}).items())),
        spacing=spacing,
        spacing_options=tuple(sorted((request.spacing_options or {}).items())),
        steps=spec.defaults.num_inference_steps if request.num_inference_steps is None else request.num_inference_steps,
        guidance_scale=scale,
        guidance_interval=request.guidance_interval or spec.defaults.guidance_interval,
        height=_side(spec, "height", request.height),
        width=_side(spec, "width", request.width),
        strength=_strength(request),
    )


def _rows(column: tuple[T, ...], pictures: int, each: int) -> tuple[T, ...]:
    """One entry a picture: `each` of one prompt stand together, and a single entry is that of all."""
    repeated = tuple(value for value in column for _ in range(each))
    return repeated * (pictures // len(repeated))


def _tuple(texts: str | tuple[str, ...]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else texts


def _prompts(request: Request, spec: ModelSpec, pictures: int) -> tuple[str, ...]:
    """Models without text take no prompt; the number of labels says how many pictures."""
    if CONDITIONINGS[spec.conditioning].takes == "text":
        if request.prompt is None:
            raise ArgumentError("got prompt None: expected a text or a list of texts")
        return _tuple(request.prompt)
    if request.prompt not in (None, ""):
        raise ArgumentError(f"got prompt {request.prompt!r}: {spec.name} knows no text, use class_labels or leave the prompt out")
    return ("",) * pictures


def _check_texts(request: Request, spec: ModelSpec, texts: Iterable[str], negatives: Sequence[str | None]) -> None:
    if spec.guidance_distilled and any(negatives):
        raise ArgumentError(f"got negative_prompt {request.negative_prompt!r}: guidance was distilled into {spec.name}, leave it out")
    for name, column in (("prompt", texts), ("negative_prompt", negatives)):
        for tag in (tag for text in column if request.prompt_weights for tag in loras(text or "")[1]):
            raise ArgumentError(f"got <lora:{tag.name}> in the {name}: leave it out and give lora=[(FILE, {tag.weight:g})]")


def _check_read(request: Request, spec: ModelSpec, scale: float) -> None:
    """Refuse what the model would not read."""
    asked = request.fields()
    reads = CONDITIONINGS[spec.conditioning].reads
    if not any(_tuple(request.negative_prompt or "")):
        asked.pop("negative_prompt", None)
    if scale in (1, spec.defaults.guidance_scale) or request.classifier is not None:
        asked.pop("guidance_scale", None)
    refined = request.denoising_end is not None or request.refiner is not None
    for name in dict.fromkeys(name for kind in CONDITIONINGS.values() for name in sorted(kind.reads)):
        handed_on = refined and "aesthetic" in name  # the refiner that takes over is told the scores
        if name in asked and name not in reads and not handed_on:
            value = asked[name]
            raise ArgumentError(f"got {name} {value!r}, which {spec.name} does not read: leave it out, it is for {readers(name)}")


def _check_skipped(request: Request, spec: ModelSpec) -> None:
    layers = request.skip_guidance_layers
    if layers is None:
        return
    if not spec.joint_blocks:
        raise ArgumentError(f"got skip_guidance_layers {list(layers)}: {spec.name} has none to skip, Stable Diffusion 3 has")
    for layer in layers:
        _whole("skip_guidance_layers", layer, 0, spec.joint_blocks - 1)


def _classes(request: Request, spec: ModelSpec) -> int:
    """Count the labels that there are to ask for: the model's own, or those that a classifier knows."""
    if CONDITIONINGS[spec.conditioning].takes == "label":
        return spec.classes
    if request.classifier is None:
        return 0
    if not hasattr(request.classifier, "config"):
        raise ArgumentError(f"got classifier of type {type(request.classifier).__name__}: expected one that unnoise.load_classifier gave")
    return request.classifier.config.classes


def _labels(request: Request, spec: ModelSpec, classes: int) -> tuple[int | None, ...]:
    value = request.class_labels
    if value is None:
        if classes:
            raise ArgumentError(f"got no class_labels: {spec.name} draws classes, such as class_labels=[0]")
        return (None,)
    if not classes:
        raise ArgumentError(f"got class_labels {_listed(value)!r}: {spec.name} knows no classes")
    labels = value if isinstance(value, tuple) else (value,)
    if not labels:
        raise ArgumentError(f"got class_labels []: expected a whole number from 0 to {classes - 1}, or several")
    return tuple(_whole("class_labels", label, 0, classes - 1) for label in labels)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _sampling(request: Request, spec: ModelSpec) -> tuple[str, str | None]:
    """The names of sampler and spacing; a spacing is the model's own for its own sampler only."""
    defaults = spec.defaults
    sampler = defaults.sampler if request.sampler is None else _name("sampler", request.sampler, SOLVERS)
    if request.spacing is None:
        spacing = defaults.spacing if sampler == defaults.sampler else None
    else:
        spacing = _name("spacing", request.spacing, GRIDS)
    solver(sampler).with_options(request.sampler_options or {})
    if request.spacing_options:  # a schedule is built for them alone
        grids.check(default_spacing(spec.schedule.build(), sampler) if spacing is None else spacing, request.spacing_options)
    return sampler, spacing


def _strength(request: Request) -> float:
    if request.strength is not None:
        return request.strength
    return 0.8 if request.mask_image is None else 1.0


def _seeds(seed: int | None, count: int) -> tuple[int, ...]:
    if seed is None or seed == -1:
        seed = random.SystemRandom().randrange(2**32)
    first = _whole("seed", seed, 0, MAX_SEED - count)
    return tuple(range(first, first + count))


def _side(spec: ModelSpec, name: str, value: int | None) -> int:
    multiple = spec.multiple
    side = _whole(name, spec.size if value is None else value, multiple, MAX_SIDE)
    if side % multiple:
        near = max(multiple, round(side / multiple) * multiple)
        raise ArgumentError(f"got {name} {side}: expected a multiple of {multiple}, such as {near}; this model was trained at {spec.size}")
    return side


def _name(kind: str, value: str, known: Iterable[str]) -> str:
    if value not in known:
        raise UnknownName(kind, value, known)
    return value


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ArgumentError(f"got {name} {value!r}: expected a whole number from {low} to {high}")
    return value
