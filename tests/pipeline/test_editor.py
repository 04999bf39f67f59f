"""What an editor and a type checker see of `generate` and `stream`: every argument by its name and type."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unnoise

RIGHT = """
from pathlib import Path

import unnoise
from PIL import Image

model = unnoise.load("emoji", dtype="float32", device="cpu")
net = unnoise.load_control("canny.safetensors", model=model)
photo = Image.new("RGB", (64, 64))
result = model.generate(
    ["a red apple", "a blue car"],
    negative_prompt="blurry",
    num_inference_steps=20,
    guidance_scale=5,
    guidance_rescale=0.7,
    guidance_interval=(0.2, 0.9),
    sampler="ddim",
    sampler_options={"eta": 0.5},
    spacing="karras",
    height=64,
    width=64,
    num_images_per_prompt=2,
    seed=7,
    image=photo,
    strength=0.6,
    mask_image=Path("mask.png"),
    control=[unnoise.Control(net, photo, scale=0.8, end=0.5)],
    lora=[("line.safetensors", 0.8), "flat.safetensors"],
    safety="blur",
    max_sequence_length=256,
    skip_guidance_layers=[7, 8, 9],
    refiner=model,
)
for seed, record in zip(result.seeds, result.metadata, strict=True):
    print(seed + 1, record["sampler"])
for state in model.stream("a red apple", seed=7, class_labels=[3], output_type="pt"):
    print(f"{state.step} of {state.steps}", state.latents.shape, state.preview()[0].size)
    if state.step > 3:
        break
request = model.request("a red apple", seed=7, clip_skip=1)
for state in model.answer(request.changed(seed=8)):
    state.result()
"""
WRONG = {  # what a checker must find, by the line that stands for `model.generate(...)`
    "misspelt": 'model.generate("a red apple", num_inference_step=20)',
    "mistyped": 'model.generate("a red apple", num_inference_steps="20")',
    "a choice that is not there": 'model.stream("a red apple", safety="blakc")',
}
CHECKERS = {
    "pyright": ("-m", "pyright", "--pythonpath", sys.executable, "--project"),
    "mypy": ("-m", "mypy", "--strict", "--no-incremental", "--config-file"),
}
SETTINGS = {"pyright": ("pyrightconfig.json", '{"typeCheckingMode": "strict"}'), "mypy": ("mypy.ini", "[mypy]\n")}


def errors(checker: str, folder: Path) -> dict[str, list[str]]:
    """Run a checker once over every script of a folder; return its lines of errors by the script's name, "" for other files."""
    name, text = SETTINGS[checker]
    (folder / name).write_text(text)
    scripts = sorted(str(path) for path in folder.glob("*.py"))
    source = str(Path(unnoise.__file__).parents[1])
    arguments = [sys.executable, *CHECKERS[checker], str(folder / name), *([] if checker == "pyright" else scripts)]
    environment = {**os.environ, "PYTHONPATH": source, "MYPYPATH": source}
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(.*?([\w.-]+)\.py:\d+.*error.*)$", done.stdout, re.MULTILINE)
    lines: dict[str, list[str]] = {}
    for line, script in found:
        lines.setdefault(script if (folder / f"{script}.py").exists() else "", []).append(line.strip())
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_script_of_a_user_is_checked(checker, tmp_path):
    pytest.importorskip(checker)
    (tmp_path / "right.py").write_text(RIGHT.lstrip())
    for number, line in enumerate(WRONG.values()):
        (tmp_path / f"wrong_{number}.py").write_text(f'import unnoise\n\nmodel = unnoise.load("emoji")\n{line}\n')
    found = errors(checker, tmp_path)
    assert sorted(found) == [f"wrong_{number}" for number in range(len(WRONG))], found


def test_the_script_has_forty_lines():
    assert 35 <= len(RIGHT.strip().splitlines()) <= 45
