"""Settings as the text that other programs read: AUTOMATIC1111's `parameters`.

    a red apple, on a table
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, Size: 64x64, Model hash: ..., Model: emoji

A settings dict has the keys of one entry of `result.metadata`. The text is for people and for other programs: it cannot hold
every prompt (its reader strips each line, and a prompt's own line may begin with "Negative prompt:"), so a file also carries
the settings as JSON, and that is what makes the same pixels again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from unnoise.errors import DataError

SAMPLERS = {  # ours: AUTOMATIC1111's; a name in neither column passes through as it is
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_ancestral": "DPM2 a",
    "lms": "LMS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "unipc": "UniPC",
    "lcm": "LCM",
}
SPACINGS = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "ays": "Align Your Steps",
    "linspace": "Uniform",
    "trailing": "SGM Uniform",
}
NEGATIVE = "Negative prompt:"
PAIR = re.compile(r'([\w /-]{2,}):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')  # label: value, or label: "value, with: any \"text\""
SHORT_HASH = 10  # hex digits of a model's SHA-256 that A1111 and Civitai show


def to_parameters(settings: dict) -> str:
    """The `parameters` text of one picture; entries that are None are left out."""
    lines = [settings.get("prompt") or ""]
    if settings.get("negative_prompt"):
        lines.append(f"{NEGATIVE} {settings['negative_prompt']}")
    lines.append(", ".join(f"{label}: {quote(value)}" for label, value in labelled(settings) if value not in (None, "")))
    return "\n".join(lines)


def labelled(settings: dict) -> list[tuple[str, object]]:
    """Label and value in the order in which A1111 writes them."""
    sampler, spacing, size = settings.get("sampler"), settings.get("spacing"), (settings.get("width"), settings.get("height"))
    return [
        ("Steps", settings.get("num_inference_steps", settings.get("steps"))),  # "steps" in records of version 0.1
        ("Sampler", SAMPLERS.get(str(sampler), sampler)),
        ("Schedule type", SPACINGS.get(str(spacing), spacing)),
        ("CFG scale", settings.get("guidance_scale")),
        ("Seed", settings.get("seed")),
        ("Size", None if None in size else f"{size[0]}x{size[1]}"),
        ("Model hash", (settings.get("model_hash") or "")[:SHORT_HASH]),
        ("Model", re.sub(r"^.*[/\\]|\.(safetensors|ckpt)$", "", settings.get("model") or "")),  # a file's name without its folder
        ("Version", f"unnoise {settings['version']}" if settings.get("version") else None),
    ]


def quote(value: object) -> str:
    """A value as text; quoted as JSON where a comma, colon, quote or line end would confuse the reader."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n\r]', text) else text


def unquote(text: str) -> str:
    """The inverse of `quote`; text that is not a JSON string stays as it is."""
    if not text.startswith('"'):
        return text.strip()
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def from_parameters(text: str) -> dict:
    """The settings that a `parameters` text holds, under our names; only those that are there. Raises DataError."""
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last)
    if len(pairs) < 3:  # the same rule as A1111's: a last line with fewer pairs belongs to the prompt
        lines, pairs = [*lines, last], []
    lines = [line.strip() for line in lines]
    start = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(NEGATIVE).strip()
    values = renamed({label.strip(): unquote(value) for label, value in pairs})
    return {"prompt": "\n".join(lines[:start]), "negative_prompt": negative, **values}


def renamed(values: dict[str, str]) -> dict:
    """A1111's labels and values to ours."""
    ours: dict = {}
    for label, name, kind in (("Steps", "num_inference_steps", int), ("CFG scale", "guidance_scale", float), ("Seed", "seed", int)):
        if label in values:
            ours[name] = number(label, values[label], kind)
    if "Size" in values:
        ours["width"], ours["height"] = (number("Size", side, int) for side in (*values["Size"].split("x", 1), "")[:2])
    for label, name in (("Model", "model"), ("Model hash", "model_hash")):
        if label in values:
            ours[name] = values[label]
    return ours | named(values.get("Sampler"), values.get("Schedule type"))


def named(sampler: str | None, spacing: str | None) -> dict:
    """A1111's sampler and schedule names to ours; "DPM++ 2M Karras", the form before its version 1.9, is split."""
    if sampler and not spacing and sampler.endswith((" Karras", " Exponential")):
        sampler, spacing = sampler.rsplit(" ", 1)
    ours = {}
    if sampler:
        ours["sampler"] = next((name for name, theirs in SAMPLERS.items() if theirs == sampler), sampler)
    if spacing and spacing != "Automatic":
        ours["spacing"] = next((name for name, theirs in SPACINGS.items() if theirs == spacing), spacing)
    return ours


def number(label: str, text: str, kind: Callable[[str], int | float]) -> int | float:
    """A number of the text, or one line that says which is wrong."""
    try:
        return kind(text)
    except ValueError:
        raise DataError(f"the parameters text says {label}: {text!r}, expected a number") from None
