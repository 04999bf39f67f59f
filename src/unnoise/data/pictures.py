"""Pictures with captions, held in memory, and the batches of a training run as a pure function of (seed, step).

Because a batch depends on nothing but its step, a resumed run sees exactly the pictures that the uninterrupted one would have seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unnoise.data import colours
from unnoise.errors import DataError

Captions = dict[str, tuple[str, ...]]  # language -> its captions, the name first
PLAIN = "text"  # the "language" of a caption that is a whole text: neither phrased nor repainted
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Pictures:
    """n square pictures with transparency, and the captions of each."""

    rgba: np.ndarray  # (n, size, size, 4) uint8
    captions: list[Captions]

    def __len__(self) -> int:
        return len(self.captions)

    def on_white(self) -> Tensor:
        """(n, 3, size, size) in -1..1."""
        return torch.stack([to_tensor(picture / np.float32(255)) for picture in self.rgba])


def read(folder: Path, size: int) -> Pictures:
    """An image folder: pictures and metadata.jsonl with `file_name` and `text`, or with `captions` by language; or each picture
    beside a .txt of the same name. Pictures of another size are cropped to a square in the middle and resized. Raises DataError.
    """
    rgba, captions = [], []
    for where, load in _rows(folder):
        try:
            file, caption = load()
            with Image.open(file) as image:
                rgba.append(_square(image, size))
            captions.append(caption)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{where}: {' '.join(str(error).split())}") from error
    if not rgba:
        raise DataError(
            f"no pictures in {folder}: expected a metadata.jsonl, or pictures with a .txt beside each "
            f"(`unnoise data emoji --out {folder}` makes the built-in set)"
        )
    return Pictures(np.stack(rgba), captions)


def _rows(folder: Path) -> Iterator[tuple[str, Callable[[], tuple[Path, Captions]]]]:
    """Where each picture is named, for people, and how to learn its file and captions."""
    index = folder / "metadata.jsonl"
    if index.is_file():
        for number, line in enumerate(index.read_bytes().splitlines(), 1):
            if line.strip():
                yield f"{index}, line {number}", partial(_from_line, folder, line)
    else:
        for file in sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES):
            yield str(file), partial(_from_text, file)


def _from_line(folder: Path, line: bytes) -> tuple[Path, Captions]:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError("expected an object with file_name and text")
    given = row.get("captions", {PLAIN: [row.get("text")]})
    if not isinstance(given, dict) or not given or not all(isinstance(group, list) and group for group in given.values()):
        raise ValueError('expected captions such as {"en": ["a cat"]}')
    if not all(isinstance(text, str) for group in given.values() for text in group):
        raise ValueError(f"expected a text beside {row['file_name']}")
    return folder / row["file_name"], {language: tuple(group) for language, group in given.items()}


def _from_text(file: Path) -> tuple[Path, Captions]:
    return file, {PLAIN: (file.with_suffix(".txt").read_text(encoding="utf-8").strip(),)}


def to_tensor(picture: np.ndarray) -> Tensor:
    """(h, w, 4) in 0..1 -> (3, h, w) in -1..1, over white."""
    rgb, alpha = picture[..., :3], picture[..., 3:]
    return torch.from_numpy(((rgb * alpha + 1 - alpha) * 2 - 1).astype(np.float32)).permute(2, 0, 1)


def _square(image: Image.Image, size: int) -> np.ndarray:
    image = image.convert("RGBA")
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image)


@dataclass(frozen=True)
class Batches:
    """Batches of a run: whole shuffled passes over the pictures, captions drawn by language, some pictures painted another colour."""

    pictures: Pictures
    size: int
    seed: int
    repaint: float = 0.0  # share of pictures that get another colour and its word

    def __call__(self, step: int) -> tuple[Tensor, list[str]]:
        """Pictures (size, 3, h, w) in -1..1 and their captions, for this step."""
        random = np.random.default_rng([self.seed, step])
        drawn = [self._draw(index, random) for index in shuffled(len(self.pictures), self.size, self.seed, step)]
        return torch.stack([to_tensor(picture) for picture, _ in drawn]), [caption for _, caption in drawn]

    def _draw(self, index: int, random: np.random.Generator) -> tuple[np.ndarray, str]:
        picture = self.pictures.rgba[index] / np.float32(255)
        captions = self.pictures.captions[index]
        language = str(random.choice(list(captions)))
        names = captions[language]
        # The name as often as all its aliases together.
        name = names[0] if random.random() < 0.5 else str(random.choice(names))
        if random.random() < self.repaint:
            painted = self._repaint(picture, name, language, random)
            if painted is not None:
                return painted[0], phrase(painted[1], language, random)
        return picture, phrase(name, language, random)

    def _repaint(self, picture: np.ndarray, name: str, language: str, random: np.random.Generator) -> tuple[np.ndarray, str] | None:
        if language not in colours.LANGUAGES or "flag" in name or "깃발" in name:
            return None
        thing = colours.without_colour(name, language)
        if not thing:
            return None
        colour = colours.COLOURS[str(random.choice(list(colours.COLOURS)))]
        word = str(random.choice(colour.words[language]))
        return colours.repaint(picture, colour).astype(np.float32), f"{word} {thing}"


def shuffled(n: int, size: int, seed: int, step: int) -> list[int]:
    """The numbers of the pictures of batch `step`: whole passes over n pictures, each in its own order."""
    places = range(step * size, (step + 1) * size)
    orders = {p // n: None for p in places}
    orders = {order: np.random.default_rng([seed, order, n]).permutation(n) for order in orders}
    return [int(orders[place // n][place % n]) for place in places]


# How people write a name: mostly bare or with an article.
PHRASES: dict[str, tuple[tuple[str, float], ...]] = {
    "en": (("{}", 0.5), ("{article} {}", 0.3), ("the {}", 0.05), ("a picture of {article} {}", 0.05), ("{} emoji", 0.1)),
    "ko": (("{}", 0.8), ("{} 그림", 0.1), ("{} 이모지", 0.1)),
}


def phrase(name: str, language: str, random: np.random.Generator) -> str:
    """The name in one of the ways people write it; a language without phrases keeps it bare."""
    forms = PHRASES.get(language, (("{}", 1.0),))
    chosen = forms[int(random.choice(len(forms), p=[share for _, share in forms]))][0]
    return chosen.format(name, article="an" if name[:1].lower() in "aeiou" else "a")


def vocabulary(pictures: Pictures) -> list[str]:
    """Every caption, colour word and phrase: what a tokenizer is learnt from."""
    names = [name for captions in pictures.captions for group in captions.values() for name in group]
    words = [word for colour in colours.COLOURS.values() for group in colour.words.values() for word in group]
    forms = [form.format("", article="a") for group in PHRASES.values() for form, _ in group]
    return names + words * 20 + forms * 20
