"""Pictures that version 0.1 made, whose records had other names: the records below are its own, to the letter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import unnoise
from unnoise.cli.older import modern
from unnoise.images.files import read

BUILTIN = Path(unnoise.__file__).parent / "builtin" / "emoji.safetensors"
built_in = pytest.mark.skipif(not BUILTIN.exists(), reason="the built-in weights are not here")
# unnoise generate "a red apple" --seed 7 --steps 3 --sampler ddim --sampler-option eta=0.5 --guidance-interval 0.2,0.9
PLAIN = (
    '{"model": "emoji", "model_hash": "64e5e344d0", "sampler": "ddim", "spacing": null, "steps": 3, "guidance_scale": 2.0, "width": 64, '
    '"height": 64, "guidance_interval": [0.2, 0.9], "sampler_options": {"eta": 0.5}, "version": "0.1.0", "dtype": "float32", '
    '"device": "cpu", "prompt": "a red apple", "negative_prompt": null, "seed": 7}'
)
# unnoise generate "a red apple" --seed 7 --steps 3 --image photo.png --strength 0.6
FROM_PICTURE = (
    '{"model": "emoji", "model_hash": "64e5e344d0", "sampler": "deis", "spacing": "logsnr", "steps": 3, "guidance_scale": 2.0, '
    '"width": 64, "height": 64, "guidance_interval": [0.0, 1.0], "strength": 0.6, "version": "0.1.0", "dtype": "float32", '
    '"device": "cpu", "inputs": {"image": "c1d2ea46c0"}, "prompt": "a red apple", "negative_prompt": null, "seed": 7, '
    '"given": {"image": "photo.png"}}'
)
OPTIONS = {  # the record, and today's options that ask for the same
    PLAIN: ["--sampler", "ddim", "--sampler-option", "eta=0.5", "--guidance-interval", "0.2,0.9", "--guidance", "2"],
    FROM_PICTURE: [
        *("--image", "photo.png", "--strength", "0.6"),
        *("--sampler", "deis", "--spacing", "logsnr", "--guidance", "2", "--guidance-interval", "0,1"),
    ],
}


def carries(record: str, path: str) -> None:
    info = PngInfo()
    info.add_text("unnoise", record)
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


@built_in
@pytest.mark.parametrize("record", OPTIONS, ids=["plain", "from a picture"])
def test_an_older_picture_is_made_again(command, record):
    Image.effect_noise((64, 64), 90).convert("RGB").save("photo.png")
    carries(record, "older.png")
    again = command("generate", "--from", "older.png", "--out", "again.png")
    assert again.code == 0, again.err
    assert [line for line in again.err.splitlines() if line.startswith("note:") and "was" not in line] == []  # its weights may be older
    now = command("generate", "a red apple", "--seed", 7, "--steps", 3, *OPTIONS[record], "--out", "now.png")
    assert now.code == 0 and pixels("again.png") == pixels("now.png"), now.err
    assert "steps" not in read("again.png").settings and "given" not in read("again.png").settings


def test_files_as_they_were_typed_become_fields_of_a_request():
    given = {"lora": ["line.safetensors=0.5"], "control": ["net=a,b.png,scale=0.8"], "refiner": "xl", "parts": ["autoencoder=vae"]}
    record = modern({"prompt": "x", "steps": 3, "given": given | {"embedding": ["fruit=apple"]}, "inputs": {"adapters": ["LoRA"]}})
    assert record == {
        "prompt": "x",
        "num_inference_steps": 3,
        "adapters": ["LoRA"],
        "lora": [["line.safetensors", 0.5]],
        "control": [{"net": "net", "image": "a,b.png", "scale": 0.8, "start": 0.0, "end": 1.0, "guess": False}],
        "refiner": "xl",
        "parts": {"autoencoder": "vae"},
        "embedding": [["fruit", "apple"]],
    }


def test_what_an_older_record_does_not_name_has_to_be_given_again(fake):
    record = json.loads(FROM_PICTURE)
    carries(json.dumps({name: value for name, value in record.items() if name != "given"}), "library.png")
    refused = fake("generate", "--from", "library.png")
    assert (refused.code, refused.err) == (2, "error: 'library.png' was made with what it does not name: give --image again\n")


def test_a_record_of_today_is_left_as_it_is():
    record = {"prompt": "x", "num_inference_steps": 3, "image": {"path": "a.png", "sha256": "0"}}
    assert modern(record) == record
