"""The built-in model's figures and contact sheets: does it draw what people type, in its colours, and sharply?

    python benchmarks/builtin.py [--model emoji] [--count 200] [--write NAME]

Captions of the data set, free prompts that are in no caption, colours and scenes, each judged by the nearest picture in the feature space
of a network that was trained on photographs (benchmarks/trunk.py). --write keeps the figures as benchmarks/results/NAME.json and the
contact sheets beside the model or in docs/images.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import prompted
import sharpness
import torch
import torch.nn.functional as F
from PIL import Image
from prompted import Gallery, Prompt, Verdict
from torch import Tensor
from trunk import NAME, Trunk

import unnoise
from unnoise.data import emoji, pictures
from unnoise.evaluation import nearest
from unnoise.images.sheet import sheet
from unnoise.pipeline.model import Model

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("free.en", "free.ko", "colours", "scenes", "failed")
BATCH = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--count", type=int, default=200, help="captions a language")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--write", default=None, metavar="NAME", help="keep the figures as benchmarks/results/NAME.json")
    parser.add_argument("--sheets", type=Path, default=None, metavar="FOLDER", help="keep a contact sheet of each kind here")
    options = parser.parse_args()
    model = unnoise.load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        emoji.build(Path(folder))
        data = pictures.read(Path(folder), model.spec.size)
    measured = Measured(model, data, options.steps)
    figures = measured.everything(options.count)
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    if options.write:
        path = ROOT / "benchmarks" / "results" / f"{options.write}.json"
        path.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, page in measured.sheets.items() if options.sheets else ():
        options.sheets.mkdir(parents=True, exist_ok=True)
        page.save(options.sheets / f"{name}.png")


class Measured:
    """One model's pictures and figures."""

    def __init__(self, model: Model, data: pictures.Pictures, steps: int | None):
        self.model, self.data, self.steps = model, data, steps
        self.codes = [entry.code for entry in emoji.entries()]
        self.prompts = {name: prompted.read(f"{name}.tsv") for name in TABLES}
        self.trunk = Trunk()
        self.gallery = Gallery(data, self.codes, [prompt for rows in self.prompts.values() for prompt in rows])
        self.features = self.trunk(torch.stack([answer.picture for answer in self.gallery.answers]))
        self.sheets: dict[str, Image.Image] = {}

    def everything(self, count: int) -> dict[str, object]:
        figures: dict[str, object] = {
            "model": self.model.hash,
            "features": NAME,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "captions a language": count,
        }
        drawn = {language: self._captions(language, count) for language in emoji.LANGUAGES}
        for language, pair in drawn.items():
            figures[f"captions.{language}"] = _shown(language, self._agreement(language, *pair))
        for name in TABLES:
            figures[name] = _shown(name, self._prompted(name))
        return figures | {"seconds a picture": round(self.seconds, 2), "sharpness": self._sharpness(*drawn["en"])}

    def _draw(self, texts: Sequence[str]) -> Tensor:
        parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        return torch.cat([nearest.draw(self.model, list(part), steps=self.steps) for part in parts]).clamp(-1, 1)

    def _captions(self, language: str, count: int) -> tuple[list[int], Tensor]:
        """The numbers of pictures evenly spread over the data set, and what their names lead to."""
        chosen = torch.linspace(0, len(self.data) - 1, count).round().long().tolist()
        began = time.perf_counter()
        drawn = self._draw([self.data.captions[i][language][0] for i in chosen])
        self.seconds = (time.perf_counter() - began) / count
        return chosen, drawn

    def _agreement(self, language: str, chosen: list[int], drawn: Tensor) -> dict[str, object]:
        """Shares of captions whose nearest training picture is their own or shares their noun, by the trunk and by 16x16 cells."""
        names = [captions[language][0] for captions in self.data.captions]
        by_trunk = (self.trunk(drawn) @ self.features[: len(self.data)].T).argmax(dim=1).tolist()
        by_cells = torch.cdist(nearest.features(drawn), nearest.features(self.data.on_white())).argmin(dim=1).tolist()
        trunk, cells = ([(names[i], names[j]) for i, j in zip(chosen, found, strict=True)] for found in (by_trunk, by_cells))
        return {
            "own or same noun": _share(_same(*pair) for pair in trunk),
            "own": _share(caption == found for caption, found in trunk),
            "own or same noun, by cells": _share(_same(*pair) for pair in cells),
            "wrong": [f"{caption}: {found}" for caption, found in trunk if not _same(caption, found)],
        }

    def _prompted(self, name: str) -> dict[str, object]:
        prompts = self.prompts[name]
        drawn = self._draw([prompt.text for prompt in prompts])
        verdicts = self.gallery.judge(prompts, drawn, self.trunk(drawn), self.features)
        self.sheets[name] = sheet(self.model.to_pil(drawn), [f"{'' if v else '(x) '}{v.text}" for v in verdicts], columns=10)
        return _figures(prompts, verdicts) | {"highest, by right pictures that are a little blurred": self._ceiling(prompts)}

    def _ceiling(self, prompts: Sequence[Prompt]) -> float:
        """The share of right answers that this measure finds right, once they are made smaller and enlarged again."""
        right = torch.stack([self.gallery.right(prompt) for prompt in prompts])
        small = F.interpolate(right, scale_factor=0.7, mode="bilinear", antialias=True)
        blurred = F.interpolate(small, size=right.shape[2:], mode="bicubic")
        return _share(bool(v) for v in self.gallery.judge(prompts, blurred, self.trunk(blurred), self.features))

    def _sharpness(self, chosen: list[int], drawn: Tensor) -> dict[str, object]:
        """Compared with the training pictures of the same captions; lines are looked for in the difference from them."""
        expected = self.data.on_white()[chosen]
        return {
            "power in the upper half, of the training pictures'": round(sharpness.upper_half(drawn) / sharpness.upper_half(expected), 3),
            "line of patches of 4": round(sharpness.line(drawn - expected, 4), 2),
            "line of patches of 2": round(sharpness.line(drawn - expected, 2), 2),
        }


def _shown(name: str, figures: dict[str, object]) -> dict[str, object]:
    """The figures, shown as soon as they are there: a run takes many minutes."""
    print(name, {key: value for key, value in figures.items() if isinstance(value, float)}, file=sys.stderr, flush=True)
    return figures


def _figures(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> dict[str, object]:
    coloured = [v for p, v in zip(prompts, verdicts, strict=True) if p.colour or p.background]
    return {
        "right": _share(bool(v) for v in verdicts),
        "things": _share(v.things for v in verdicts),
        "colours, of those that name one": _share(v.colours for v in coloured) if coloured else None,
        "wrong": [f"{v.text}: {_emoji(v.found)}{'' if v.colours else ' (colour)'}" for v in verdicts if not v],
    }


def _same(caption: str, found: str) -> bool:
    return caption == found or nearest.noun(caption) == nearest.noun(found)


def _emoji(codes: Sequence[str]) -> str:
    return " + ".join("".join(chr(int(part, 16)) for part in code.split("-")) for code in codes)


def _share(hits: Iterable[bool]) -> float:
    hits = list(hits)
    return round(sum(hits) / len(hits), 4)


if __name__ == "__main__":
    main()
