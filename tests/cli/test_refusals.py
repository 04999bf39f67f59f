"""Every wrong name, number, size, file or place: one line on stderr that says what was expected, and a non-zero exit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

import unnoise
from unnoise.errors import MissingExtra

WRONG = {  # case: arguments, exit code, what the line names
    "unknown verb": (["genrate", "x"], 2, "did you mean 'generate'"),
    "unknown verb far from any": (["zzz"], 2, "known commands: generate"),
    "unknown option": (["generate", "x", "--stepz", "3"], 2, "did you mean '--steps'"),
    "unknown short option": (["generate", "x", "-z"], 2, "'-z'"),
    "unknown option of the command": (["--versoin"], 2, "did you mean '--version'"),
    "extra argument": (["samplers", "x"], 2, "samplers --help"),
    "option without a value": (["generate", "x", "--seed"], 2, "--seed"),
    "no prompt": (["generate"], 2, "--from"),
    "steps no number": (["generate", "x", "--steps", "ten"], 2, "--steps: got 'ten', expected a whole number"),
    "guidance no number": (["generate", "x", "--guidance", "1,5"], 2, "--guidance: got '1,5', expected a number"),
    "n zero": (["generate", "x", "-n", "0"], 2, "got --n 0: expected a whole number from 1"),
    "size no pair": (["generate", "x", "--size", "64"], 2, "expected WIDTHxHEIGHT"),
    "size negative": (["generate", "x", "--size", "-64x64"], 2, "expected WIDTHxHEIGHT"),
    "size with a line end": (["generate", "x", "--size", "6\n4"], 2, "expected WIDTHxHEIGHT"),
    "size of many digits": (["generate", "x", "--size", "9" * 5000 + "x1"], 2, "expected WIDTHxHEIGHT"),
    "unknown sampler": (["generate", "x", "--sampler", "eular"], 2, "did you mean 'euler'"),
    "option of a sampler without a value": (["generate", "x", "--sampler-option", "eta"], 2, "--sampler-option: got 'eta'"),
    "option of a spacing without a name": (["generate", "x", "--spacing-option", "=1"], 2, "expected NAME=VALUE"),
    "unknown model": (["generate", "x", "--model", "emojy"], 2, "did you mean 'emoji'"),
    "no UTF-8": (["generate", "\udcff"], 2, "not valid UTF-8"),
    "two pictures, one file": (["generate", "x y", "-n", "2", "--out", "a.png"], 2, "give a folder"),
    "format unknown": (["generate", "x", "--out", "a.gif"], 2, "expected one of .png"),
    "folder is a file": (["generate", "x", "--out", "file"], 2, "is a file, expected a folder"),
    "folder below a file": (["generate", "x", "--out", "file/sub/folder"], 2, "cannot write into"),
    "from nothing": (["generate", "--from", "none.png"], 2, "no file 'none.png'"),
    "from a folder": (["generate", "--from", "."], 2, "cannot read '.'"),
    "from no picture": (["generate", "--from", "file"], 2, "is not a picture"),
    "from a picture without settings": (["generate", "--from", "bare.png"], 2, "holds no settings"),
    "from half a picture": (["generate", "--from", "half.png"], 2, "half.png"),
}


@pytest.fixture
def place(tmp_path):
    """Files that the cases name."""
    (tmp_path / "file").write_text("no picture")
    Image.effect_noise((64, 64), 50).save(tmp_path / "bare.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "bare.png").read_bytes()[:1000])


def is_one_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line(fake, place, case):
    arguments, code, expected = WRONG[case]
    outcome = fake(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert is_one_line(outcome.err) and expected in outcome.err, outcome.err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "error, code, expected",
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "model.safetensors"), 1, "'model.safetensors': Permission denied"),
        (MemoryError(), 1, "smaller --size"),
        (RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB"), 1, "smaller --size"),
        (MissingExtra("emoji", "data"), 2, "pip install 'unnoise[data]'"),
        (ZeroDivisionError("division\nby zero"), 1, "UNNOISE_DEBUG=1"),
    ],
)
def test_whatever_the_library_raises_becomes_one_line(fake, monkeypatch, error, code, expected):
    def fail(*args, **options):
        raise error

    monkeypatch.setitem(vars(unnoise), "load", fail)
    outcome = fake("generate", "an apple")
    assert outcome.code == code and is_one_line(outcome.err) and expected in outcome.err, outcome.err


def test_debug_shows_the_traceback(fake, monkeypatch):
    monkeypatch.setitem(vars(unnoise), "load", lambda *args, **options: 1 / 0)
    monkeypatch.setenv("UNNOISE_DEBUG", "1")
    from unnoise.cli import main

    with pytest.raises(ZeroDivisionError):
        main(["generate", "an apple"])


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may write anywhere")
def test_a_folder_without_permission(fake, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    outcome = fake("generate", "x", "--out", "locked")
    assert outcome.code == 2 and is_one_line(outcome.err) and "permissions" in outcome.err


def test_a_full_disk_leaves_no_file(fake, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = fake("generate", "x")
    assert outcome.code == 2 and is_one_line(outcome.err) and "No space left on device" in outcome.err
    assert list(Path("outputs").iterdir()) == []
