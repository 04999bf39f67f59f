"""Where `unnoise generate` puts its pictures, checked before any work is done."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

from unnoise.errors import ArgumentError, FileError
from unnoise.images import FORMATS
from unnoise.pipeline.request import Request

OTHERS = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".jp2", ".ppm", ".svg", ".pdf")
LONGEST_SLUG = 120  # bytes of UTF-8; file systems hold 255 of a whole name


def check(out: Path, pictures: int) -> None:
    """Refuse a place that cannot take this many pictures."""
    if is_file_name(out) and pictures > 1:
        raise ArgumentError(f"--out {str(out)!r} names one file, but {pictures} pictures are asked for: give a folder")
    if not out.is_dir() and out.suffix.lower() in OTHERS:
        raise ArgumentError(f"--out {str(out)!r}: got the ending {out.suffix!r}, expected one of {', '.join(FORMATS)} or a folder")
    folder = out.parent if is_file_name(out) else out
    if folder.exists() and not folder.is_dir():
        raise FileError(f"--out {str(out)!r}: {str(folder)!r} is a file, expected a folder")
    place = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()), Path("/"))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise FileError(f"--out {str(out)!r}: cannot write into {str(place)!r}; choose another folder or change its permissions")


def is_file_name(out: Path) -> bool:
    """Whether `out` names one picture file rather than a folder."""
    return out.suffix.lower() in FORMATS and not out.is_dir()


def save_all(result: Any, out: Path, keep_settings: bool) -> list[dict]:
    """Write every picture of a Result; returns path, seed and prompt of each."""
    from unnoise.images.files import save

    pictures = []
    for image, settings in zip(result.images, result.metadata, strict=True):
        path = out if is_file_name(out) else out / file_name(settings["seed"], title(settings))
        path = save(image, path, settings if keep_settings else None)
        pictures.append({"path": str(path), "seed": settings["seed"], "prompt": settings["prompt"]})
    return pictures


def save_sheet(result: Any, out: Path) -> str | None:
    """A contact sheet beside several pictures; captions are prompts and seeds."""
    from unnoise.images.files import save
    from unnoise.images.sheet import sheet

    if len(result.images) < 2:
        return None
    captions = [f"{settings['seed']} {title(settings)}" for settings in result.metadata]
    return str(save(sheet(result.images, captions), out / "sheet.png"))


def pictures(request: Request) -> int:
    """How many are asked for."""
    columns = (request.prompt, request.class_labels)
    return max(len(column) if isinstance(column, tuple) else 1 for column in columns) * request.num_images_per_prompt


def tell(pictures: list[dict], sheet: str | None) -> None:
    """Print the paths and seeds of pictures that were written."""
    for picture in pictures:
        print(f"{picture['path']}  seed {picture['seed']}")
    if sheet:
        print(f"{sheet}  {len(pictures)} pictures")


def notes(metadata: list[dict]) -> list[str]:
    """What people should know of the pictures beside their settings."""
    flagged = [str(settings["seed"]) for settings in metadata if settings.get("safety_checker") == "flagged"]
    lines = [f"the safety checker flagged the pictures of seed {', '.join(flagged)} (--safety)"] if flagged else []
    if metadata[0].get("safety_checker") == "absent":
        lines.append("no safety checker: this model came without its weights, so nobody looked at the pictures")
    return [*metadata[0].get("adapters", ()), *dropped(metadata), *lines]


def dropped(metadata: list[dict]) -> list[str]:
    """A line for each prompt whose end the model did not read; the record counts it together with its negative prompt."""
    cut = [settings for settings in metadata if settings.get("dropped_tokens")]
    texts = {
        f'"{one["prompt"]}"' + (" and its negative prompt" if one.get("negative_prompt") else ""): one["dropped_tokens"] for one in cut
    }
    words = {True: ("token", "was"), False: ("tokens", "were")}
    return [f"{n} {words[n == 1][0]} of {text} did not fit and {words[n == 1][1]} ignored" for text, n in texts.items()]


def title(settings: dict) -> str:
    """The prompt, or the class of a model without text."""
    label = settings.get("class_labels")
    return settings["prompt"] or ("" if label is None else f"class {label}")


def file_name(seed: int, prompt: str) -> str:
    """0007-a-red-apple.png; letters of any script stay."""
    letters = unicodedata.normalize("NFC", prompt).lower()
    kept = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in letters)
    slug = "-".join(kept.split()).encode()[:LONGEST_SLUG].decode("utf-8", "ignore").strip("-")
    return f"{seed:04d}-{slug or 'picture'}.png"
