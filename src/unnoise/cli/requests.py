"""The options of `unnoise generate` as the library's arguments. What a value may be is the library's to say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from unnoise.errors import ArgumentError, FileError

OPTIONS = {  # the library's argument: the option that sets it
    "model": "--model",
    "prompt": "PROMPT",
    "negative_prompt": "--negative-prompt",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "sampler": "--sampler",
    "spacing": "--spacing",
    "sampler_options": "--sampler-option",
    "spacing_options": "--spacing-option",
    "height": "--size (height)",
    "width": "--size (width)",
    "num_images_per_prompt": "--n",
    "seed": "--seed",
    "dtype": "--dtype",
    "device": "--device",
    "max_train_steps": "--max-train-steps",
}
WATCHED = ("model_hash", "version", "dtype", "device")  # what else decides the last bit of a pixel


def given(**options: Any) -> dict:
    """The options that were given; an absent one (None) leaves the choice to the recorded settings or the model."""
    arguments = {name: value for name, value in options.items() if value is not None}
    if "size" in arguments:
        arguments["width"], arguments["height"] = size(arguments.pop("size"))
    if arguments.get("seed") == -1:  # the habit of other programs: -1 is a random seed
        arguments["seed"] = None
    for prompt in arguments.get("prompt", ()):
        check_text(prompt)
    return arguments


def named_values(option: str, texts: list[str] | None) -> dict | None:
    """["eta=0.5", "order=2"] -> {"eta": 0.5, "order": 2}; what is no number stays a text."""
    values = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ArgumentError(f"{option}: got {text!r}, expected NAME=VALUE such as eta=0.5")
        values[name] = _number(value)
    return values or None


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
    return embedded.settings, embedded.exact


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
    return [
        f"{name} was {settings[name]!r} and is {made.get(name)!r}: the pixels may differ"
        for name in WATCHED
        if settings.get(name) is not None and settings[name] != made.get(name)
    ]
