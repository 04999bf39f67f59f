"""A request for pictures: every field once, with its type, range, default and a line of help.

The library, the command, a line of JSONL and the record in a picture all read and write this one class. It imports no torch, holds no
tensor of its own, and needs no model: what a model says to a request is in `job.resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from unnoise.errors import ArgumentError, UnknownName

OutputType = Literal["pil", "numpy", "pt", "latent"]
Safety = Literal["black", "blur", "flag", "off"]
MAX_STEPS = 1000
MAX_SIDE = 2048
MAX_PICTURES = 1024
MAX_SEED = 2**63 - 1


def _plain(value: Any) -> Any:
    """Other libraries' numbers as Python's own, which JSON can hold; a bool is no number."""
    if isinstance(value, bool):
        return str(value) if value else "False"  # refused by every number below, as it was typed
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _texts(value: Any) -> Any:
    """A list of texts as a tuple."""
    if value is None or isinstance(value, str):
        return value
    texts = tuple(value) if isinstance(value, Sequence) else ()
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("expected a text or a list of texts")
    return texts


def _options(value: Any) -> Any:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError("expected a dict such as {'eta': 0.5}")
    return None if not value else {key: option if isinstance(option, bool) else _plain(option) for key, option in value.items()}


def _pair(value: Any) -> Any:
    if value is not None and (not isinstance(value, list | tuple) or len(value) != 2):
        raise ValueError("expected two whole numbers, the vertical one first")
    return None if value is None else tuple(value)


def _interval(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("expected two shares of noise (low, high), each from 0 to 1")
    low, high = (_plain(end) for end in value)
    for end in (low, high):
        if not isinstance(end, int | float) or not 0 <= end <= 1:
            raise ArgumentError(f"got guidance_interval {end!r}: expected a number from 0 to 1")
    if low >= high:
        raise ValueError("expected the lower share of noise first")
    return float(low), float(high)


def _labels(value: Any) -> Any:
    """numpy's and torch's as Python's own; one label as it is, several as a tuple."""
    plain = getattr(value, "tolist", lambda: value)()
    return tuple(plain) if isinstance(plain, Sequence) and not isinstance(plain, str) else plain


def _layers(value: Any) -> Any:
    if value is not None and (not isinstance(value, list | tuple) or not value):
        raise ValueError("expected a list of block numbers, such as [7, 8, 9]")
    return None if value is None else tuple(value)


def _several(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Whole = Annotated[int, BeforeValidator(_plain)]
Number = Annotated[float, BeforeValidator(_plain)]
Texts = Annotated[str | tuple[str, ...] | None, BeforeValidator(_texts)]
Options = Annotated[dict[str, Any] | None, BeforeValidator(_options)]
Pair = Annotated[tuple[Annotated[Whole, Field(ge=0, le=65536)], Annotated[Whole, Field(ge=0, le=65536)]] | None, BeforeValidator(_pair)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_interval)]
Labels = Annotated[Any, BeforeValidator(_labels)]
Layers = Annotated[tuple[Whole, ...] | None, BeforeValidator(_layers)]
Object = Annotated[Any, BeforeValidator(_several)]  # an object in Python; a path, bytes or a hash in JSON: see `inputs.py`


def _whole(default: int | None, low: int, high: int, text: str) -> Any:
    return Field(default=default, ge=low, le=high, description=text)


def _number(default: float | None, low: float, high: float, text: str) -> Any:
    return Field(default=default, ge=low, le=high, description=text)


def _field(default: Any, text: str) -> Any:
    return Field(default=default, description=text)


class Request(BaseModel):
    """What to make. None is the model's own default. Raises UnknownName for a field that does not exist, ArgumentError for a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, defer_build=True)

    prompt: Texts = _field(None, "What to draw: a text, or several.")
    negative_prompt: Texts = _field(None, "What to keep out.")
    num_inference_steps: Whole | None = _whole(None, 1, MAX_STEPS, "Steps of the sampler.")
    guidance_scale: Number | None = _number(None, -100, 100, "How strongly to follow the prompt; 1 is none, 0 ignores it.")
    guidance_rescale: Number = _number(0.0, 0, 1, "0 to 1: brings the contrast of strong guidance back.")
    guidance_interval: Interval = _field(None, "Shares of noise, 0 clean and 1 pure noise, between which guidance acts.")
    sampler: str | None = _field(None, "A name that `unnoise samplers` lists.")
    sampler_options: Options = _field(None, "Options of the sampler, such as eta of ddim.")
    spacing: str | None = _field(None, "How the steps lie in time.")
    spacing_options: Options = _field(None, "Options of the spacing, such as ending.")
    height: Whole | None = _whole(None, 1, MAX_SIDE, "Height in pixels.")
    width: Whole | None = _whole(None, 1, MAX_SIDE, "Width in pixels.")
    num_images_per_prompt: Whole = _whole(1, 1, MAX_PICTURES, "Pictures of each prompt.")
    seed: Whole | None = _whole(None, -1, MAX_SEED, "The same seed makes the same picture; picture i takes seed + i; -1 is random.")
    latents: Object = _field(None, "Unit-variance noise (b, c, h, w) instead of the seeds' own.")
    output_type: OutputType = _field("pil", "What the pictures are: pil, numpy, pt or latent.")
    image: Object = _field(None, "A picture to start from, or latents of another model.")
    strength: Number | None = _number(None, 0, 1, "How far from the picture, 0 to 1; 0.8, or 1 with a mask.")
    mask_image: Object = _field(None, "What is white in it is painted anew, the rest stays.")
    control: Object = _field(None, "ControlNets, each with the picture that it is shown.")
    class_labels: Labels = _field(None, "A class, of models without text; several for several pictures.")
    classifier: Object = _field(None, "A classifier of noisy pictures, which pulls towards class_labels.")
    classifier_scale: Number = _number(1.0, 0, 1000, "How strongly the classifier pulls.")
    skip_guidance_layers: Layers = _field(None, "Blocks for skip-layer guidance, of Stable Diffusion 3.5: 7, 8, 9.")
    skip_layer_guidance_scale: Number = _number(2.5, 0, 100, "How strong skip-layer guidance is.")
    skip_layer_guidance_start: Number = _number(0.01, 0, 1, "Share of the steps where skip-layer guidance begins.")
    skip_layer_guidance_stop: Number = _number(0.2, 0, 1, "Share of the steps where skip-layer guidance ends.")
    clip_skip: Whole = _whole(0, 0, 100, "Layers of the text encoder left out, as diffusers counts.")
    original_size: Pair = _field(None, "What SDXL is told of the picture's first size, height first.")
    crops_coords_top_left: Pair = _field((0, 0), "What SDXL is told of the crop, top first.")
    target_size: Pair = _field(None, "What SDXL is told of the picture's last size, height first.")
    aesthetic_score: Number = _number(6.0, 0, 10, "What SDXL's refiner is told of the prompt's side.")
    negative_aesthetic_score: Number = _number(2.5, 0, 10, "What SDXL's refiner is told of the negative side.")
    denoising_start: Number | None = _number(None, 0, 1, "Share of the denoising that another model has done.")
    denoising_end: Number | None = _number(None, 0, 1, "Share of the denoising where another model takes over.")
    max_sequence_length: Whole | None = _whole(None, 1, 512, "Tokens that T5 reads at most.")
    prompt_weights: bool = _field(True, "Whether (x:1.2) in a prompt is a weight or text.")
    refiner: Object = _field(None, "The model that takes over for the last steps.")
    lora: Any = _field(None, "LoRA files, each with a scale.")
    safety: Safety = _field("black", "What becomes of a flagged picture: black, blur, flag or off.")

    def __init__(self, /, **fields: Any):
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise refusal(error) from None

    @model_validator(mode="after")
    def _together(self) -> Request:
        """Refuse fields that say nothing without another, or that contradict each other."""
        if self.denoising_start is not None and self.strength is not None:
            raise ArgumentError(f"got strength {self.strength:g} with denoising_start, which says where to start: leave one of them out")
        if self.image is None and (self.strength is not None or self.mask_image is not None):
            raise ArgumentError("got strength or mask_image without an image: expected image=... to start from")
        if self.classifier is None and self.classifier_scale != 1.0:
            raise ArgumentError(
                f"got classifier_scale {self.classifier_scale:g} without a classifier: leave it out, or give classifier=..."
            )
        return self

    def changed(self, **fields: Any) -> Request:
        """Return the same request with other values of some fields, checked again."""
        return Request(**{**self.fields(), **fields})

    def fields(self) -> dict[str, Any]:
        """Return the fields that are not at their defaults, as they are."""
        values = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: value for name, value in values if value is not _DEFAULTS[name] and not _same(value, _DEFAULTS[name])}


def _same(value: Any, default: Any) -> bool:
    return isinstance(value, str | int | float | bool | tuple | dict | None) and value == default


_DEFAULTS = {name: field.default for name, field in Request.model_fields.items()}


def refusal(error: ValidationError) -> ArgumentError:
    """The first fault as one line: what was got, and what was expected."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ArgumentError):
        return cause
    name, value = str(first["loc"][0]), first["input"]
    if first["type"] == "extra_forbidden":
        return UnknownName("argument", name, Request.model_fields)
    if isinstance(cause, ValueError):
        return ArgumentError(f"got {name} {value!r}: {cause}")
    field = Request.model_fields[name]
    if field.annotation == str | None:
        return UnknownName(name, value, (), f"expected the name of a {name}")
    if choices := [choice for choice in get_args(field.annotation) if isinstance(choice, str)]:
        return UnknownName(name, value, choices)
    return ArgumentError(f"got {name} {_typed(value)}: expected {_expected(name, field)}")


def _typed(value: Any) -> str:
    """A value as it was typed: a bool reaches the number's check as its name."""
    return value if value in ("True", "False") else repr(value)


def _expected(name: str, field: FieldInfo) -> str:
    """A field's type and range in words."""
    ranges = {type(bound).__name__: bound for bound in field.metadata}
    low, high = (getattr(ranges.get(kind), kind.lower(), None) for kind in ("Ge", "Le"))
    if name in ("original_size", "crops_coords_top_left", "target_size"):
        low, high = 0, 65536
    if "float" in str(field.annotation) and low is not None:
        return f"a number from {low:g} to {high:g}"
    if low is not None:
        return f"a whole number from {low} to {high}"
    if field.annotation is bool:
        return "True or False"
    return "whole numbers"
