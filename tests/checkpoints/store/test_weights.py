"""The lazy view: what it says without reading, what it maps, what it casts, what it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from unnoise.checkpoints.store import weights as module
from unnoise.checkpoints.store.weights import Weights, finite
from unnoise.errors import FileError, NonFiniteError

TENSORS = {
    "unet.conv.weight": torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(1)),
    "unet.conv.bias": torch.randn(7, generator=torch.Generator().manual_seed(2)).half(),
    "text.ids": torch.arange(9).view(1, 9),
    "text.empty": torch.zeros(0, 4),
    "text.scale": torch.tensor(2.5, dtype=torch.bfloat16),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def index(tmp_path):
    """Two shards and their index, as diffusers and transformers write them."""
    shards = {"a-00001-of-00002.safetensors": "unet.", "a-00002-of-00002.safetensors": "text."}
    owners = {}
    for shard, prefix in shards.items():
        part = {name: value for name, value in TENSORS.items() if name.startswith(prefix)}
        save_file(part, tmp_path / shard, metadata={"format": "pt"})
        owners.update(dict.fromkeys(part, shard))
    path = tmp_path / "a.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": owners}))
    return path


@pytest.mark.parametrize("source", ["file", "index", "dict"])
def test_the_same_from_a_file_shards_and_a_dict(source, request):
    weights = Weights.open(TENSORS if source == "dict" else request.getfixturevalue(source))
    assert weights.shapes == {name: tuple(value.shape) for name, value in TENSORS.items()}
    assert weights.dtypes == {name: value.dtype for name, value in TENSORS.items()}
    assert weights.bytes == sum(value.nbytes for value in TENSORS.values())
    assert weights.metadata == ({} if source == "dict" else {"format": "pt"})
    assert sorted(weights) == sorted(TENSORS) and len(weights) == 5 and "text.ids" in weights and "ids" not in weights
    assert all(torch.equal(weights.read(name), value) for name, value in TENSORS.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("source", ["file", "dict"])
def test_a_cast_is_torchs_own_and_integers_stay(source, dtype, file):
    weights = Weights.open(TENSORS if source == "dict" else file)
    for name, value in TENSORS.items():
        read = weights.read(name, dtype)
        expected = value.to(dtype) if value.is_floating_point() else value
        assert read.dtype == expected.dtype and read.shape == value.shape
        assert torch.equal(read.float(), expected.float())


@pytest.mark.parametrize("count", [1, 9, 10, 11, 39, 40, 41, 1000])
def test_a_cast_in_pieces_and_by_threads_is_the_plain_one(count, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 10)
    monkeypatch.setattr(module, "LARGE", 40)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    value = torch.randn(count)
    save_file({"before": torch.zeros(3), "x": value}, tmp_path / "a.safetensors")
    assert torch.equal(Weights.open(tmp_path / "a.safetensors").read("x", torch.bfloat16), value.bfloat16())


def test_a_write_never_reaches_the_file_nor_the_next_reader(file):
    before = file.read_bytes()
    weights = Weights.open(file)
    weights.read("unet.conv.weight").fill_(7)
    assert file.read_bytes() == before
    assert torch.equal(Weights.open(file).read("unet.conv.weight"), TENSORS["unet.conv.weight"])


def test_a_tensor_outlives_its_view_and_its_file(file):
    read = Weights.open(file).read("unet.conv.weight")
    file.unlink()
    assert torch.equal(read, TENSORS["unet.conv.weight"])
    assert read.untyped_storage().nbytes() == read.nbytes  # its own bytes, not the file's: what torch.save would write


def test_tensors_at_odd_places(tmp_path):
    """A header of odd length: numbers off their alignment are copied."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    text += b" " * (1 - len(text) % 2)  # odd
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + torch.tensor([1.5, -2.5]).numpy().tobytes())
    assert Weights.open(path).read("a").tolist() == [1.5, -2.5]
    assert Weights.open(path).read("a", torch.float16).tolist() == [1.5, -2.5]


def test_prefixed(index):
    part = Weights.open(index).prefixed("unet.").prefixed("conv.")
    assert part.shapes == {"weight": (7, 5, 3, 3), "bias": (7,)} and part.dtypes["bias"] == torch.float16
    assert torch.equal(part.read("weight"), TENSORS["unet.conv.weight"]) and part.metadata == {"format": "pt"}
    assert len(Weights.open(index).prefixed("none.")) == 0


def test_an_unknown_name_gives_the_nearest(file):
    with pytest.raises(FileError, match=r"a.safetensors has no tensor 'unet.conv.wight': did you mean 'unet.conv.weight'"):
        Weights.open(file).read("unet.conv.wight")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_file_replaced_behind_our_back(dtype, file):
    weights = Weights.open(file)
    other = file.with_name("other")
    save_file({name: value + 1 for name, value in TENSORS.items()}, other)
    other.replace(file)
    with pytest.raises(FileError, match="was replaced while it was read: load it again"):
        weights.read("unet.conv.weight", dtype)


def without(path, change):
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_a_missing_shard_is_named(index):
    (index.parent / "a-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileError, match=r"1 of its 2 files are missing, a-00002-of-00002.safetensors first"):
        Weights.open(index)


def test_a_shard_of_another_model(index):
    save_file({"other": torch.zeros(1)}, index.parent / "a-00002-of-00002.safetensors")
    with pytest.raises(FileError, match=r"a-00002-of-00002.safetensors lacks text\..*which the index promises"):
        Weights.open(index)


def test_a_truncated_shard_is_named(index):
    shard = index.parent / "a-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FileError, match=r"a-00001-of-00002.safetensors is not a whole safetensors file: it has .* should have"):
        Weights.open(index)


@pytest.mark.parametrize("place", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "", 3, None])
def test_an_index_that_leads_out_of_its_folder(place, index):
    without(index, lambda found: found["weight_map"].update({"text.ids": place}))
    with pytest.raises(FileError, match="names something else than files beside it"):
        Weights.open(index)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', "<html>"])
def test_what_is_no_index(content, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(FileError, match=r"is not an index of safetensors files"):
        Weights.open(path)
    with pytest.raises(FileError, match=r"cannot read .*No such file"):
        Weights.open(tmp_path / "none.json")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_a_weight_that_is_no_number_is_named(bad, dtype, tmp_path):
    values = torch.randn(50_000)
    values[40_000] = bad
    tensors = {"good": torch.randn(9), "ids": torch.arange(3), "net.bad": values.to(dtype)}
    save_file(tensors, tmp_path / "a.safetensors")
    for source in (tensors, tmp_path / "a.safetensors"):
        with pytest.raises(NonFiniteError, match=r"net.bad holds NaN or infinity"):
            Weights.open(source).check_finite()
    assert not finite(tensors["net.bad"]) and finite(tensors["good"]) and finite(tensors["ids"])


def test_good_weights_are_finite(file):
    Weights.open(file).check_finite()


COST = """
import sys, time, torch
from pathlib import Path
from unnoise.checkpoints.store.weights import Weights

def peak():  # MB of anonymous and of file pages
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024

Weights.open({"a": torch.zeros(2**21)}).read("a", torch.bfloat16)  # what torch itself needs for a cast
before, began = peak(), time.perf_counter()
weights = Weights.open(sys.argv[1])
weights.shapes
opened = time.perf_counter() - began
kept = [weights.read(name, getattr(torch, sys.argv[2])) for name in weights]
print(opened, peak() - before, sum(value.nbytes for value in kept) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.05), ("bfloat16", 1.2)])
def test_what_reading_costs(dtype, most, tmp_path):
    """128 MB of float32: mapped they cost nothing until they are used; cast, the result and no more."""
    path = tmp_path / "a.safetensors"
    save_file({f"block.{i}": torch.full((2**21,), float(i)) for i in range(16)}, path)
    ran = subprocess.run([sys.executable, "-c", COST, path, dtype], capture_output=True, text=True, check=True)
    opened, cost, result = map(float, ran.stdout.split())
    assert cost < most * result + 4, f"{cost:.0f} MB for {result:.0f} MB of weights"
    assert opened < 0.5  # seconds
