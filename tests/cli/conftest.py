from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
    return command


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A model file like the built-in one's, small and untrained: what the command does with it is real, what it draws is not."""
    import torch

    from unnoise.checkpoints import native
    from unnoise.families.spec import ModelSpec
    from unnoise.networks import tokenizers
    from unnoise.networks.dit import DiTConfig
    from unnoise.networks.text import CLIPTextConfig

    tokenizer = tokenizers.learn(["a red apple", "빨간 사과"], vocab=600, length=16)
    vocab = tokenizer.pieces.get_vocab_size()
    text = CLIPTextConfig(vocab=vocab, length=16, width=32, layers=1, heads=2, mlp=64, end_token=tokenizer.end)
    dit = DiTConfig(3, patch=8, width=32, depth=1, heads=2, learn_sigma=False, context_width=32, pooled_width=32)
    spec = ModelSpec(name="tiny", networks={"network": dit, "text_encoder": text})
    weights = {name: torch.randn(p.shape) / 20 for name, p in spec.build("meta").named_parameters()}
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    native.save(path, spec, tokenizer, weights)
    return path
