"""The `parameters` text: our reader, and a reader written from AUTOMATIC1111's rules, get the same back."""

from __future__ import annotations

import json

import pytest

from unnoise.diffusion.grids import GRIDS
from unnoise.diffusion.solvers import SOLVERS
from unnoise.errors import DataError
from unnoise.images.metadata import SAMPLERS, SPACINGS, from_parameters, to_parameters

SETTINGS = {
    "model": "emoji",
    "model_hash": "0123456789abcdef" * 4,
    "prompt": "a red apple",
    "negative_prompt": "",
    "sampler": "dpmpp_2m",
    "spacing": "karras",
    "num_inference_steps": 20,
    "guidance_scale": 5.0,
    "seed": 7,
    "width": 64,
    "height": 48,
    "version": "0.1.0",
    "dtype": "float32",
    "device": "cpu",
}
PROMPTS = [
    "a red apple",
    "apple, red, on a table: still life",
    'a "quoted" word \\ and a backslash',
    "first line\nsecond line",
    "빨간 사과, 나무 위",
    "(apple:1.2) [worm] <lora:fruit:0.5>",
    "Steps: 3, Sampler: none, Seed: 4, CFG scale: 1",
    "é — 🍎",
    "",
]


def reference(text: str) -> dict:
    """What AUTOMATIC1111 1.10 reads, by its rules, in code that shares nothing with ours. Values stay text; Size is split in two."""
    *body, last = text.strip().split("\n")
    found = pairs(last)
    if len(found) < 3:
        body, found = [*body, last], []
    parts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    now = "Prompt"
    for line in map(str.strip, body):
        if line.startswith("Negative prompt:"):
            now, line = "Negative prompt", line[len("Negative prompt:") :].strip()
        parts[now].append(line)
    values = {key: "\n".join(lines) for key, lines in parts.items()}
    for key, value in found:
        side = value.split("x")
        values |= {f"{key}-1": side[0], f"{key}-2": side[1]} if len(side) == 2 and all(map(str.isdigit, side)) else {key: value}
    return values


def pairs(line: str) -> list[tuple[str, str]]:
    """`key: value` between commas; a value that begins with a quote is a JSON string up to the quote that ends it."""
    found = []
    while line:
        head, _, rest = line.partition(",")
        key, colon, value = head.partition(":")
        if colon and value.strip().startswith('"'):
            text, end = json.JSONDecoder().raw_decode(line, line.index('"'))
            found.append((key.strip(), text))
            rest = line[end:].partition(",")[2]
        elif colon:
            found.append((key.strip(), value.strip()))
        line = rest
    return found


@pytest.mark.parametrize("negative", ["", "blurry, dark", "흐림\n어두움"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_other_readers_get_prompt_and_settings(prompt, negative):
    read = reference(to_parameters({**SETTINGS, "prompt": prompt, "negative_prompt": negative}))
    assert (read["Prompt"], read["Negative prompt"]) == (prompt, negative)
    expected = {"Steps": "20", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "5", "Seed": "7", "Model": "emoji"}
    assert {key: read[key] for key in expected} == expected
    assert (read["Size-1"], read["Size-2"], read["Model hash"]) == ("64", "48", "0123456789")


@pytest.mark.parametrize("negative", ["", "blurry, dark"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_our_reader_round_trips(prompt, negative):
    settings = {**SETTINGS, "prompt": prompt, "negative_prompt": negative, "guidance_scale": 4.123456789012345}
    read = from_parameters(to_parameters(settings))
    kept = {key: value for key, value in settings.items() if key not in ("model_hash", "version", "dtype", "device")}
    assert read == {**kept, "model_hash": settings["model_hash"][:10]}


@pytest.mark.parametrize("model", ["my, model", 'a "b" c', "drive:model", "two\nlines", "모델, 하나", 'quo"ted, one'])
def test_values_that_confuse_a_reader_are_quoted(model):
    text = to_parameters({**SETTINGS, "model": model})
    assert reference(text)["Model"] == model == from_parameters(text)["model"]
    assert reference(text)["Seed"] == "7" and text.count("\n") == 1


@pytest.mark.parametrize("model", ["/models/my.model.safetensors", r"C:\models\my.model.ckpt", "some-one/my.model", "my.model"])
def test_the_text_names_the_model_without_its_folder(model):
    assert reference(to_parameters({**SETTINGS, "model": model}))["Model"] == "my.model"


def test_the_steps_of_a_record_of_version_0_1():
    assert to_parameters({"prompt": "apple", "steps": 20, "seed": 0}) == "apple\nSteps: 20, Seed: 0"


def test_what_is_not_known_is_left_out():
    assert to_parameters({"prompt": "apple", "seed": 0, "spacing": None}) == "apple\nSeed: 0"


@pytest.mark.parametrize("ours, theirs", [*SAMPLERS.items()])
def test_every_sampler_name_is_carried_both_ways(ours, theirs):
    text = to_parameters({**SETTINGS, "sampler": ours})
    assert reference(text)["Sampler"] == theirs and from_parameters(text)["sampler"] == ours


@pytest.mark.parametrize("ours, theirs", [*SPACINGS.items(), ("logsnr", "logsnr")])
def test_every_spacing_name_is_carried_both_ways(ours, theirs):
    text = to_parameters({**SETTINGS, "spacing": ours})
    assert reference(text)["Schedule type"] == theirs and from_parameters(text)["spacing"] == ours


def test_a_text_of_the_webui():
    text = (
        "girl with a hat, (detailed:1.2)\nsecond line\nNegative prompt: ugly, fat\nmore\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, Model: v1-5, "
        'Lora hashes: "a: 1, b: 2", Version: v1.6.0'
    )
    assert from_parameters(text) == {
        "prompt": "girl with a hat, (detailed:1.2)\nsecond line",
        "negative_prompt": "ugly, fat\nmore",
        "num_inference_steps": 20,
        "sampler": "dpmpp_2m",
        "spacing": "karras",
        "guidance_scale": 7.5,
        "seed": 965400086,
        "width": 512,
        "height": 768,
        "model_hash": "45dee52b",
        "model": "v1-5",
    }


def test_automatic_is_no_spacing():
    assert "spacing" not in from_parameters("cat\nSteps: 2, Sampler: Euler, Schedule type: Automatic, Seed: 1")


def test_a_text_without_settings_is_a_prompt():
    assert from_parameters("only a prompt, with: colons") == {"prompt": "only a prompt, with: colons", "negative_prompt": ""}


@pytest.mark.parametrize("broken", ["Steps: ten", "CFG scale: much", "Size: 64", "Size: 64xlarge", "Seed: "])
def test_a_wrong_number_is_named(broken):
    with pytest.raises(DataError, match=broken.split(":")[0]):
        from_parameters(f"cat\n{broken}, Model: a, Model hash: b, Sampler: Euler")


def test_the_translated_names_are_samplers_and_spacings_that_exist():
    assert set(SAMPLERS) <= set(SOLVERS) and set(SPACINGS) <= set(GRIDS)
