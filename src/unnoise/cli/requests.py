"""The options of `unnoise generate` as JSON of a request, the form that a line of a batch and a picture's record have too.

What a value may be is the library's to say; here text becomes numbers, lists and names of files.

    --control NET=PICTURE,scale=0.8,start=0,end=0.5,guess,hint=canny,low_threshold=50
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from unnoise.cli.options import OPTIONS, Options
from unnoise.errors import ArgumentError, UnknownName
from unnoise.pipeline.lines import LOADED, request_of
from unnoise.pipeline.request import Request

Record = dict[str, Any]  # JSON: fields of a request, the model that it is for, and what made a picture
CONTROL = ("scale", "start", "end", "guess", "hint")  # settings of a control; others are options of its hint
NUMBERS = {"scale": 1.0, "start": 0.0, "end": 1.0}


def parse(options: Options) -> Record:
    """Return what was typed as JSON; an option that was left out is not in it. Raises ArgumentError or UnknownName."""
    typed = {name: getattr(options, name) for name in OPTIONS if name in (*Request.model_fields, *LOADED) and hasattr(options, name)}
    record = {name: from_text(name, value) for name, value in typed.items() if value not in (None, [])}
    if options.no_prompt_weights:
        record["prompt_weights"] = False
    if options.size is not None:
        record["width"], record["height"] = size(options.size)
    return record


def from_text(name: str, value: Any) -> Any:
    """Return one option's text, or its texts, as JSON."""
    return READERS[name](value) if name in READERS else value


def one_or_several(values: list[Any]) -> Any:
    """One prompt or label stands alone, as in a picture's record."""
    return values[0] if len(values) == 1 else values


def named_values(option: str, texts: Iterable[str]) -> dict[str, int | float | str]:
    """["eta=0.5", "order=2"] -> {"eta": 0.5, "order": 2}; what is no number stays a text."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ArgumentError(f"{option}: got {text!r}, expected NAME=VALUE such as eta=0.5")
        values[name] = _number_or_text(value)
    return values


def _number_or_text(text: str) -> int | float | str:
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
    ends = [_number_or_text(end) for end in text.split(",")]
    if len(ends) != 2 or any(isinstance(end, str) for end in ends):
        raise ArgumentError(f"--guidance-interval: got {text!r}, expected LOW,HIGH such as 0.2,0.8")
    return [float(end) for end in ends]


def layers(text: str) -> list[int]:
    """N,N,..."""
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text):
        raise ArgumentError(f"--skip-layers: got {text!r}, expected numbers of blocks such as 7,8,9")
    return [int(number) for number in text.split(",")]


def parts(texts: Iterable[str]) -> dict[str, str | None]:
    """["autoencoder=vae.safetensors", "text_encoder_3=none"]"""
    found = {}
    for text in texts:
        place, equals, file = text.partition("=")
        if not (place and equals and file):
            raise ArgumentError(f"--part: got {text!r}, expected PLACE=FILE such as autoencoder=vae.safetensors, or PLACE=none")
        found[place] = None if file == "none" else file
    return found


def word(text: str) -> list[str | None]:
    """FILE or FILE=WORD, as [FILE, WORD]."""
    file, _, name = text.partition("=")
    return [text, None] if Path(text).exists() or not name else [file, name]


def scaled(text: str) -> list[str | float]:
    """FILE or FILE=SCALE, as [FILE, SCALE]."""
    found = re.fullmatch(r"(.+)=([^=]*)", text)
    if Path(text).exists() or not found:
        return [text, 1.0]
    return [found[1], number("--lora", text, found[2])]


def number(option: str, text: str, value: str) -> float:
    """Raises ArgumentError for what is no number."""
    try:
        return float(value)
    except ValueError:
        raise ArgumentError(f"{option}: got {value!r} in {text!r}, expected a number") from None


def control(text: str) -> Record:
    """NET=PICTURE and its settings, as a record has a control. Raises ArgumentError or UnknownName."""
    net, picture, settings = split(text)
    guess = settings.pop("guess", "") == "guess"
    values = {name: number("--control", text, settings.pop(name, str(default))) for name, default in NUMBERS.items()}
    return {"net": net, "image": picture, **values, "guess": guess, **_hint(text, settings)}


def _hint(text: str, settings: dict[str, str]) -> Record:
    """The preprocessor of a control's picture, with its options."""
    kind, file = settings.pop("hint", None), settings.pop("model", None)
    if kind is None:
        if unknown := [*settings, *(["model"] if file else [])]:
            raise UnknownName("setting of --control", unknown[0], CONTROL)
        return {}
    from unnoise.images.hints import HINTS

    if kind not in HINTS:
        raise UnknownName("hint", kind, HINTS)
    options = {**({"model": file} if file else {}), **{name: number("--control", text, value) for name, value in settings.items()}}
    return {"hint": kind, **({"hint_options": options} if options else {})}


def split(text: str) -> tuple[str, str, dict[str, str]]:
    """NET, PICTURE and the settings behind it, from the right: a picture's own name may have commas."""
    net, _, rest = text.partition("=")
    settings: dict[str, str] = {}
    while found := re.fullmatch(r"(.*),(?:(guess)|(\w+)=([^,]*))", rest):
        rest = found[1]
        settings = {found[2] or found[3]: found[2] or found[4], **settings}
    if not (net and rest):
        raise ArgumentError(f"--control: got {text!r}, expected NET=PICTURE such as canny.safetensors=edges.png,scale=0.8")
    return net, rest, settings


READERS: dict[str, Callable[[Any], Any]] = {  # options whose text means more than itself
    "prompt": one_or_several,
    "class_labels": one_or_several,
    "sampler_options": lambda texts: named_values("--sampler-option", texts),
    "spacing_options": lambda texts: named_values("--spacing-option", texts),
    "guidance_interval": interval,
    "skip_guidance_layers": layers,
    "control": lambda texts: [control(text) for text in texts],
    "lora": lambda texts: [scaled(text) for text in texts],
    "parts": parts,
    "embedding": lambda texts: [word(text) for text in texts],
}


def over(base: Record, changes: Record) -> Record:
    """Return a record with changes over it. Another sampler or spacing has other options: those of the old one go."""
    other = left_out(base, changes)
    return {**{name: value for name, value in base.items() if name not in other}, **changes}


def left_out(base: Record, changes: Record) -> list[str]:
    """Options of a sampler or spacing that the changes replace."""
    names = ("sampler", "spacing")
    return [f"{name}_options" for name in names if name in changes and changes[name] != base.get(name) and f"{name}_options" in base]


def request(record: Record) -> Request:
    """Read the request of a record, for the command. Raises ArgumentError or UnknownName."""
    asked = request_of(record)
    for prompt in texts(asked.prompt):
        check_text(prompt)
    if asked.output_type != "pil":
        raise ArgumentError(f"got output_type {asked.output_type!r}: the command writes pictures, leave it out")
    return asked


def texts(prompt: str | Iterable[str] | None) -> list[str]:
    """One prompt, or several, as a list."""
    return [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)


def check_text(prompt: str) -> None:
    """Refuse bytes that are no UTF-8; the shell passes them on as lone surrogates."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"the prompt {prompt!a} is not valid UTF-8: expected text") from None
