"""Folders that are broken, of another kind, or of another family: one line with the path, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unnoise.checkpoints import keys, recognise
from unnoise.checkpoints.folder import configs, schedulers
from unnoise.checkpoints.layouts import diffusers, texts
from unnoise.errors import FileError, UnknownName
from unnoise.families.table import FAMILIES
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.unet import UNet

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}
VAE = {"_class_name": "AutoencoderKL", "in_channels": 3, "latent_channels": 4, "block_out_channels": [32], "layers_per_block": 1}
TEXT = {"num_attention_heads": 2, "hidden_act": "quick_gelu"}
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    **{name: ["library", "Class"] for name in ("unet", "vae", "text_encoder", "scheduler")},
}


def component(folder: Path, config: Any, weights: dict[str, torch.Tensor] | None, stem: str = "diffusion_pytorch_model") -> None:
    folder.mkdir(parents=True)
    (folder / ("scheduler_config.json" if weights is None else "config.json")).write_text(json.dumps(config))
    if weights is not None:
        save_file(weights, folder / f"{stem}.safetensors")


@pytest.fixture
def sd1(tmp_path: Path) -> Path:
    """A Stable Diffusion 1 as small as it gets, in diffusers' form."""
    folder = tmp_path / "sd1"
    sizes = configs.UNET.read(UNET)
    component(folder / "unet", UNET, keys.write(diffusers.unet({}), UNet(sizes).state_dict()))
    stage = Autoencoder(AutoencoderConfig(widths=(32,), blocks=1))
    component(folder / "vae", VAE, keys.write(diffusers.autoencoder({}), stage.state_dict()))
    clip = CLIPTextConfig(vocab=64, length=8, width=32, layers=2, heads=2, mlp=64, end_token=63)
    component(folder / "text_encoder", TEXT, keys.write(texts.clip(clip), CLIPTextEncoder(clip).state_dict()), "model")
    component(folder / "scheduler", SCHEDULER, None)
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


def changed(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def refused(folder: Path, *said: str, kind: type[Exception] = FileError, **options: Any) -> None:
    with pytest.raises(kind) as error:
        recognise.model(folder, **options)
    assert "\n" not in str(error.value)
    for words in said:
        assert words in str(error.value), str(error.value)


def test_the_folder_itself_opens(sd1):
    found = recognise.model(sd1)
    assert found.spec.name == "sd1" and set(found.parts) == {"network", "autoencoder", "text_encoder"}
    for part in found.parts.values():
        part.load()


@pytest.mark.parametrize("name", ["EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "KarrasVeScheduler", "", "CosineDPMSolver"])
def test_schedulers_of_other_processes(sd1, name):
    changed(sd1 / "scheduler/scheduler_config.json", _class_name=name)
    refused(sd1, "unknown scheduler", kind=UnknownName)


@pytest.mark.parametrize("name", schedulers.KNOWN)
def test_known_schedulers_are_read(name):
    spec, told = schedulers.read({**SCHEDULER, "_class_name": name}, FAMILIES["sd1"])
    assert name in told[0] and spec.schedule.kind == ("flow" if "FlowMatch" in name else "vp")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"'])
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"])
def test_json_that_holds_no_object(sd1, file, content):
    (sd1 / file).write_text(content)
    refused(sd1, str(sd1 / file), "expected an object")


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_a_missing_field_is_named_with_its_file(sd1, name):
    (sd1 / name / "config.json").write_text("{}")
    refused(sd1, str(sd1 / name / "config.json"), " has no '")


def test_an_activation_that_no_text_encoder_here_has(sd1):
    changed(sd1 / "text_encoder/config.json", hidden_act="relu")
    refused(sd1, "text_encoder", "hidden_act 'relu'", "quick_gelu or gelu")


@pytest.mark.parametrize(
    ("field", "value"),
    {
        "act_fn": "gelu",
        "resnet_time_scale_shift": "scale_shift",
        "dual_cross_attention": True,
        "only_cross_attention": [True],
        "center_input_sample": True,
        "time_embedding_type": "fourier",
        "timestep_post_act": "silu",
        "attention_type": "gated",
        "class_embed_type": "projection",
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text_image",
    }.items(),
)
def test_fields_that_change_what_a_unet_computes(sd1, field, value):
    changed(sd1 / "unet/config.json", **{field: value})
    refused(sd1, str(sd1 / "unet/config.json"), field)


def test_usual_values_of_those_fields_pass(sd1):
    usual = {"act_fn": "silu", "only_cross_attention": False, "dual_cross_attention": False, "addition_embed_type": None}
    changed(sd1 / "unet/config.json", **usual, attention_type="default", time_embedding_type="positional")
    assert recognise.model(sd1).spec.name == "sd1"


def test_heads_of_several_numbers_and_widths():
    with pytest.raises(FileError, match=r"heads for widths \[32, 64\]"):
        two = {"block_out_channels": [32, 64], "down_block_types": UNET["down_block_types"] * 2, "attention_head_dim": [2, 2 * 4]}
        configs.UNET.read({**UNET, **two})


@pytest.mark.parametrize("name", ["vae", "scheduler", "unet"])
def test_a_folder_that_is_not_there(sd1, name):
    (sd1 / name).rename(sd1 / "elsewhere")
    refused(sd1, f"no folder '{name}'")


def test_hints_go_before_the_config(sd1):
    hints = {"network": {"heads": 8, "eps": 1e-6}, "text_encoder": {"heads": 4}, "autoencoder": {"scale": 0.5}}
    parts = recognise.model(sd1, hints).parts
    assert (parts["network"].config.heads, parts["network"].config.eps) == (8, 1e-6)
    assert parts["text_encoder"].config.heads == 4 and parts["autoencoder"].config.scale == 0.5


def test_a_variant_that_the_folder_has_not(sd1):
    refused(sd1, "no file of variant 'fp61'", variant="fp61")
    (sd1 / "unet/diffusion_pytorch_model.safetensors").rename(sd1 / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert recognise.model(sd1, variant="fp16").spec.name == "sd1"


def test_one_component_is_no_model(sd1):
    refused(sd1 / "unet", "one component, UNet2DConditionModel", str(sd1))
    refused(sd1 / "vae", "parts={'autoencoder': ")


def test_pickled_weights_are_converted_by_a_whole_command(sd1):
    (sd1 / "vae/diffusion_pytorch_model.safetensors").rename(sd1 / "vae/diffusion_pytorch_model.bin")
    refused(sd1, f"unnoise convert {sd1}/vae/diffusion_pytorch_model.bin {sd1}/vae/diffusion_pytorch_model.safetensors`")


def test_a_family_that_does_not_exist(sd1):
    changed(sd1 / "unet/config.json", in_channels=5)
    refused(sd1, str(sd1), "5 channels")
