"""The built-in model's figures and contact sheet: does it draw what captions say?

    python benchmarks/builtin.py [--model emoji] [--count 200] [--write]

Prints the share of captions whose nearest training picture is their own or shares their noun (the feature space is stated in
unnoise/evaluation/nearest.py), beside chance, and the compositions of colour and thing. --write keeps them under benchmarks/results/ and
the contact sheet under docs/images/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

import unnoise
from unnoise.data import emoji, pictures
from unnoise.evaluation import nearest
from unnoise.images.sheet import sheet

ROOT = Path(__file__).resolve().parent.parent
WANTED = {
    "green apple": ("green", "apple"),
    "blue heart": ("blue", "heart"),
    "red car": ("red", "car"),
    "purple butterfly": ("purple", "butterfly"),
    "yellow house": ("yellow", "house"),
    "black cat": ("black", "cat"),
    "orange fish": ("orange", "fish"),
    "pink elephant": ("pink", "elephant"),
    "파란 자동차": ("blue", "car"),
    "보라색 하트": ("purple", "heart"),
    "초록색 고양이": ("green", "cat"),
    "노란 나비": ("yellow", "butterfly"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    model = unnoise.load(asked.model)
    with tempfile.TemporaryDirectory() as folder:
        emoji.build(Path(folder))
        data = pictures.read(Path(folder), model.spec.size)
    figures = measure(model, data, asked.count)
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    if asked.write:
        results = ROOT / "benchmarks" / "results"
        results.mkdir(exist_ok=True)
        (results / "builtin.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        contact(model).save(ROOT / "docs" / "images" / "emoji-sheet.png")


def measure(model: unnoise.pipeline.model.Model, data: pictures.Pictures, count: int) -> dict[str, object]:
    figures: dict[str, object] = {
        "model": model.hash,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "captions a language": count,
    }
    for language in emoji.LANGUAGES:
        began = time.perf_counter()
        matches = nearest.agreement(model, data, language, count)
        figures[language] = {
            "own or same noun": sum(map(bool, matches)) / count,
            "own": sum(match.own for match in matches) / count,
            "chance": round(nearest.chance(data, language, count), 4),
            "seconds a picture": round((time.perf_counter() - began) / count, 3),
        }
    rows = nearest.composition(model, data, WANTED)
    figures["compositions"] = {row.caption: f"{row.colour} {row.thing}{'' if row.right else ' (wrong)'}" for row in rows}
    figures["compositions right"] = f"{sum(row.right for row in rows)} of {len(rows)}"
    return figures


def contact(model: unnoise.pipeline.model.Model):
    """The compositions, and captions of the data set in both languages."""
    captions = [*WANTED, "red apple", "sunflower", "rocket", "pizza", "강아지 얼굴", "딸기", "flag of South Korea", "grinning face"]
    return sheet(model.to_pil(nearest.draw(model, captions)), captions, columns=5)


if __name__ == "__main__":
    main()
