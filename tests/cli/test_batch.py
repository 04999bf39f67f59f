"""`unnoise generate --batch`: each line's pictures, what is wrong by its number, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import unnoise
from cli import fake_library
from cli.fake_library import environment
from unnoise.images.files import read

FAKE = Path(__file__).with_name("fake_library.py")
BUILTIN = Path(unnoise.__file__).parent / "builtin" / "emoji.safetensors"
built_in = pytest.mark.skipif(not BUILTIN.exists(), reason="the built-in weights are not here")
BATCH = ["generate", "--batch", "requests.jsonl", "--out", "out"]


def write(*lines: Any) -> None:
    Path("requests.jsonl").write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def statuses(text: str) -> dict[str, str]:
    return {report["id"]: report["status"] for report in map(json.loads, text.splitlines())}


def files(folder: str = "out") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.png"))


WRONG = {  # a line, and what is said of it
    '{"prompt": ': "no JSON",
    '["a red apple"]': "got ['a red apple']: expected an object",
    '{"prompt": "x", "stepz": 3}': "unknown argument 'stepz'",
    '{"prompt": "x", "num_inference_steps": 0}': "got --steps 0: expected a whole number from 1",
    '{"prompt": "x", "num_inference_steps": "3"}': "got --steps '3': expected a whole number",
    '{"prompt": "x", "sampler": "eular"}': "did you mean 'euler'",
    '{"prompt": "x", "model": "emojy"}': "did you mean 'emoji'",
    '{"prompt": "x", "model": ["emoji"]}': "got --model ['emoji']: expected a text",
    '{"prompt": "x", "parts": ["a=b"]}': "expected files by place",
    '{"prompt": "x", "embedding": [["a", "b", "c"]]}': "expected a file, or a file and its word",
    '{"prompt": "x", "strength": 0.5}': "without an image",
    '{"prompt": "x", "output_type": "pt"}': "the command writes pictures",
    '{"prompt": "x", "image": {"sha256": "0123456789"}}': "give --image again",
    '{"prompt": "x", "id": "../up"}': "got id '../up': expected up to 100 letters",
    '{"prompt": "x", "id": 1.5}': "got id 1.5",
    '{"prompt": "x", "id": "first"}': "which an earlier line has",
    '{"prompt": "a <lora:line:1>"}': "expected --lora-dir",
    '{"prompt": "\\udcff"}': "not valid UTF-8",
    '{"prompt": ["<lora:x>", 3]}': "expected a text or a list of texts",
    '{"prompt": "x", "steps": 3, "given": {"lora": 3}}': "got --lora 3 in a record of version 0.1",
    '{"prompt": "x", "given": 3}': "got given 3 in a record of version 0.1",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_is_named_and_the_rest_is_made(fake, line):
    write({"prompt": "an apple", "id": "first", "seed": 1}, line, {"prompt": "a car", "seed": 2})
    outcome = fake(*BATCH, "--json")
    assert outcome.code == 1 and files() == ["3/0002-a-car.png", "first/0001-an-apple.png"], outcome.err
    (fault,) = [text for text in outcome.err.splitlines() if text.startswith("error: ")]
    assert fault.startswith("error: line 2") and WRONG[line] in fault
    assert sorted(json.loads(report)["status"] for report in outcome.out.splitlines()) == ["failed", "made", "made"]
    assert "3 lines: 2 made, 0 skipped, 1 failed" in outcome.err


def test_bytes_that_are_no_text_are_a_wrong_line(fake):
    Path("requests.jsonl").write_bytes(b'{"prompt": "\xff\xfe"}\n\n{"prompt": "a car", "seed": 2}\n')
    outcome = fake(*BATCH)
    assert outcome.code == 1 and "error: line 1: no JSON" in outcome.err and files() == ["3/0002-a-car.png"]


def test_options_are_the_defaults_of_each_line(fake):
    write({"prompt": "an apple"}, {"num_inference_steps": 9, "sampler": "euler"})
    options = ["a boat", "--steps", "4", "--seed", "3", "--sampler", "dpmpp_2m", "--sampler-option", "eta=1", "--quiet"]
    outcome = fake(*BATCH[:1], *options, *BATCH[1:])
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    records = [read(path).settings for path in ("out/1/0003-an-apple.png", "out/2/0003-a-boat.png")]
    assert [(record["num_inference_steps"], record["sampler"]) for record in records] == [(4, "dpmpp_2m"), (9, "euler")]


def test_a_line_makes_several_pictures_and_their_sheet(fake):
    write({"prompt": ["an apple", "a car"], "num_images_per_prompt": 2, "seed": 3, "id": "both"})
    outcome = fake(*BATCH, "--json")
    report = json.loads(outcome.out)
    assert [picture["seed"] for picture in report["pictures"]] == [3, 4, 5, 6] and report["sheet"] == str(Path("out/both/sheet.png"))
    assert all(Path(picture["path"]).exists() for picture in report["pictures"])


def test_each_model_is_loaded_once(fake, monkeypatch):
    monkeypatch.setattr(fake_library, "LOADS", Path("loads"))
    write(*({"prompt": "x", "model": name} for name in ("emoji", "other", "emoji", "other", "emoji")))
    assert fake(*BATCH).code == 0 and len(files()) == 5
    assert Path("loads").read_text().split() == ["emoji", "other"]
    assert fake(*BATCH).code == 0  # all is there: nothing is loaded
    assert Path("loads").read_text().split() == ["emoji", "other"]


def test_what_is_there_is_skipped_and_another_request_of_its_name_refused(fake):
    write({"prompt": "an apple"}, {"prompt": "a car", "id": "car"})
    first = fake(*BATCH, "--json")
    before = {name: Path("out", name).stat().st_mtime_ns for name in files()}
    again = fake(*BATCH, "--json")
    assert again.code == 0 and set(statuses(again.out).values()) == {"skipped"} and "2 lines: 0 made, 2 skipped" in again.err
    pictures = [[json.loads(line)["pictures"] for line in text.splitlines()] for text in (first.out, again.out)]
    assert pictures[0] == pictures[1] and before == {name: Path("out", name).stat().st_mtime_ns for name in files()}
    write({"prompt": "a boat"}, {"prompt": "a car", "id": "car"}, {"prompt": "an apple", "id": "new"})
    other = fake(*BATCH, "--json")
    assert other.code == 1 and "error: line 1: " in other.err and "something else than this request's pictures" in other.err
    assert statuses(other.out) == {"1": "failed", "car": "skipped", "new": "made"}


def test_no_prompt_is_on_the_disk_where_that_was_asked(fake):
    write({"prompt": "a secret", "seed": 1, "id": "one"})
    assert fake(*BATCH, "--no-metadata").code == 0
    assert [path for path in Path("out").rglob("*") if path.is_file() and b"a secret" in path.read_bytes()] == []


REFUSED = {
    "no file": (BATCH, "--batch 'requests.jsonl': No such file"),
    "a picture beside it": ([*BATCH, "--from", "x.png"], "leave one of them out"),
    "one file for all": ([*BATCH[:3], "--out", "one.png"], "--batch wants a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_whole_batch_is_refused(fake, case):
    arguments, expected = REFUSED[case]
    outcome = fake(*arguments)
    assert (outcome.code, outcome.out) == (2, "") and outcome.err.count("\n") == 1 and expected in outcome.err, outcome


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_a_killed_batch_goes_on_where_it_was(tmp_path, monkeypatch):
    """Killed between two pictures of a line, too: the line is made anew, whole, and nothing stands there twice."""
    monkeypatch.chdir(tmp_path)
    write(*({"prompt": f"picture {n}", "seed": n, "num_images_per_prompt": 2} for n in range(1, 5)))
    command = [sys.executable, str(FAKE), *BATCH, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(FAKE_STEP_SECONDS="0.3"))
    deadline = time.monotonic() + 120
    while not Path("out/1").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    half = Path("out/.2.part")  # what a kill between two pictures leaves
    half.mkdir(exist_ok=True)
    (half / "0002-picture-2.png").write_bytes(b"half a picture")
    whole = [name for name in files() if not name.startswith(".")]
    assert whole == ["1/0001-picture-1.png", "1/0002-picture-1.png", "1/sheet.png"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    assert statuses(done.stdout) == {"1": "skipped", "2": "made", "3": "made", "4": "made"}
    assert files() == [
        f"{n}/{name}" for n in range(1, 5) for name in (f"000{n}-picture-{n}.png", f"000{n + 1}-picture-{n}.png", "sheet.png")
    ]


@built_in
def test_the_real_command_reads_requests_and_records(command):
    """Over the built-in model: a line that is the record of a picture makes that picture, and a wrong line does not stop it."""
    assert command("generate", "a red apple", "--seed", 7, "--steps", 3, "--sampler", "ddim", "--out", "first.png").code == 0
    record = read("first.png").settings
    write({"prompt": "a blue car", "seed": 8, "num_inference_steps": 2}, {"prompt": "x", "height": 65}, {**record, "id": "again"})
    done = command(*BATCH, "--json")
    assert done.code == 1 and statuses(done.out) == {"1": "made", "2": "failed", "again": "made"}, done.err
    assert "error: line 2: got --size (height) 65: expected a multiple of" in done.err and "may differ" not in done.err
    assert pixels("out/again/0007-a-red-apple.png") == pixels("first.png")
    assert read("out/again/0007-a-red-apple.png").settings == record
    one = command("generate", "a blue car", "--seed", 8, "--steps", 2, "--out", "one.png")
    assert one.code == 0 and pixels("one.png") == pixels("out/1/0008-a-blue-car.png")


@built_in
def test_another_process_reads_the_batch(command, tmp_path):
    write({"prompt": "a red apple", "seed": 7, "num_inference_steps": 2}, "{")
    arguments = [sys.executable, "-m", "unnoise", *BATCH]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 1 and files() == ["1/0007-a-red-apple.png"], done.stderr
    assert done.stdout == f"{Path('out/1/0007-a-red-apple.png')}  seed 7\n" and "error: line 2: no JSON" in done.stderr
