"""The command over the real library: the built-in model where its weights are, and a small untrained one everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import unnoise
from cli.fake_library import environment
from unnoise.images.files import read

BUILTIN = Path(unnoise.__file__).parent / "builtin" / "emoji.safetensors"
built_in = pytest.mark.skipif(not BUILTIN.exists(), reason="the built-in weights are not here")
REFUSED = {  # the options, and what the line says was got and expected
    "no steps": (["--steps", "0"], ["--steps 0", "1 to"]),
    "steps below none": (["--steps", "-3"], ["--steps -3", "1 to"]),
    "too many steps": (["--steps", "1000000000"], ["--steps 1000000000", "1 to"]),
    "guidance no number": (["--guidance", "nan"], ["--guidance nan", "number"]),
    "guidance without end": (["--guidance", "inf"], ["--guidance inf", "number"]),
    "no picture": (["-n", "0"], ["--n 0", "1 to"]),
    "pictures below none": (["-n", "-1"], ["--n -1", "1 to"]),
    "too many pictures": (["-n", "1000000000"], ["--n 1000000000", "1 to"]),
    "a width that does not divide": (["--size", "65x64"], ["--size (width) 65", "multiple of"]),
    "no width": (["--size", "0x64"], ["--size (width) 0"]),
    "huge": (["--size", "99999992x99999992"], ["99999992"]),
    "seed below none": (["--seed", "-5"], ["--seed -5", "-1 to"]),
    "seed of many digits": (["--seed", "9" * 30], ["--seed 999", "-1 to"]),
    "unknown sampler": (["--sampler", "dpmpp2m"], ["'dpmpp2m'", "did you mean 'dpmpp_2m'"]),
    "unknown spacing": (["--spacing", "karas"], ["'karas'", "did you mean 'karras'"]),
    "unknown model": (["--model", "emojy"], ["unknown model 'emojy'"]),
    "missing model file": (["--model", "none.safetensors"], ["none.safetensors", "expected"]),
    "model file of another kind": (["--model", "text.safetensors"], ["text.safetensors", "not a whole safetensors file"]),
    "unknown dtype": (["--dtype", "float17"], ["'float17'", "did you mean 'float16'"]),
    "unknown device": (["--device", "cudda"], ["'cudda'", "did you mean 'cuda'"]),
}


@pytest.fixture(params=["tiny", pytest.param("emoji", marks=built_in)])
def model(request, tiny) -> str:
    return str(tiny) if request.param == "tiny" else "emoji"


def pixels(path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_picture_is_made_again_from_what_it_carries(command, model):
    made = command("generate", "a red apple", "빨간 사과, 둘", "--model", model, "--seed", 7, "--steps", 3, "--json")
    assert made.code == 0, made.err
    for index, picture in enumerate(json.loads(made.out)["pictures"]):
        again = command("generate", "--from", picture["path"], "--out", f"again-{index}.png")
        assert again.code == 0 and "note:" not in again.err, again.err
        assert pixels(picture["path"]) == pixels(f"again-{index}.png")


@pytest.mark.parametrize(
    "options",
    [
        ["--sampler", "ddim", "--spacing", "karras"],
        ["--sampler", "ddim", "--sampler-option", "eta=0.5", "--spacing", "karras", "--spacing-option", "ending=first"],
        ["--sampler", "unipc", "--sampler-option", "order=3", "--spacing", "leading", "--spacing-option", "offset=1"],
        ["--sampler", "ddpm", "--negative-prompt", "green, 초록"],
        ["--guidance", "1", "--size", "80x64"],
        ["--guidance", "0", "--dtype", "bfloat16"],
    ],
)
def test_every_setting_is_part_of_the_record(command, tiny, options):
    assert command("generate", "an apple", "--model", tiny, "--seed", 7, "--steps", 3, *options, "--out", "first.png").code == 0
    again = command("generate", "--from", "first.png", "--out", "second.png")
    assert again.code == 0 and "note:" not in again.err, again.err
    assert pixels("first.png") == pixels("second.png") and read("first.png") == read("second.png")


def test_another_process_makes_the_same_pixels(command, model, tmp_path):
    assert command("generate", "a red apple", "--model", model, "--seed", 7, "--steps", 3, "--out", "first.png").code == 0
    again = [sys.executable, "-m", "unnoise", "generate", "--from", "first.png", "--out", "second.png"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # a matrix product rounds by how many share it
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, env=environment() | threads, timeout=300)
    assert done.returncode == 0 and pixels("first.png") == pixels("second.png"), done.stderr


@pytest.mark.parametrize("case", REFUSED)
def test_the_library_refuses_in_one_line_by_the_options_that_were_typed(command, tiny, case):
    options, expected = REFUSED[case]
    Path("text.safetensors").write_text("no weights")
    outcome = command("generate", "an apple", "--model", tiny, *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert [part for part in expected if part not in outcome.err] == [], outcome.err
    assert not Path("outputs").exists()


def test_a_model_file_whose_defaults_do_not_exist(command, tiny):
    """Refused when it is loaded, not in the middle of a request."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(tiny, "pt") as file:
        header = file.metadata()
    spec = json.loads(header["spec"])
    spec["defaults"]["sampler"] = "eular"
    save_file(load_file(tiny), "bad.safetensors", {**header, "spec": json.dumps(spec)})
    outcome = command("generate", "an apple", "--model", "bad.safetensors")
    assert (outcome.code, outcome.out) == (2, "") and outcome.err.count("\n") == 1, outcome
    assert "defaults.sampler" in outcome.err and "did you mean 'euler'" in outcome.err


@built_in
def test_a_misspelt_built_in_model(command):
    assert "did you mean 'emoji'" in command("generate", "an apple", "--model", "emojy").err


def test_an_empty_prompt_draws_without_one(command, tiny):
    outcome = command("generate", "", "--model", tiny, "--steps", 2, "--seed", 7)
    assert outcome.code == 0 and Path("outputs/0007-picture.png").exists(), outcome.err


@pytest.mark.parametrize("verb, name", [("samplers", "dpmpp_2m"), pytest.param("models", "emoji", marks=built_in)])
def test_the_lists(command, verb, name):
    assert name in command(verb).out
    assert name in [entry["name"] for entry in json.loads(command(verb, "--json").out)[verb]]


def test_another_sampler_leaves_the_recorded_options_of_the_old_one(command, tiny):
    options = ["--sampler", "ddim", "--sampler-option", "eta=0.5", "--spacing", "karras", "--spacing-option", "rho=5"]
    assert command("generate", "an apple", "--model", tiny, "--seed", 7, "--steps", 3, *options, "--out", "first.png").code == 0
    again = command("generate", "--from", "first.png", "--sampler", "heun", "--spacing", "flow", "--out", "second.png")
    assert again.code == 0 and "--sampler-option: {'eta': 0.5} in 'first.png' is left out" in again.err
    assert "sampler_options" not in read("second.png").settings and "spacing_options" not in read("second.png").settings
