"""Pickles become safetensors or are refused, and nothing of them ever runs."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unnoise.checkpoints.pickles import convert, process
from unnoise.errors import FileError, UnknownName

W = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}
EMA = {name: value + 10 for name, value in W.items()}


def converted(tmp_path: Path, content: object, key: str | None = None, **options) -> tuple[dict, convert.Converted]:
    torch.save(content, tmp_path / "in.pt", **options)
    made = process.convert(tmp_path / "in.pt", tmp_path / "out.safetensors", key)
    return load_file(tmp_path / "out.safetensors"), made


def same(got: dict, expected: dict) -> bool:
    return got.keys() == expected.keys() and all(torch.equal(value, expected[name]) for name, value in got.items())


class Gadget:
    """What an attacker writes: a call that runs when the pickle is read."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"echo ran > '{self.proof}'",)


def foreign(monkeypatch, module: str, name: str) -> type:
    """A class of a package that is not installed here, as a pickle names it."""
    parts = module.split(".")
    for i in range(len(parts)):
        path = ".".join(parts[: i + 1])
        monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
    made = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


@pytest.mark.parametrize("form", ["zip", "before 1.6", "bare"])
def test_a_gadget_does_not_run_and_is_refused_in_one_line(form, tmp_path):
    path, proof = tmp_path / "in.ckpt", tmp_path / "proof"
    content = {"state_dict": W, "x": Gadget(proof)}
    if form == "bare":
        path.write_bytes(pickle.dumps({"x": Gadget(proof)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(FileError, match=r"asks to run (posix|nt).system.*may be malicious|torch.save did not write: refused") as refused:
        convert.convert(path, tmp_path / "out.safetensors")
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.ckpt"]
    pickle.loads(pickle.dumps(Gadget(proof)))  # the fixture is a true one: whoever reads it plainly runs it
    assert proof.exists()


def test_the_process_that_reads_it_is_another_one(tmp_path):
    torch.save({"state_dict": {f"module.{name}": value for name, value in W.items()}, "model": W, "epoch": 3}, tmp_path / "in.ckpt")
    made = convert.convert(tmp_path / "in.ckpt", tmp_path / "out.safetensors")
    assert made == convert.Converted("state_dict", ["model"], 2, 32, [])
    assert same(load_file(tmp_path / "out.safetensors"), W)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "source": "in.ckpt", "entry": "state_dict"}


def test_the_process_may_die(tmp_path, monkeypatch):
    (tmp_path / "in.ckpt").write_bytes(b"PK")
    monkeypatch.setattr(sys, "executable", "/bin/false" if Path("/bin/false").exists() else "/usr/bin/false")
    with pytest.raises(FileError, match=r"cannot convert .*in.ckpt: the process that reads it failed: no word"):
        convert.convert(tmp_path / "in.ckpt", tmp_path / "out.safetensors")


KEEPS = {
    "plain": (W, None, W, ""),
    "ordered": (OrderedDict(W), None, W, ""),
    "parameters": ({name: torch.nn.Parameter(value) for name, value in W.items()}, None, W, ""),
    "state_dict": ({"state_dict": W, "epoch": 1}, None, W, "state_dict"),
    "DiT: the average first": ({"model": W, "ema": EMA, "opt": {"state": {}}, "args": None}, None, EMA, "ema"),
    "DiT: the model on request": ({"model": W, "ema": EMA}, "model", W, "model"),
    "DataParallel": ({f"module.{name}": value for name, value in W.items()}, None, W, ""),
    "ermongroup with an average": ([W, {"state": {0: {"step": torch.zeros(1)}}}, 7, 70, EMA], None, EMA, "ema"),
    "ermongroup without": ([{f"module.{name}": value for name, value in W.items()}, {"state": {}}, 7, 70], None, W, "model"),
    "textual inversion": ({"<birb>": torch.ones(4)}, None, {"<birb>": torch.ones(4)}, ""),
    "textual inversion of the web UI": (
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(1, 4)}, "name": "birb"},
        None,
        {"emb_params": torch.ones(1, 4)},
        "string_to_param",
    ),
    "nested": (
        {"unet": {"down": [torch.ones(1), torch.zeros(2)]}},
        None,
        {"unet.down.0": torch.ones(1), "unet.down.1": torch.zeros(2)},
        "",
    ),
    "a tensor": (torch.ones(3), None, {"tensor": torch.ones(3)}, ""),
}


@pytest.mark.parametrize("case", KEEPS)
def test_what_wraps_the_weights(case, tmp_path):
    content, key, expected, taken = KEEPS[case]
    got, made = converted(tmp_path, content, key)
    assert same(got, expected) and made.taken == taken and made.tensors == len(expected)


def test_what_was_dropped_is_said(tmp_path):
    _, made = converted(tmp_path, {**W, "step": 7, "note": "x", "args": {"lr": 1e-4}})
    assert made.dropped == ["step", "note", "args.lr"]


def test_score_sdes_average_is_a_list_in_the_order_of_the_parameters(tmp_path):
    """Buffers (sigmas) and frozen parameters have no average and come from the model."""
    model = {"sigmas": torch.arange(5.0), "all_modules.0.W": torch.ones(4), "all_modules.1.weight": torch.zeros(4, 2)}
    model |= {"all_modules.1.bias": torch.zeros(3), "all_modules.2.running": torch.full((7,), 2.0)}
    shadow = [torch.full((4, 2), 5.0), torch.full((3,), 6.0)]
    content = {"optimizer": {}, "model": {f"module.{name}": value for name, value in model.items()}, "step": 3}
    got, made = converted(tmp_path, {**content, "ema": {"decay": 0.999, "num_updates": 3, "shadow_params": shadow}})
    assert same(got, {**model, "all_modules.1.weight": shadow[0], "all_modules.1.bias": shadow[1]})
    assert (made.taken, made.others) == ("ema", ["model"])
    (tmp_path / "out.safetensors").unlink()
    with pytest.raises(FileError, match=r"average has 2 tensors that do not follow the model's 5: use --key model"):
        converted(tmp_path, {**content, "ema": {"shadow_params": shadow[::-1]}})


def test_tensors_that_share_memory(tmp_path):
    base = torch.arange(12.0)
    content = {"tied": base, "tied again": base, "part": base[3:6], "turned": base.view(3, 4).T, "none": torch.zeros(0)}
    got, _ = converted(tmp_path, content)
    assert same(got, content)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("new", [True, False])
def test_dtypes_and_both_forms_of_torch_save(dtype, new, tmp_path):
    value = torch.arange(4.0).to(dtype)
    got, _ = converted(tmp_path, {"a": value}, _use_new_zipfile_serialization=new)
    assert got["a"].dtype == dtype and torch.equal(got["a"].view(torch.uint8), value.view(torch.uint8))


def test_what_trainers_leave_beside_the_weights(tmp_path, monkeypatch):
    """CompVis' own .ckpt files hold callbacks of Lightning; they become empty placeholders and are dropped."""
    callback = foreign(monkeypatch, "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    made = callback()
    made.best = torch.ones(1)
    content = {"state_dict": W, "callbacks": {callback: {"best_model_score": None}}, "object": made, "score": np.float64(0.5)}
    got, _ = converted(tmp_path, {**content, "args": argparse.Namespace(lr=1e-4)})
    assert same(got, W)


def test_a_pickle_of_code_says_why(tmp_path, monkeypatch):
    """NVIDIA's: an object rebuilt from the source text of its class."""

    def _reconstruct_persistent_obj(meta: dict) -> None:
        pass

    foreign(monkeypatch, "torch_utils.persistence", "unused")
    monkeypatch.setattr(sys.modules["torch_utils.persistence"], "_reconstruct_persistent_obj", _reconstruct_persistent_obj, raising=False)
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    reduced = type("P", (), {"__reduce__": lambda self: (_reconstruct_persistent_obj, ({"module_src": "import os"},))})
    for name, save in {
        "in.pkl": lambda path: path.write_bytes(pickle.dumps({"ema": reduced()})),
        "in.pt": lambda p: torch.save({"ema": reduced()}, p),
    }.items():
        save(tmp_path / name)
        with pytest.raises(FileError, match=r"a pickle of code.*Python source that runs when it is read.*net.state_dict\(\)"):
            process.convert(tmp_path / name, tmp_path / "out.safetensors")


def cut(path: Path) -> None:
    torch.save(W, path)
    path.write_bytes(path.read_bytes()[:-200])


REFUSED = {
    "cut": (cut, r"is cut: it begins as a checkpoint of PyTorch and has no end at [\d,]+ bytes"),
    "cut before 1.6": (
        lambda path: torch.save(W, path, _use_new_zipfile_serialization=False) or path.write_bytes(path.read_bytes()[:-8]),
        "is not a whole checkpoint of PyTorch",
    ),
    "no tensors": (lambda path: torch.save({"epoch": 3}, path), "holds no tensors"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html>"), "is a web page"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    "empty": (lambda path: path.touch(), "has 0 bytes"),
    "a zip of something else": (
        lambda path: __import__("zipfile").ZipFile(path, "w").writestr("a", "b"),
        "not a whole checkpoint of PyTorch",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, tmp_path):
    make, expected = REFUSED[case]
    make(tmp_path / "in.pt")
    with pytest.raises(FileError, match=expected) as refused:
        process.convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert str(tmp_path / "in.pt") in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_an_entry_that_is_not_there(tmp_path):
    with pytest.raises(UnknownName, match=r"unknown entry 'emma': did you mean 'ema'\?"):
        converted(tmp_path, {"ema": EMA, "model": W}, key="emma")


def test_places_that_cannot_be(tmp_path):
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(W, path)
    for source, target, expected in (
        (path, out, "is a safetensors file already"),
        (tmp_path, out, "is a folder, expected a file"),
        (tmp_path / "none.pt", out, "no file .*none.pt"),
        (path, tmp_path / "out.pt", "expected a name that ends in .safetensors"),
        (path, path, "exists already"),
    ):
        with pytest.raises(FileError, match=expected):
            convert.convert(source, target)


def test_every_real_pickle(shared, tmp_path):
    real = sorted(p for p in (shared / "weights").rglob("*") if p.suffix in (".pt", ".pth", ".bin"))
    assert len(real) >= 7
    for path in real:
        out = tmp_path / f"{path.stem}.safetensors"
        made = process.convert(path, out)
        expected = torch.load(path, map_location="cpu", weights_only=True)
        assert same(load_file(out), expected) and made.dropped == [] and made.taken == ""


def test_no_other_file_reads_pickles():
    """weights_only, in one place, with no way around it."""
    folder = Path(convert.__file__).parents[2]
    found = {p.name for p in folder.rglob("*.py") if re.search(r"torch\.load\(|pickle\.loads?\(|Unpickler\(", p.read_text())}
    assert found == {"process.py"}
    assert "weights_only=False" not in (folder / "checkpoints" / "pickles" / "process.py").read_text()
