"""What a picture's record says: its own row of what was given for several pictures, and controls also where they came as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

import unnoise
from unnoise.families.table import FAMILIES
from unnoise.pipeline.job import resolve
from unnoise.pipeline.lines import request_of
from unnoise.pipeline.records import records
from unnoise.pipeline.request import Request


def picture(path: Path, seed: int) -> str:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_each_picture_names_the_image_that_it_was_made_from(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(2)]
    request = Request(prompt=["a", "b"], image=paths, mask_image=paths[0], seed=7)
    found = records(resolve(request, FAMILIES["sd1"]), request)
    assert [record["image"]["path"] for record in found] == paths and found[0]["image"]["sha256"] != found[1]["image"]["sha256"]
    assert [record["mask_image"]["path"] for record in found] == [paths[0]] * 2
    assert request_of(json.loads(json.dumps(found[1]))).image == found[1]["image"]


def test_a_control_from_json_is_recorded_as_the_object_is(tmp_path: Path) -> None:
    path = picture(tmp_path / "hint.png", 1)
    both = [
        Request(prompt="a", seed=7, control=[{"net": "net.safetensors", "image": path, "scale": 0.8}]),
        Request(prompt="a", seed=7, control=unnoise.Control("net.safetensors", path, scale=0.8)),
    ]
    of_json, of_object = (records(resolve(request, FAMILIES["sd1"]), request) for request in both)
    assert of_json == of_object and of_json[0]["control"][0]["image"]["path"] == path
