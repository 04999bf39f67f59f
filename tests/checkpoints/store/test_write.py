"""Safetensors files written and refused: one sentence a failure."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from unnoise.checkpoints.store import header, write
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError


def made(tensors: dict, length: int | None = None, **more: object) -> bytes:
    """A file by hand: the header as given, and `length` bytes of tensors."""
    text = json.dumps({**tensors, **more}).encode()
    last = max((row["data_offsets"][1] for row in tensors.values()), default=0)
    return len(text).to_bytes(8, "little") + text + bytes(last if length is None else length)


def row(dtype: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TWO = {"a": row("F32", [2, 3], 0, 24), "b": row("BF16", [4], 24, 32)}
WHOLE = made(TWO)
ZIP = b"PK\x03\x04" + bytes(60)
BAD = {
    "truncated": (WHOLE[:-5], f"it has {len(WHOLE) - 5} bytes and should have {len(WHOLE)}: download it again"),
    "truncated in its header": (WHOLE[:50], f"it has 50 bytes, its header alone needs {len(WHOLE) - 32}: download it again"),
    "too long": (WHOLE + b"123", f"it has {len(WHOLE) + 3} bytes, 3 more than its header says"),
    "empty": (b"", "it has 0 bytes"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html>Sign in</html>", "web page.*logged in"),
    "a server's XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
    "JSON": (b'{"error": "not found"}', "JSON"),
    "zip pickle": (ZIP, "pickle.*unnoise convert .* file.safetensors"),
    "bare pickle": (b"\x80\x02}q\x00(X\x05\x00\x00\x00", "pickle.*unnoise convert"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), r"begins with b'\\x89PNG"),
    "no JSON in its header": (b"\x04\0\0\0\0\0\0\0{{{{", "header is not understood"),
    "a header that is a list": (b"\x02\0\0\0\0\0\0\0[]", "begins with"),
    "an entry without a place": (b"\x08\0\0\0\0\0\0\0" + b'{"a":{}}', "header is not understood"),
    "a hole": (made({"a": TWO["a"], "b": row("BF16", [4], 32, 40)}), "b begins at byte .* expected"),
    "an overlap": (made({"a": TWO["a"], "b": row("BF16", [4], 16, 24)}), "b begins at byte .* expected"),
    "a wrong size": (made({"a": row("F32", [2, 3], 0, 20)}), r"a of shape \(2, 3\) and dtype F32 cannot have 20 bytes"),
    "a negative shape": (made({"a": row("F32", [-2, -3], 0, 24)}), r"a of shape \(-2, -3\)"),
    "an unknown dtype": (made({"a": row("F4", [2, 2], 0, 2)}), "stored as F4.*expected one of F64, F32"),
}


@pytest.mark.parametrize("case", BAD)
def test_every_bad_file_has_its_sentence(case, tmp_path):
    content, expected = BAD[case]
    path = tmp_path / "file.ckpt"
    path.write_bytes(content)
    with pytest.raises(FileError, match=expected) as refused:
        header.read(path)
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)
    with pytest.raises(FileError, match=expected):
        Weights.open(path)


def test_sentences_are_all_different():
    assert len({expected for _, expected in BAD.values()}) >= len(BAD) - 4


def test_places_that_are_no_file(tmp_path):
    with pytest.raises(FileError, match=r"no file .*none.safetensors"):
        header.read(tmp_path / "none.safetensors")
    with pytest.raises(FileError, match=r"is a folder.*no .safetensors file in it"):
        header.read(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "unet.safetensors")
    with pytest.raises(FileError, match=r"is a folder.*name the file in it, as unet.safetensors"):
        header.read(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything, Windows has no modes")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "secret.safetensors"
    path.write_bytes(WHOLE)
    path.chmod(0)
    with pytest.raises(FileError, match=r"cannot read .*Permission denied"):
        header.read(path)


def test_the_pointer_in_shared(shared):
    with pytest.raises(FileError, match="Git LFS pointer, not the weights: run `git lfs pull`"):
        header.read(shared / "weights/sd15_layout/unet/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("dtype", header.DTYPES.values(), ids=str)
def test_every_dtype_of_the_library_is_understood(dtype, tmp_path):
    """Another implementation's header: safetensors itself wrote it."""
    path = tmp_path / "one.safetensors"
    tensors = {"a": torch.zeros(3, 5).to(dtype), "none": torch.zeros(0, 4).to(dtype), "scalar": torch.zeros(()).to(dtype)}
    save_file(tensors, path, metadata={"한": "글"})
    found = header.read(path)
    assert found.metadata == {"한": "글"}
    assert {name: (entry.dtype, entry.shape) for name, entry in found.entries.items()} == {
        name: (dtype, tuple(value.shape)) for name, value in tensors.items()
    }


def test_what_is_written_is_read(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(4, 3).T}  # a view, which the format cannot hold as it is
    write.tensors(tmp_path / "a.safetensors", tensors, {"key": "value"})
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(tmp_path / "a.safetensors").items())
    assert Weights.open(tmp_path / "a.safetensors").metadata == {"key": "value"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_leaves_the_old_file_and_no_partial_one(number, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write.tensors(path, {"a": torch.zeros(2)})

    def full(tensors, partial, metadata):
        partial.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(FileError, match=f"cannot write .*a.safetensors: {os.strerror(number)}"):
        write.tensors(path, {"a": torch.ones(2)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"] and load_file(path)["a"].sum() == 0


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from unnoise.checkpoints.store import write
from unnoise.errors import FileError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))  # the system refuses to write more, in the middle of the file
try:
    write.tensors(Path(sys.argv[1]), {"a": torch.zeros(2**18)})
except FileError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is the system's")
def test_the_system_itself_refuses_to_write(tmp_path):
    ran = subprocess.run([sys.executable, "-c", LIMITED, tmp_path / "a.safetensors"], capture_output=True, text=True)
    assert ran.stdout == f"cannot write {tmp_path / 'a.safetensors'}: {os.strerror(errno.EFBIG)}\n", ran.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileError, match=r"cannot write .*No such file or directory"):
        write.tensors(tmp_path / "none" / "a.safetensors", {"a": torch.zeros(1)})


FIT = {"net.conv_in.weight": (3, 3), "net.conv_out.weight": (3, 3)}
UNFIT = {
    "missing": ({"net.conv_in.weight": (3, 3)}, r"1 weights are missing \['net.conv_out.weight'\], 0 unknown"),
    "unknown": ({**FIT, "net.extra": (1,)}, r"0 weights are missing .*1 unknown \['net.extra'\]"),
    "renamed": (
        {"net.conv_in.weight": (3, 3), "net.conv_aus.weight": (3, 3)},
        r"missing \['net.conv_out.weight'\] \(nearest in the file: 'net.conv_aus.weight'\)"
        r", 1 unknown \['net.conv_aus.weight'\] \(nearest expected: 'net.conv_out.weight'\)",
    ),
    "shape": ({**FIT, "net.conv_out.weight": (3, 4)}, r"net.conv_out.weight has shape \(3, 4\), expected \(3, 3\)"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_weights_that_do_not_fit(case, tmp_path):
    found, expected = UNFIT[case]
    with pytest.raises(FileError, match=rf"a.safetensors does not fit: .*{expected}"):
        write.match(tmp_path / "a.safetensors", found, FIT)


def test_weights_that_fit(tmp_path):
    write.match(tmp_path / "a.safetensors", {name: list(shape) for name, shape in FIT.items()}, FIT)
