"""What `load` and `load_control` refuse: arguments that change nothing, files of another kind, places without a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import unnoise
from unnoise.checkpoints import keys, recognise
from unnoise.checkpoints.layouts import controlnet, first_stage, numbered, texts
from unnoise.errors import ArgumentError, FileError, UnknownName, UnnoiseError
from unnoise.families.table import FAMILIES
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig
from unnoise.networks.controlnet import ControlNet, ControlNetConfig
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.unet import UNet, UNetConfig
from unnoise.networks.vision import CLIPVisionConfig, SafetyNetwork

SMALL = UNetConfig(widths=(32,), blocks=1, depths=(1,), context_width=32)
CLIP = CLIPTextConfig(vocab=64, length=8, width=32, layers=2, heads=2, mlp=64, end_token=63)
STAGE = AutoencoderConfig(widths=(32,), blocks=1)


def single(path: Path, config: UNetConfig = SMALL) -> Path:
    """A file of Stable Diffusion 1's form."""
    with torch.device("cpu"):
        unet, stage, clip = UNet(config), Autoencoder(STAGE), CLIPTextEncoder(CLIP)
    weights = {
        **prefixed("model.diffusion_model.", keys.write(numbered.unet(config), unet.state_dict())),
        **prefixed("first_stage_model.", keys.write(first_stage.autoencoder(STAGE), stage.state_dict())),
        **prefixed("cond_stage_model.transformer.", keys.write(texts.clip(CLIP), clip.state_dict())),
    }
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


def prefixed(front: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {front + name: value for name, value in weights.items()}


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return single(tmp_path_factory.mktemp("files") / "sd1.safetensors")


def refused(kind: type[UnnoiseError], *said: str, model: object, **options: object) -> None:
    with pytest.raises(kind) as error:
        unnoise.load(model, device="cpu", **options)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(error.value)
    for words in said:
        assert words in str(error.value), str(error.value)


def test_the_file_itself_loads(sd1):
    model = unnoise.load(sd1, device="cpu", config={"network": {"heads": 4}, "text_encoder": {"heads": 4}})
    assert model.spec.name == "sd1" and model.networks["network"].config.heads == 4  # pyright: ignore[reportAttributeAccessIssue]
    assert model.networks["text_encoder"].config.heads == 4  # pyright: ignore[reportAttributeAccessIssue]
    assert unnoise.load(sd1, device="cpu", prediction="v").spec.prediction == "v"


@pytest.mark.parametrize(
    "options", [{"parts": {"text_encoder": None}}, {"config": {"network": {"heads": 2}}}, {"variant": "fp16"}, {"prediction": "v"}]
)
def test_a_file_that_unnoise_saved_says_everything_itself(options):
    refused(ArgumentError, next(iter(options)), "leave it out", model="emoji", **options)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"netwrk": {"heads": 1}}, "did you mean 'network'"),
        ({"network": {"hedas": 2}}, "did you mean 'heads'"),
        ({"file": {"family": "sd3-medum"}}, "did you mean 'sd3-medium'"),
        ({"file": {"famly": "sd1"}}, "did you mean 'family'"),
        ({"network": {"patches": 2}}, "unknown field in config['network'] 'patches'"),
    ],
)
def test_names_in_config(sd1, config, said):
    refused(UnknownName, said, model=sd1, config=config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"network": 3}, "expected fields and values"),
        ({"text_encoder_2": {"heads": 2}}, "names 'text_encoder_2'"),
        ({"autoencoder": {"scale": 0.5}}, "scale of 'autoencoder' cannot be set"),
        ({"network": {"qk_norm": True}}, "qk_norm"),
    ],
)
def test_config_that_changes_nothing(sd1, config, said):
    refused(ArgumentError, said, model=sd1, config=config)


def test_a_family_of_another_network(sd1):
    refused(FileError, str(sd1), "no such family runs here", model=sd1, config={"file": {"family": "dit-xl-2"}})


def test_a_prediction_that_there_is_not(sd1):
    refused(UnknownName, "unknown prediction 'zzz'", "eps", model=sd1, prediction="zzz")


def test_a_single_file_has_no_variants(sd1):
    refused(ArgumentError, "variant 'fp16'", model=sd1, variant="fp16")


@pytest.mark.parametrize("place", ["text_encoder_2", "text_encoder_3"])
@pytest.mark.parametrize("file", [None, "sd1"])
def test_parts_that_the_family_has_not(sd1, place, file):
    refused(ArgumentError, repr(place), "sd1 has autoencoder, text_encoder", model=sd1, parts={place: file and sd1})


@pytest.mark.parametrize(("channels", "said"), [(8, "InstructPix2Pix"), (7, "7 channels"), (5, "5 channels")])
def test_channels_that_no_family_gives(tmp_path, channels, said):
    path = single(tmp_path / "odd.safetensors", UNetConfig(**{**vars(SMALL), "in_channels": channels}))
    refused(FileError, str(path), said, model=path)


def test_the_published_rows_give_their_networks_what_they_want():
    for row in FAMILIES.values():
        recognise.check_channels(row, Path(row.name))


def test_heads_that_do_not_divide_say_the_way_out(sd1):
    refused(FileError, str(sd1), "do not divide", "config={'network': {'head_width'", model=sd1, config={"network": {"heads": 7}})


@pytest.mark.parametrize("name", ["/nope/dir/x", "/nope", "./nope", "nope/a/b/c", Path("nope/dir")])
def test_a_place_without_a_file(sd1, name):
    refused(FileError, f"no such file or folder: {Path(name)}", model=name)
    refused(FileError, f"no such file or folder: {Path(name)}", model=sd1, parts={"text_encoder": name})


def test_a_pickle_is_converted_by_a_whole_command(tmp_path):
    (tmp_path / "old.ckpt").touch()
    refused(FileError, f"`unnoise convert {tmp_path}/old.ckpt old.safetensors`", model=tmp_path / "old.ckpt")


def small_controlnet(folder: Path) -> Path:
    config = ControlNetConfig(SMALL, 3, (16, 32))
    weights = keys.write(controlnet.numbered_control(config), ControlNet(config).state_dict())
    save_file(weights, folder / "control.safetensors")
    return folder / "control.safetensors"


def test_files_of_another_kind_say_who_takes_them(tmp_path):
    save_file(keys.write(first_stage.autoencoder(STAGE), Autoencoder(STAGE).state_dict()), tmp_path / "vae.safetensors")
    refused(FileError, "kind autoencoder", "parts={'autoencoder': FILE}", model=tmp_path / "vae.safetensors")
    save_file(keys.write(texts.clip(CLIP), CLIPTextEncoder(CLIP).state_dict()), tmp_path / "text.safetensors")
    refused(FileError, "kind text encoder", "'text_encoder'", model=tmp_path / "text.safetensors")
    save_file({"emb_params": torch.zeros(2, 768)}, tmp_path / "word.safetensors")
    refused(FileError, "kind textual inversion", "with_embedding", model=tmp_path / "word.safetensors")
    place = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    factors = {"lora_down.weight": torch.zeros(4, 320), "lora_up.weight": torch.zeros(320, 4), "alpha": torch.tensor(4.0)}
    save_file({f"{place}.{name}": value for name, value in factors.items()}, tmp_path / "lora.safetensors")
    refused(FileError, "kind LoRA", "with_lora", model=tmp_path / "lora.safetensors")
    refused(FileError, "kind ControlNet", "load_control", model=small_controlnet(tmp_path))


def test_a_controlnet_refuses_what_it_cannot_use(tmp_path):
    path = small_controlnet(tmp_path)
    assert unnoise.load_control(path, device="cpu", config={"heads": 4}).family == "sd1"
    with pytest.raises(ArgumentError, match="a single file has no variants"):
        unnoise.load_control(path, device="cpu", variant="fp16")
    with pytest.raises(UnknownName, match="did you mean 'heads'"):
        unnoise.load_control(path, device="cpu", config={"hedas": 4})


def test_a_controlnet_of_a_variant(tmp_path):
    config = {"_class_name": "ControlNetModel", "in_channels": 4, "block_out_channels": [32], "layers_per_block": 1}
    config |= {"down_block_types": ["CrossAttnDownBlock2D"], "attention_head_dim": 8, "cross_attention_dim": 32}
    small_controlnet(tmp_path).rename(tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with (tmp_path / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(b"not this one")
    assert unnoise.load_control(tmp_path, device="cpu", variant="fp16").family == "sd1"


def test_a_safety_checker_beside_a_single_file(sd1, tmp_path):
    vision = CLIPVisionConfig(image=32, patch=16, width=32, layers=1, heads=2, mlp=64)
    sizes = {"image_size": 32, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {**sizes, "intermediate_size": 64}}))
    save_file(SafetyNetwork(vision).state_dict(), tmp_path / "model.safetensors")
    assert unnoise.load(sd1, device="cpu").safety is None
    assert unnoise.load(sd1, device="cpu", parts={"safety_checker": tmp_path}).safety is not None
    refused(UnknownName, "did you mean 'safety_checker'", model=sd1, parts={"safety_cheker": tmp_path})
