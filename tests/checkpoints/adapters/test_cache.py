"""A file of an adapter is read once: counted at the reading itself."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.adapters import models
from unnoise.checkpoints.adapters import cache, files
from unnoise.errors import FileError
from unnoise.families.spec import ModelSpec, ScheduleSpec
from unnoise.networks.dit import DiTConfig
from unnoise.pipeline.model import Model

NAME = "lora_unet_blocks_0_attn_proj"
DIT = DiTConfig(in_channels=4, patch=2, width=16, depth=1, heads=2, num_classes=10, learn_sigma=False)


def write(path: Path, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(*shape, generator=generator) for shape in ((16, 2), (2, 16)))
    save_file({f"{NAME}.lora_up.weight": up, f"{NAME}.lora_down.weight": down}, path)
    return path


def model() -> Model:
    spec = ModelSpec(
        name="dit", prediction="eps", schedule=ScheduleSpec(kind="vp"), size=8, multiple=2, networks={"network": DIT}, conditioning="labels"
    )
    networks = spec.build().eval()
    for p in networks.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return Model(spec, {}, networks)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were read, in order."""
    seen: list[str] = []
    original = files.read

    def counted(weights, networks, *, strict=True):
        seen.append(str(weights.path))
        return original(weights, networks, strict=strict)

    monkeypatch.setattr(files, "read", counted)
    return seen


def drawn(one: Model, lora) -> torch.Tensor:
    return one.generate(class_labels=1, guidance_scale=1.0, num_inference_steps=1, seed=1, output_type="latent", lora=lora).latents


def test_generate_reads_a_file_once(tmp_path: Path, reads: list[str]) -> None:
    one, path = model(), write(tmp_path / "a.safetensors")
    plain, first = drawn(one, None), drawn(one, str(path))
    assert not torch.equal(first, plain)
    assert torch.equal(drawn(one, str(path)), first)
    assert not torch.equal(drawn(one, (str(path), 0.5)), first)  # a scale is no part of the file
    assert reads == [str(path)]


def test_a_file_that_changed_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    one, path = model(), write(tmp_path / "a.safetensors")
    first = drawn(one, path)
    os.replace(write(tmp_path / "b.safetensors", seed=1), path)
    assert not torch.equal(drawn(one, path), first) and len(reads) == 2
    os.utime(path, ns=(1, 1))
    drawn(one, path)
    assert len(reads) == 3


def test_another_model_reads_for_itself_and_takes_its_own_with_it(tmp_path: Path, reads: list[str]) -> None:
    path, networks = write(tmp_path / "a.safetensors"), []
    for _ in range(2):
        one = model()
        drawn(one, path)
        networks.append(weakref.ref(one.networks["network"]))
        assert networks[-1]() in cache._KEPT
    assert len(reads) == 2
    del one
    gc.collect()
    assert [network() for network in networks] == [None, None]


def test_the_latest_are_kept(tmp_path: Path, reads: list[str]) -> None:
    networks = models.empty(models.SD15)
    paths = [tmp_path / f"{i}.safetensors" for i in range(cache.LATEST + 1)]
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    for path in paths:
        save_file({f"{name}.lora_up.weight": torch.ones(24, 1), f"{name}.lora_down.weight": torch.ones(1, 24)}, path)
        cache.read(path, networks)
    cache.read(paths[-1], networks)
    assert len(reads) == len(paths)
    cache.read(paths[0], networks)
    assert len(reads) == len(paths) + 1


def test_a_refusal_is_not_kept(tmp_path: Path) -> None:
    networks = models.empty(models.SD15)
    path = write(tmp_path / "a.safetensors")
    for _ in range(2):
        with pytest.raises(FileError):
            cache.read(path, networks)
        with pytest.raises(FileError, match="no file"):
            cache.read(tmp_path / "none.safetensors", networks)
