"""The options of `unnoise generate` as the library's arguments. What a value may be is the library's to say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from unnoise.cli.options import OPTIONS
from unnoise.errors import ArgumentError, FileError

NAMES = {  # an option's parameter: the library's argument, where they differ
    "prompts": "prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "sampler_option": "sampler_options",
    "spacing_option": "spacing_options",
    "skip_layers": "skip_guidance_layers",
    "skip_layer_scale": "skip_layer_guidance_scale",
    "n": "num_images_per_prompt",
    "mask": "mask_image",
    "label": "class_labels",
    "part": "parts",
}
NO_ARGUMENTS = ("out", "again", "lora_dir", "dtype", "device", "as_json", "no_metadata", "quiet")
WATCHED = ("model_hash", "version", "dtype", "device")  # what else decides the last bit of a pixel


def given(**options: Any) -> dict:
    """The options that were given; an absent one (None, or an empty list) leaves the choice to the recorded settings or the model."""
    arguments = {NAMES.get(name, name): value for name, value in options.items() if name not in NO_ARGUMENTS and value not in (None, [])}
    if arguments.pop("no_prompt_weights", False):
        arguments["prompt_weights"] = False
    for name in ("sampler_options", "spacing_options"):
        if name in arguments:
            arguments[name] = named_values(OPTIONS[name], arguments[name])
    if "guidance_interval" in arguments:
        arguments["guidance_interval"] = interval(arguments["guidance_interval"])
    if "skip_guidance_layers" in arguments:
        arguments["skip_guidance_layers"] = layers(arguments["skip_guidance_layers"])
    if "class_labels" in arguments and len(arguments["class_labels"]) == 1:  # as a picture's record has it
        arguments["class_labels"] = arguments["class_labels"][0]
    if "size" in arguments:
        arguments["width"], arguments["height"] = size(arguments.pop("size"))
    if arguments.get("seed") == -1:  # the habit of other programs: -1 is a random seed
        arguments["seed"] = None
    for prompt in arguments.get("prompt", ()):
        check_text(prompt)
    return arguments


def named_values(option: str, texts: list[str]) -> dict:
    """["eta=0.5", "order=2"] -> {"eta": 0.5, "order": 2}; what is no number stays a text."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ArgumentError(f"{option}: got {text!r}, expected NAME=VALUE such as eta=0.5")
        values[name] = _number(value)
    return values


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT."""
    found = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text.strip())
    if not found:
        raise ArgumentError(f"--size: got {text!r}, expected WIDTHxHEIGHT in pixels such as 64x64")
    return int(found[1]), int(found[2])


def interval(text: str) -> list[float]:
    """LOW,HIGH; in a list, as a record has it."""
    ends = [_number(end) for end in text.split(",")]
    if len(ends) != 2 or any(isinstance(end, str) for end in ends):
        raise ArgumentError(f"--guidance-interval: got {text!r}, expected LOW,HIGH such as 0.2,0.8")
    return [float(end) for end in ends]


def layers(text: str) -> list[int]:
    """N,N,..."""
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text):
        raise ArgumentError(f"--skip-layers: got {text!r}, expected numbers of blocks such as 7,8,9")
    return [int(number) for number in text.split(",")]


def check_text(prompt: str) -> None:
    """Refuse bytes that are no UTF-8; the shell passes them on as lone surrogates."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"the prompt {prompt!a} is not valid UTF-8: expected text") from None


def recorded(path: Path) -> tuple[dict, bool]:
    """The settings inside a picture, and whether they are our own record, which makes the same pixels again."""
    from unnoise.images.files import read

    embedded = read(path)
    for name in ("prompt", "model", "dtype", "device") if embedded.exact else ():
        value = embedded.settings.get(name, "" if name in ("dtype", "device") else None)
        if not isinstance(value, str):
            raise FileError(f"the settings in {str(path)!r} are damaged: its {name} is {value!r}, expected a text")
    for name in ("inputs", "given") if embedded.exact else ():
        value = embedded.settings.get(name, {})
        if not isinstance(value, dict):
            raise FileError(f"the settings in {str(path)!r} are damaged: its {name} are {value!r}, expected names and values")
    return embedded.settings, embedded.exact


def check_inputs(record: dict, asked: dict, source: Path) -> None:
    """Refuse a record that another program of the library wrote, which has no names of what it was given."""
    names = ["lora" if name == "adapters" else name for name in record.get("inputs", {})]
    missing = [name for name in names if name not in asked and not (name == "lora" and "embedding" in asked)]
    if missing:
        options = ", ".join(OPTIONS.get(name, name) for name in missing)
        raise ArgumentError(f"{str(source)!r} was made with what it does not name: give {options} again")


def merge(again: dict, asked: dict, source: Path) -> tuple[dict, list[str]]:
    """Options over recorded arguments, and a notice for each option that changes one.

    Another sampler or spacing has other options: the recorded ones of the old one go.
    """
    other = [f"{name}_options" for name in ("sampler", "spacing") if name in asked and asked[name] != again.get(name)]
    kept = {name: value for name, value in again.items() if name not in other}
    notices = {
        f"{OPTIONS[name]}: {shown(value)} instead of {shown(again[name])} in {str(source)!r}"
        for name, value in asked.items()
        if name in again and shown(again[name]) != shown(value)
    }
    left = {
        f"{OPTIONS[name]}: {shown(again[name])} in {str(source)!r} is left out" for name in other if name in again and name not in asked
    }
    return {**kept, **asked}, sorted(notices | left)


def shown(value: object) -> str:
    """A value as a notice prints it; one prompt and a list of one are the same."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return "random" if value is None else repr(value)


def differences(settings: dict, made: dict) -> list[str]:
    """Why the pixels of `--from` may differ: what was used then and now, where it is not the same."""
    pairs = [(name, settings.get(name), made.get(name)) for name in WATCHED]
    then, now = settings.get("inputs", {}), made.get("inputs", {})
    pairs += [(OPTIONS.get(name, name), value, now.get(name)) for name, value in then.items()]
    return [f"{name} was {old!r} and is {new!r}: the pixels may differ" for name, old, new in pairs if old is not None and old != new]
