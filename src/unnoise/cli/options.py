"""The options of `unnoise generate`, one field each. Those of a request take their help from `Request`, and are called as its fields.

requests.py   text of an option -> JSON of a request
sources.py    the model that a request is for
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from unnoise.pipeline.request import Request

Typed = str | int | float | bool | Path | list[str] | list[int] | None  # what typer makes of an option


def asks(name: str, *flags: str, default: str = "", metavar: str | None = None) -> Any:
    """Return the option that sets a field of Request. flags: where they differ from its name. default: in words, where it has none."""
    return typer.Option(*flags, metavar=metavar, help=described(name, default))


def described(name: str, default: str = "") -> str:
    """Return the field's line of help, and its default."""
    field = Request.model_fields[name]
    shown = default or ("" if field.default is None else _plain(field.default))
    return f"{field.description}  [default: {shown}]" if shown else str(field.description)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Options:
    """What was typed. None: the option was left out."""

    prompt: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help=f"{described('prompt')} Quote each.")] = None
    model: Annotated[str | None, typer.Option(help="A name, a folder, a hub id owner/name or a .safetensors file.  [default: emoji]")] = (
        None
    )
    negative_prompt: Annotated[str | None, asks("negative_prompt")] = None
    sampler: Annotated[str | None, asks("sampler", default="the model's")] = None
    spacing: Annotated[str | None, asks("spacing", default="the sampler's")] = None
    sampler_options: Annotated[list[str] | None, asks("sampler_options", "--sampler-option", metavar="NAME=VALUE")] = None
    spacing_options: Annotated[list[str] | None, asks("spacing_options", "--spacing-option", metavar="NAME=VALUE")] = None
    num_inference_steps: Annotated[int | None, asks("num_inference_steps", "--steps", default="the model's")] = None
    guidance_scale: Annotated[float | None, asks("guidance_scale", "--guidance", default="the model's")] = None
    guidance_rescale: Annotated[float | None, asks("guidance_rescale")] = None
    guidance_interval: Annotated[str | None, asks("guidance_interval", default="the model's", metavar="LOW,HIGH")] = None
    skip_guidance_layers: Annotated[str | None, asks("skip_guidance_layers", "--skip-layers", metavar="N,N,...")] = None
    skip_layer_guidance_scale: Annotated[float | None, asks("skip_layer_guidance_scale", "--skip-layer-scale")] = None
    seed: Annotated[int | None, asks("seed", default="random")] = None
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Width and height in pixels.  [default: the model's]")] = None
    num_images_per_prompt: Annotated[int | None, asks("num_images_per_prompt", "--n", "-n")] = None
    image: Annotated[str | None, asks("image", metavar="PICTURE")] = None
    strength: Annotated[float | None, asks("strength")] = None
    mask_image: Annotated[str | None, asks("mask_image", "--mask", metavar="PICTURE")] = None
    control: Annotated[
        list[str] | None,
        typer.Option(metavar="NET=PICTURE[,...]", help=f"{described('control')} Then scale=, start=, end=, guess, hint=, model=."),
    ] = None
    lora: Annotated[list[str] | None, asks("lora", metavar="FILE[=SCALE]")] = None
    lora_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the files of <lora:name:0.8> in a prompt lie.")] = None
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[=WORD]", help="A word by textual inversion; may be given again."),
    ] = None
    class_labels: Annotated[list[int] | None, asks("class_labels", "--label")] = None
    classifier: Annotated[str | None, asks("classifier", metavar="FILE")] = None
    classifier_scale: Annotated[float | None, asks("classifier_scale")] = None
    refiner: Annotated[str | None, asks("refiner", metavar="MODEL")] = None
    denoising_end: Annotated[float | None, asks("denoising_end", default="0.8 with --refiner")] = None
    clip_skip: Annotated[int | None, asks("clip_skip")] = None
    max_sequence_length: Annotated[int | None, asks("max_sequence_length")] = None
    no_prompt_weights: Annotated[bool, typer.Option("--no-prompt-weights", help="Brackets in prompts are text, no weights.")] = False
    safety: Annotated[str | None, asks("safety")] = None
    variant: Annotated[str | None, typer.Option(help="Of a folder's files, such as fp16.")] = None
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="PLACE=FILE", help="A network from elsewhere: autoencoder=FILE; none leaves out."),
    ] = None
    prediction: Annotated[str | None, typer.Option(help="eps, v, ... where the model's file does not tell.")] = None
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder, or one .png, .jpg or .webp file.")] = Path("outputs")
    again: Annotated[Path | None, typer.Option("--from", metavar="PICTURE", help="Make this picture again, from what it carries.")] = None
    batch: Annotated[Path | None, typer.Option(metavar="JSONL", help="Make each line's pictures; what is done already is skipped.")] = None
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.  [default: auto]")] = None
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.  [default: auto]")] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; with --batch one a line.")] = False
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="Leave prompt and settings out of the files.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False


HINTS = get_type_hints(Options, include_extras=True)


def _flag(name: str) -> str:
    """The first flag of an option; typer keeps it in `default` where the option stands in an annotation."""
    option = get_args(HINTS[name])[1]
    return option.default if isinstance(option.default, str) else f"--{name.replace('_', '-')}"


# A field of Request, or an argument of `load`: the option that sets it
OPTIONS = {option.name: _flag(option.name) for option in fields(Options)} | {
    "prompt": "PROMPT",
    "height": "--size (height)",
    "width": "--size (width)",
    "prompt_weights": "--no-prompt-weights",
    "max_train_steps": "--max-train-steps",
}


def verb(run: Callable[[Options], None]) -> Callable[..., None]:
    """Make a function of Options a verb: each field is an option of the command."""

    @functools.wraps(run)
    def typed(**values: Typed) -> None:
        run(Options(**values))  # pyright: ignore[reportArgumentType]  # typer made them by the types of the fields

    parameters = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=HINTS[option.name])
        for option in fields(Options)
    ]
    setattr(typed, "__signature__", inspect.Signature(parameters))  # noqa: B010  (a type checker knows no such attribute)
    return typed
