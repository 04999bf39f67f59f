"""One request for pictures, checked: every default filled in, one prompt and one seed a picture. It holds no tensor."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from unnoise.diffusion import grids
from unnoise.diffusion.grids import GRIDS
from unnoise.diffusion.noise import MAX_SEED
from unnoise.diffusion.sampling import default_spacing
from unnoise.diffusion.solvers import SOLVERS, solver
from unnoise.errors import ArgumentError, UnknownName
from unnoise.families.spec import ModelSpec
from unnoise.prompts import loras

OUTPUT_TYPES = ("pil", "numpy", "pt", "latent")
SAFETY = ("black", "blur", "flag", "off")  # what becomes of a picture that the safety checker flags
ARGUMENTS = (  # of `generate`; a test compares them with its signature
    "prompt",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "guidance_interval",
    "sampler",
    "sampler_options",
    "spacing",
    "spacing_options",
    "height",
    "width",
    "num_images_per_prompt",
    "seed",
    "latents",
    "output_type",
    "image",
    "strength",
    "mask_image",
    "control",
    "class_labels",
    "classifier",
    "classifier_scale",
    "skip_guidance_layers",
    "skip_layer_guidance_scale",
    "skip_layer_guidance_start",
    "skip_layer_guidance_stop",
    "clip_skip",
    "original_size",
    "crops_coords_top_left",
    "target_size",
    "aesthetic_score",
    "negative_aesthetic_score",
    "denoising_start",
    "denoising_end",
    "max_sequence_length",
    "prompt_weights",
    "refiner",
    "lora",
    "safety",
)
MAX_STEPS = 1000
MAX_SIDE = 2048
MAX_PICTURES = 1024


@dataclass(frozen=True)
class Request:
    """What to make. The tuples have one entry a picture."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]  # None: none at all, which SDXL tells from an empty one
    seeds: tuple[int, ...]
    sampler: str
    sampler_options: tuple[tuple[str, Any], ...]
    spacing: str | None
    spacing_options: tuple[tuple[str, Any], ...]
    steps: int
    guidance_scale: float
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    height: int
    width: int
    output_type: str
    labels: tuple[int | None, ...]
    more: tuple[tuple[str, Any], ...] = ()  # arguments that are not at their defaults, by the names of `generate`

    def get(self, name: str) -> Any:
        """An argument of `MORE`."""
        return dict(self.more).get(name, MORE[name])

    def settings(self) -> dict[str, Any]:
        """What all pictures of the request share, by the names of `generate`; options that are off are left out."""
        optional = {
            "sampler_options": dict(self.sampler_options) or None,
            "spacing_options": dict(self.spacing_options) or None,
            "guidance_rescale": self.guidance_rescale or None,
            **dict(self.more),
        }
        kept = {key: value for key, value in optional.items() if value is not None}
        plain = ("sampler", "spacing", "steps", "guidance_scale", "width", "height")
        return {**{name: getattr(self, name) for name in plain}, "guidance_interval": list(self.guidance_interval), **kept}


# What is recorded only where it differs: the defaults.
MORE: dict[str, Any] = {
    "strength": None,  # 1 with a mask, else 0.8
    "classifier_scale": 1.0,
    "skip_guidance_layers": None,
    "skip_layer_guidance_scale": 2.5,
    "skip_layer_guidance_start": 0.01,
    "skip_layer_guidance_stop": 0.2,
    "clip_skip": 0,
    "original_size": None,
    "crops_coords_top_left": (0, 0),
    "target_size": None,
    "aesthetic_score": 6.0,
    "negative_aesthetic_score": 2.5,
    "denoising_start": None,
    "denoising_end": None,
    "max_sequence_length": None,
    "prompt_weights": True,
    "safety": "black",
}

PAIRS = ("original_size", "crops_coords_top_left", "target_size")  # whole numbers, the vertical one first

# The kinds of conditioning that read an argument, and how the refusal names their models; all others read what is not here.
_CLIPS, _SIZED, _TEXTS = ("clip", "clip_penultimate", "sdxl", "refiner", "sd3"), ("sdxl", "refiner"), ("draft", "bert")
READ_BY: dict[str, tuple[tuple[str, ...], str]] = {
    "aesthetic_score": (("refiner",), "SDXL's refiner"),
    "negative_aesthetic_score": (("refiner",), "SDXL's refiner"),
    "original_size": (_SIZED, "SDXL and its refiner"),
    "crops_coords_top_left": (_SIZED, "SDXL and its refiner"),
    "target_size": (_SIZED, "SDXL and its refiner"),
    "max_sequence_length": (("sd3",), "Stable Diffusion 3"),
    "clip_skip": (_CLIPS, "Stable Diffusion 1, 2, 3 and SDXL"),
    "negative_prompt": ((*_CLIPS, *_TEXTS), "models of text"),
    "guidance_scale": ((*_CLIPS, *_TEXTS, "labels", "label_tokens"), "models of text or classes"),
}


def request(
    spec: ModelSpec,
    *,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    num_images_per_prompt: int,
    class_labels: int | Sequence[int] | None,
    seed: int | None,
    unknown: dict[str, Any],
    **settings: Any,
) -> Request:
    """Check everything that can be checked before the model runs. Raises ArgumentError or UnknownName, one line each."""
    for name in unknown:
        raise UnknownName("argument", name, ARGUMENTS)
    classifier = settings.pop("classifier", None)
    labels = _labels(spec, class_labels, _classes(spec, classifier))
    prompts = _prompts(spec, prompt, len(labels))
    negatives = (None,) if negative_prompt is None else _texts("negative_prompt", negative_prompt)
    for name, given in (("texts as negative_prompt", negatives), ("class_labels", labels)):
        if len(given) not in (1, len(prompts)):
            raise ArgumentError(f"got {len(given)} {name} for {len(prompts)} prompts: expected one, or one each")
    if spec.guidance_distilled and any(negatives):
        raise ArgumentError(f"got negative_prompt {negative_prompt!r}: guidance was distilled into {spec.name}, leave it out")
    n = _whole("num_images_per_prompt", num_images_per_prompt, 1, MAX_PICTURES)
    columns = [column * (len(prompts) // len(column)) for column in (prompts, negatives, labels)]
    texts, negative, classes = (tuple(value for value in column for _ in range(n)) for column in columns)
    more = {name: settings.pop(name) for name in MORE if name in settings}
    more["skip_guidance_layers"] = _layers(spec, more["skip_guidance_layers"])
    for name, given in (("prompt", texts), ("negative_prompt", negative)):
        _tagless(name, given if more.get("prompt_weights") else ())
    checked = {**_settings(spec, **settings), "more": _more(more)}
    _read(spec, dict(checked["more"]), any(negatives) and negative_prompt, checked["guidance_scale"], classifier is not None)
    return Request(texts, negative, _seeds(seed, len(texts)), labels=classes, **checked)


def _prompts(spec: ModelSpec, prompt: str | Sequence[str] | None, pictures: int) -> tuple[str, ...]:
    """Models without text take no prompt; the number of labels says how many pictures."""
    if spec.conditioning not in ("labels", "label_tokens", "none"):
        return _texts("prompt", prompt)
    if prompt not in (None, ""):
        raise ArgumentError(f"got prompt {prompt!r}: {spec.name} knows no text, use class_labels or leave the prompt out")
    return ("",) * pictures


def _read(spec: ModelSpec, more: dict[str, Any], negative: Any, scale: float, classified: bool) -> None:
    """Refuses what the model would not read. more: what is not at its default."""
    told = {**more, **({"negative_prompt": negative} if negative else {})}
    if scale not in (1, spec.defaults.guidance_scale) and not classified:
        told["guidance_scale"] = scale
    if spec.conditioning == "sdxl" and "denoising_end" in more:  # the refiner that takes over is told the scores
        told = {name: value for name, value in told.items() if "aesthetic" not in name}
    for name, (kinds, models) in READ_BY.items():
        if name in told and spec.conditioning not in kinds:
            raise ArgumentError(f"got {name} {told[name]!r}, which {spec.name} does not read: leave it out, it is for {models}")
    if "classifier_scale" in more and not classified:
        raise ArgumentError(f"got classifier_scale {more['classifier_scale']:g} without a classifier: leave it out, or give classifier=...")
    if "denoising_start" in more and "strength" in more:
        raise ArgumentError(f"got strength {more['strength']:g} with denoising_start, which says where to start: leave one of them out")


def _tagless(name: str, prompts: Iterable[str | None]) -> None:
    """A LoRA's tag names no file that the library could know of."""
    for tag in (tag for prompt in prompts for tag in loras(prompt or "")[1]):
        raise ArgumentError(f"got <lora:{tag.name}> in the {name}: leave it out and give lora=[(FILE, {tag.weight:g})]")


def _classes(spec: ModelSpec, classifier: Any) -> int:
    """How many labels there are to ask for: the model's own, or those that a classifier knows."""
    if spec.conditioning in ("labels", "label_tokens"):
        return spec.classes
    if classifier is None:
        return 0
    if not hasattr(classifier, "config"):
        raise ArgumentError(f"got classifier of type {type(classifier).__name__}: expected one that unnoise.load_classifier gave")
    return classifier.config.classes


def _labels(spec: ModelSpec, given: int | Sequence[int] | None, classes: int) -> tuple[int | None, ...]:
    if given is None:
        if classes:
            raise ArgumentError(f"got no class_labels: {spec.name} draws classes, such as class_labels=[0]")
        return (None,)
    if not classes:
        raise ArgumentError(f"got class_labels {given!r}: {spec.name} knows no classes")
    plain: Any = getattr(given, "tolist", lambda: given)()  # numpy's and torch's as Python's own
    labels = plain if isinstance(plain, Sequence) and not isinstance(plain, str) else [plain]
    if not labels:
        raise ArgumentError(f"got class_labels {given!r}: expected a whole number from 0 to {classes - 1}, or several")
    return tuple(_whole("class_labels", value, 0, classes - 1) for value in labels)


def _more(given: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Checked, and only those that differ from their defaults."""
    numbers = {
        "strength": (_number, 0, 1),
        "classifier_scale": (_number, 0, 1000),
        "skip_layer_guidance_scale": (_number, 0, 100),
        "skip_layer_guidance_start": (_number, 0, 1),
        "skip_layer_guidance_stop": (_number, 0, 1),
        "clip_skip": (_whole, 0, 100),
        "aesthetic_score": (_number, 0, 10),
        "negative_aesthetic_score": (_number, 0, 10),
        "denoising_start": (_number, 0, 1),
        "denoising_end": (_number, 0, 1),
        "max_sequence_length": (_whole, 1, 512),
    }
    _name("safety", given["safety"], SAFETY)
    _switch("prompt_weights", given["prompt_weights"])
    checked = dict(given)
    for name, value in given.items():
        if value is None and MORE[name] is None:
            continue
        if name in numbers:
            check, low, high = numbers[name]
            checked[name] = check(name, value, low, high)
        elif name in PAIRS and value is not None:
            checked[name] = _pair(name, value)
    return tuple((name, value) for name, value in checked.items() if value is not None and value != MORE[name])


def _layers(spec: ModelSpec, given: Any) -> list[int] | None:
    if given is None:
        return None
    if not spec.joint_blocks:
        raise ArgumentError(f"got skip_guidance_layers {given!r}: {spec.name} has none to skip, Stable Diffusion 3 has")
    if not isinstance(given, list | tuple) or not given:
        raise ArgumentError(f"got skip_guidance_layers {given!r}: expected a list of block numbers, such as [7, 8, 9]")
    return [_whole("skip_guidance_layers", layer, 0, spec.joint_blocks - 1) for layer in given]


def _switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ArgumentError(f"got {name} {value!r}: expected True or False")


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ArgumentError(f"got {name} {value!r}: expected two whole numbers, the vertical one first")
    first, second = (_whole(name, part, 0, 65536) for part in value)
    return first, second


def _settings(spec: ModelSpec, *, output_type: str, **asked: Any) -> dict[str, Any]:
    _name("output_type", output_type, OUTPUT_TYPES)
    steps = asked["num_inference_steps"]
    return {
        "output_type": output_type,
        "steps": _whole("num_inference_steps", spec.defaults.num_inference_steps if steps is None else steps, 1, MAX_STEPS),
        **_sampling(spec, **{key: asked[key] for key in ("sampler", "sampler_options", "spacing", "spacing_options")}),
        **_guidance(spec, **{key: asked[key] for key in ("guidance_scale", "guidance_rescale", "guidance_interval")}),
        **{name: _side(spec, name, asked[name]) for name in ("height", "width")},
    }


def _sampling(spec: ModelSpec, sampler: Any, sampler_options: Any, spacing: Any, spacing_options: Any) -> dict[str, Any]:
    defaults = spec.defaults
    sampler = defaults.sampler if sampler is None else _name("sampler", sampler, SOLVERS)
    if spacing is None:
        spacing = defaults.spacing if sampler == defaults.sampler else None
    else:
        _name("spacing", spacing, GRIDS)
    of_sampler, of_spacing = _options("sampler_options", sampler_options), _options("spacing_options", spacing_options)
    solver(sampler).with_options(of_sampler)
    if of_spacing:  # a schedule is built for them alone
        grids.check(default_spacing(spec.schedule.build(), sampler) if spacing is None else spacing, of_spacing)
    return {
        "sampler": sampler,
        "sampler_options": tuple(sorted(of_sampler.items())),
        "spacing": spacing,
        "spacing_options": tuple(sorted(of_spacing.items())),
    }


def _options(name: str, options: Any) -> dict[str, Any]:
    if options is not None and not isinstance(options, Mapping):
        raise ArgumentError(f"got {name} {options!r}: expected a dict such as {{'eta': 0.5}}")
    return {key: _plain(value) for key, value in (options or {}).items()}


def _plain(value: Any) -> Any:
    """Other libraries' numbers as Python's own, which JSON can hold."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _guidance(spec: ModelSpec, guidance_scale: Any, guidance_rescale: Any, guidance_interval: Any) -> dict[str, Any]:
    scale = spec.defaults.guidance_scale if guidance_scale is None else guidance_scale
    interval = spec.defaults.guidance_interval if guidance_interval is None else guidance_interval
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        raise ArgumentError(f"got guidance_interval {interval!r}: expected two shares of noise (low, high), each from 0 to 1")
    low, high = (_number("guidance_interval", end, 0, 1) for end in interval)
    if low >= high:
        raise ArgumentError(f"got guidance_interval {interval!r}: expected the lower share of noise first")
    return {
        "guidance_scale": _number("guidance_scale", scale, -100, 100),
        "guidance_rescale": _number("guidance_rescale", guidance_rescale, 0, 1),
        "guidance_interval": (low, high),
    }


def _name(kind: str, value: Any, known: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise UnknownName(kind, value, known)
    return value


def _texts(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else ()
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ArgumentError(f"got {name} {value!r}: expected a text or a list of texts")
    return texts


def _seeds(seed: int | None, count: int) -> tuple[int, ...]:
    if seed is None or seed == -1:
        seed = random.SystemRandom().randrange(2**32)
    first = _whole("seed", seed, 0, MAX_SEED - count)
    return tuple(range(first, first + count))


def _side(spec: ModelSpec, name: str, value: Any) -> int:
    multiple = spec.multiple
    side = _whole(name, spec.size if value is None else value, multiple, MAX_SIDE)
    if side % multiple:
        near = max(multiple, round(side / multiple) * multiple)
        raise ArgumentError(f"got {name} {side}: expected a multiple of {multiple}, such as {near}; this model was trained at {spec.size}")
    return side


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:  # numpy's integers are whole too
        raise ArgumentError(f"got {name} {value!r}: expected a whole number from {low} to {high}")
    return int(value)


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:  # NaN fails too
        raise ArgumentError(f"got {name} {value!r}: expected a number from {low:g} to {high:g}")
    return float(value)
