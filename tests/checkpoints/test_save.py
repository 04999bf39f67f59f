"""Models written and read again: file to the same file, file to folder to file, tensor by tensor; and folders that diffusers runs."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import unnoise
from unnoise.checkpoints import save
from unnoise.checkpoints.folder.write import pipeline, write_folder
from unnoise.checkpoints.layouts import first_stage, ldm
from unnoise.checkpoints.store import header, write
from unnoise.errors import ArgumentError, FileError, UnknownName
from unnoise.families.spec import ModelSpec, ScheduleSpec
from unnoise.families.table import FAMILIES
from unnoise.networks import tokenizers
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.dit import DiTConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.t5 import T5Config
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig

CLIP: dict[str, Any] = {"width": 64, "layers": 3, "heads": 1, "mlp": 96}
CLIP_L = CLIPTextConfig(**CLIP)
OPEN_CLIP = CLIPTextConfig(**{**CLIP, "width": 128, "heads": 2}, activation="gelu", projection=128)
UNET: dict[str, Any] = {"widths": (64, 128), "depths": (1, 0), "blocks": 1}
STAGE: dict[str, Any] = {"widths": (32, 32, 32, 32), "blocks": 1}


def family(name: str) -> ModelSpec:
    """A published family at a small size."""
    row = FAMILIES[name]
    networks: dict[str, Any] = {place: _small(row, place, config) for place, config in row.networks.items()}
    sizes = {"null_label": 10, "size": 128} if row.network.kind == "dit" else {}
    return row.with_networks(networks).model_copy(update=sizes)


def _small(row: ModelSpec, place: str, config: Any) -> Any:
    if isinstance(config, UNetConfig):
        context = {"clip": 64, "clip_penultimate": 128, "sdxl": 192, "refiner": 128}[row.conditioning]
        pooled = {"sdxl": 128 + 6 * 256, "refiner": 128 + 5 * 256}.get(row.conditioning, 0)
        sizes = {**UNET, "context_width": context, "pooled_width": pooled, **({"depths": (0, 2), "mid_depth": 2} if pooled else {})}
        return replace(config, **sizes)
    if isinstance(config, MMDiTConfig):
        return MMDiTConfig(4, 2, 128, 2, 2, 192, 192, 16, config.qk_norm, min(config.dual_blocks, 1))
    if isinstance(config, DiTConfig):
        return DiTConfig(patch=2, width=128, depth=2, heads=2, num_classes=10)
    if isinstance(config, AutoencoderConfig):
        channels = {"latent_channels": 4} if row.network.kind == "mmdit" else {}
        return replace(config, **STAGE, **channels)
    if isinstance(config, T5Config):
        return T5Config(vocab=32128, width=192, layers=1, heads=2, head_width=16, mlp=48)
    if place == "text_encoder_2":
        return OPEN_CLIP
    return CLIP_L if config.activation == "quick_gelu" else replace(OPEN_CLIP, projection=128 if config.projection else 0)


def built(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    networks = spec.build().to(dtype).eval()
    for p in networks.parameters():
        nn.init.normal_(p, std=0.05)
    return networks


def words(spec: ModelSpec) -> dict[str, tokenizers.Tokenizer]:
    made = {place: tokenizers.published_clip() for place in ("text_encoder", "text_encoder_2") if place in spec.networks}
    return made | ({"text_encoder_3": tokenizers.published_t5()} if "text_encoder_3" in spec.networks else {})


SINGLE = ["sd1", "sd1-inpainting", "sd2", "sd2-base", "sd2-inpainting", "sdxl", "sdxl-refiner", "sd3-medium", "sd3.5-medium", "dit-xl-2"]


def layout(spec: ModelSpec) -> str:
    return "dit" if spec.network.kind == "dit" else "ldm"


def hints(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """Small heads, which no shape shows."""
    told: dict[str, Any] = {"network": {"heads": spec.network.heads}} if isinstance(spec.network, DiTConfig) else {}
    return told | ({"file": {"family": "sdxl-refiner"}} if spec.name == "sdxl-refiner" else {})


def assert_same(mine: Path, other: Path, left_out: str = "(none)") -> None:
    a, b = load_file(mine), {key: value for key, value in load_file(other).items() if left_out not in key}
    a = {key: value for key, value in a.items() if left_out not in key}
    assert a.keys() == b.keys()
    assert [key for key, value in b.items() if a[key].dtype != value.dtype or not torch.equal(a[key], value)] == []


@pytest.fixture(params=SINGLE)
def single(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ModelSpec, Path]:
    """A family, and a file of it in half precision."""
    spec = family(request.param)
    path = tmp_path / "model.safetensors"
    save.model(path, spec, built(spec, torch.float16), layout(spec))
    return spec, path


def loaded(spec: ModelSpec, path: Path) -> Any:
    parts = {}
    if spec.network.kind == "dit":  # facebook's file has no autoencoder
        parts["autoencoder"] = path.with_name("vae.safetensors")
        save_file(first_stage.tensors(spec.first_stage, dict(built(spec, torch.float16).items())), parts["autoencoder"])
    return unnoise.load(path, dtype="float16", config=hints(spec), parts=parts)


def test_a_file_in_its_own_form_is_itself(single: tuple[ModelSpec, Path]) -> None:
    """What no network reads is kept too, and the metadata."""
    spec, path = single
    stored, metadata = load_file(path), {"modelspec.title": "mine"}
    if spec.network.kind != "dit":
        stored["cond_stage_model.logit_scale"] = torch.tensor(4.6)
    if spec.name == "sd2-base":
        metadata["modelspec.prediction_type"] = "epsilon"
    save_file(stored, path, metadata)
    model, again = loaded(spec, path), path.with_name("again.safetensors")
    assert (model.spec.name, model.spec.prediction) == (spec.name, spec.prediction)
    model.save(again, layout=layout(spec))
    assert_same(again, path)
    assert header.read(again).metadata == metadata


def test_file_to_folder_to_file(single: tuple[ModelSpec, Path]) -> None:
    """But for Stable Diffusion 2's last text layer, which nothing reads and its folder lacks."""
    spec, path = single
    loaded(spec, path).save(path.with_name("folder"))
    folder = unnoise.load(path.with_name("folder"), dtype="float16")
    assert folder.spec.prediction == spec.prediction and folder.spec.schedule == resolved(spec.schedule)
    assert (folder.spec.network, folder.spec.first_stage) == (spec.network, spec.first_stage)
    folder.save(path.with_name("again.safetensors"), layout=layout(spec))
    assert_same(path.with_name("again.safetensors"), path, "resblocks.2." if spec.conditioning == "clip_penultimate" else "(none)")


def resolved(schedule: ScheduleSpec) -> ScheduleSpec:
    """With the ends that a name stands for, as a folder says them."""
    if schedule.kind != "vp" or schedule.beta_start is not None:
        return schedule
    start, end = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}[schedule.betas]
    return schedule.model_copy(update={"beta_start": start, "beta_end": end})


@pytest.mark.parametrize("fixture", ["sd1", "sd2", "inpaint", "cin", "uncond"])
def test_schedule_tables_are_the_authors(shared: Path, fixture: str) -> None:
    path = shared / "golden/ldm" / fixture / "weights.safetensors"
    if not path.is_file():
        pytest.skip("no golden tensors")
    weights = load_file(path)
    rows = {"cin": "ldm-class", "uncond": "ldm-uncond"}
    for name, table in ldm.tables(FAMILIES[rows.get(fixture, "sd1")]).items():
        torch.testing.assert_close(table, weights[name], rtol=1.2e-7 if "log" not in name else 2e-7, atol=0, msg=name)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sdxl-refiner", "sd3.5-medium", "dit-xl-2"])
def test_diffusers_reads_and_runs_the_folder(name: str, tmp_path: Path) -> None:
    """The networks' answers are ours, and so is the picture's latent of two steps."""
    diffusers = pytest.importorskip("diffusers")
    spec = family(name)
    networks = built(spec)
    save.model(tmp_path / "model", spec, networks, "diffusers", tokenizers=words(spec))
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert type(pipe).__name__ == pipeline(spec)
    for component, part in (("unet", "network"), ("transformer", "network"), ("vae", "autoencoder")):
        if (peer := getattr(pipe, component, None)) is not None:
            copies = "norm1.emb." if spec.network.kind == "dit" else "(none)"
            theirs = sum(value.numel() for key, value in peer.named_parameters() if copies not in key or ".0." in key)
            assert theirs == sum(p.numel() for p in networks[part].parameters()), component
    mine = unnoise.load(tmp_path / "model", dtype="float32")
    asked: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0}
    z = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        x = mine.networks["autoencoder"].decode(z)
        torch.testing.assert_close(pipe.vae.decode(z).sample, x, rtol=0, atol=1e-5 * x.abs().max().item())
    if name in ("sd1", "sd2", "sdxl"):
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=False, clip_sample=False)
        theirs = pipe("a red apple", negative_prompt="blue", latents=z, height=128, width=128, output_type="latent", **asked).images
        ours = {"sampler": "ddim", "spacing": "leading", "spacing_options": {"offset": 1, "ending": "first"}, "latents": z}
        made = mine.generate("a red apple", negative_prompt="blue", height=128, width=128, output_type="latent", **ours, **asked).latents
        torch.testing.assert_close(made, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def test_large_components_are_cut_into_files(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    spec = family("sd1")
    networks = built(spec)
    write_folder(tmp_path / "model", spec, dict(networks.items()), words(spec), shard=400_000)
    index = json.loads((tmp_path / "model/unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    again = unnoise.load(tmp_path / "model", dtype="float32").networks["network"].state_dict()
    assert all(torch.equal(again[name], value) for name, value in networks["network"].state_dict().items())
    diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "model/unet")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = family("sd1")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    for path, kind in ((tmp_path / "model", "diffusers"), (tmp_path / "model.safetensors", "ldm")):
        with pytest.raises(FileError, match=r"cannot write .*model.*: No space left on device"):
            save.model(path, spec, built(spec), kind, tokenizers=words(spec))
    assert list(tmp_path.iterdir()) == []


def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    spec = family("sd1")
    networks = built(spec)
    with pytest.raises(UnknownName, match="layout"):
        save.model(tmp_path / "x", spec, networks, "difusers")
    with pytest.raises(FileError, match="layout 'dit' has class-conditional DiT, got sd1"):
        save.model(tmp_path / "x.safetensors", spec, networks, "dit")
    with pytest.raises(FileError, match="a single file's name ends in"):
        save.model(tmp_path / "x", spec, networks, "ldm")
    with pytest.raises(FileError, match=r"layout 'diffusers' has Stable Diffusion 1 to 3\.5 and DiT, got adm-64"):
        save.model(tmp_path / "x", FAMILIES["adm-64"], {}, "diffusers")
    (tmp_path / "x").mkdir()
    with pytest.raises(FileError, match="exists already"):
        save.model(tmp_path / "x", spec, networks, "diffusers", tokenizers=words(spec))
    sdxl = family("sdxl")
    save.model(tmp_path / "xl.safetensors", sdxl, built(sdxl), "ldm")
    with pytest.raises(ArgumentError, match="layout 'unnoise' holds one tokenizer, sdxl has 2"):
        unnoise.load(tmp_path / "xl.safetensors").save(tmp_path / "y.safetensors", layout="unnoise")


def test_the_path_tells_the_usual_layout() -> None:
    for name, path, expected in (("sd1", "x", "diffusers"), ("sd1", "x.safetensors", "ldm"), ("dit-xl-2", "x.safetensors", "dit")):
        assert save.usual_layout(Path(path), FAMILIES[name]) == expected
    assert save.usual_layout(Path("x.safetensors"), FAMILIES["adm-64"]) == "unnoise"
