from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

import unnoise
from cli import fake_library
from unnoise.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys, monkeypatch, tmp_path) -> Callable[..., Outcome]:
    """The whole command in this process, in an empty folder, with whatever `unnoise.load` is."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return Outcome(stop.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def fake(monkeypatch, command) -> Callable[..., Outcome]:
    """The command over a model that needs no torch."""
    for name, value in fake_library.NAMES.items():
        monkeypatch.setitem(vars(unnoise), name, value)
    monkeypatch.setitem(sys.modules, "unnoise.model", fake_library.module())
    return command
