"""What `unnoise generate` is given beside words: pictures, masks, ControlNets, LoRAs, classes, a second model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import unnoise
from unnoise.checkpoints import keys
from unnoise.checkpoints.keys import Layout
from unnoise.checkpoints.layouts import ddpm, numbered
from unnoise.cli import requests, tags
from unnoise.cli.refusals import as_typed
from unnoise.errors import ArgumentError, UnknownName
from unnoise.images.files import read, save
from unnoise.networks.dit import DiT, DiTConfig
from unnoise.networks.unet import UNet, UNetConfig
from unnoise.pipeline.inputs import digest

BUILTIN = Path(unnoise.__file__).parent / "builtin" / "emoji.safetensors"
built_in = pytest.mark.skipif(not BUILTIN.exists(), reason="the built-in weights are not here")
PROMPT = ["generate", "a red apple", "--seed", "7", "--steps", "3"]


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def pictures(command) -> None:
    """photo.png and mask.png, the left third of which is white, in the folder of the command."""
    values = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save("photo.png")
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, :21] = 255
    Image.fromarray(mask).save("mask.png")


@pytest.fixture
def made(command, tiny, pictures):
    """A picture by the tiny model with these options, which --from makes again to the byte and without a note."""

    def make(*options: str) -> np.ndarray:
        done = command(*PROMPT, "--model", tiny, *options, "--out", "first.png", "--json")
        assert done.code == 0, done.err
        name = json.loads(done.out)["pictures"][0]["path"]
        again = command("generate", "--from", name, "--out", f"again-{name}")
        assert again.code == 0 and "note:" not in again.err, again.err
        assert read(name) == read(f"again-{name}")
        assert (pixels(name) == pixels(f"again-{name}")).all()
        return pixels(name)

    return make


def test_image_to_image_is_in_the_record(made):
    assert (made("--image", "photo.png", "--strength", "0.67") != made()).any()
    record = read("first.png").settings
    assert record["image"] == {"path": "photo.png", "sha256": digest(Path("photo.png"))} and record["strength"] == 0.67


@built_in
def test_little_strength_keeps_the_picture(made):
    Image.new("RGB", (64, 64), (40, 90, 200)).save("photo.png")
    options = ["--model", "emoji", "--steps", "8", "--image", "photo.png", "--strength"]
    photo = pixels("photo.png").astype(float)
    near, far = (np.abs(made(*options, share) - photo).mean() for share in ("0.2", "1"))
    assert near < far / 2


def test_what_the_mask_leaves_alone_is_the_pictures_own_to_the_byte(made):
    painted, photo = made("--image", "photo.png", "--mask", "mask.png"), pixels("photo.png")
    assert (painted[:, 21:] == photo[:, 21:]).all() and (painted[:, :21] != photo[:, :21]).mean() > 0.5


@pytest.mark.parametrize("option", [["--guidance-rescale", "0.7"], ["--guidance-interval", "0.3,0.8"]])
def test_guidance_has_its_options(made, option):
    assert (made("--guidance", "5", *option) != made("--guidance", "5")).any()


def test_another_picture_under_the_same_name_is_noticed(command, made):
    made("--image", "photo.png")
    Image.new("RGB", (64, 64), "blue").save("photo.png")
    again = command("generate", "--from", "first.png", "--out", "second.png")
    assert again.code == 0 and "note: --image was '" in again.err and "the pixels may differ" in again.err
    Path("photo.png").unlink()
    gone = command("generate", "--from", "first.png", "--out", "third.png")
    assert gone.code == 2 and "cannot read the image 'photo.png'" in gone.err
    other = command("generate", "--from", "first.png", "--image", "mask.png", "--out", "fourth.png")
    assert other.code == 0 and "note: --image: 'mask.png' instead of 'photo.png' in 'first.png'" in other.err


def test_a_record_of_the_library_says_what_to_give_again(command, made):
    made("--image", "photo.png")
    with Image.open("first.png") as image:
        record = read("first.png").settings
        save(image, "library.png", {**record, "image": {"sha256": record["image"]["sha256"]}})
    refused = command("generate", "--from", "library.png")
    assert (refused.code, refused.err) == (2, "error: 'library.png' was made with what it does not name: give --image again\n")
    again = command("generate", "--from", "library.png", "--image", "photo.png", "--out", "again.png")
    assert again.code == 0 and "note:" not in again.err and (pixels("again.png") == pixels("first.png")).all()


REFUSED = {  # the options, and what the one line says
    "strength without a picture": (["--strength", "0.5"], "without an image"),
    "strength too high": (["--image", "photo.png", "--strength", "1.5"], "got --strength 1.5: expected a number from 0 to 1"),
    "no such picture": (["--image", "nowhere.png"], "cannot read the image 'nowhere.png'"),
    "an interval of one": (["--guidance-interval", "0.5"], "--guidance-interval: got '0.5', expected LOW,HIGH"),
    "an interval upside down": (["--guidance-interval", "0.8,0.2"], "got --guidance-interval [0.8, 0.2]: expected the lower share"),
    "blocks that are no numbers": (["--skip-layers", "7-9"], "--skip-layers: got '7-9', expected numbers of blocks"),
    "blocks of another family": (["--skip-layers", "7,8"], "got --skip-layers [7, 8]: tiny has none to skip"),
    "a label for a model of text": (["--label", "3"], "got --label 3: tiny knows no classes"),
    "a part without a file": (["--part", "autoencoder"], "--part: got 'autoencoder', expected PLACE=FILE"),
    "a control without a picture": (["--control", "net.safetensors"], "--control: got 'net.safetensors', expected NET=PICTURE"),
    "a hint that is not there": (["--control", "net=photo.png,hint=cany"], "unknown hint 'cany': did you mean 'canny'?"),
    "a setting that is not there": (
        ["--control", "net=photo.png,scael=0.8"],
        "unknown setting of --control 'scael': did you mean 'scale'?",
    ),
    "a scale that is no number": (["--lora", "a.safetensors=high"], "--lora: got 'high' in 'a.safetensors=high', expected a number"),
    "a LoRA that is not there": (["--lora", "a.safetensors=0.5"], "a.safetensors"),
    "a word that is not there": (["--embedding", "a.safetensors"], "a.safetensors"),
    "a safety that is not there": (["--safety", "blakc"], "did you mean 'black'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line(command, tiny, pictures, case):
    options, expected = REFUSED[case]
    outcome = command(*PROMPT, "--model", tiny, *options)
    assert (outcome.code, outcome.out) == (2, "") and outcome.err.count("\n") == 1, outcome
    assert expected in outcome.err and outcome.err.startswith("error: ")


def test_a_control_is_split_from_the_right():
    assert requests.split("net.safetensors=a, b=c.png,scale=0.8,guess,hint=canny") == (
        "net.safetensors",
        "a, b=c.png",
        {"scale": "0.8", "guess": "guess", "hint": "canny"},
    )
    assert requests.split("owner/name=x.png") == ("owner/name", "x.png", {})


TYPED = {
    "this sd1 has no autoencoder: load it with parts={'autoencoder': FILE}, or ask": "load it with --part autoencoder=FILE, or ask",
    "give it to load(MODEL, parts={'preview': FILE}), or": "give it to --part preview=FILE, or",
    "got <lora:x> in the prompt: leave it out and give lora=[(FILE, 0.5)]": "leave it out and give --lora FILE=0.5",
    "give it to Model.with_lora": "give it to --lora",
    "give it to load_control, for generate(control=...)": "give it to --control",
}


@pytest.mark.parametrize("message", TYPED)
def test_what_to_do_is_said_as_it_is_typed(message):
    assert TYPED[message] in as_typed(message)


def test_tags_of_loras_are_files_of_a_folder(tmp_path):
    (tmp_path / "line.safetensors").touch()
    asked = tags.tagged({"prompt": ["an apple <lora:line:0.5>", "<lora:line:0.5> a car"], "lora": [["x", 1.0]]}, tmp_path)
    assert asked == {"prompt": ["an apple", "a car"], "lora": [["x", 1.0], [str(tmp_path / "line.safetensors"), 0.5]]}
    with pytest.raises(UnknownName, match="unknown LoRA 'lines': did you mean 'line'"):
        tags.tagged({"prompt": "<lora:lines>"}, tmp_path)
    with pytest.raises(ArgumentError, match="different <lora"):
        tags.tagged({"prompt": ["a <lora:line:0.5>", "b"]}, tmp_path)
    with pytest.raises(ArgumentError, match="expected --lora-dir"):
        tags.tagged({"prompt": "<lora:line>"}, None)
    assert tags.tagged({"prompt": "<lora:line>", "prompt_weights": False}, None) == {"prompt": "<lora:line>", "prompt_weights": False}


# Published checkpoints, tiny and random, as diffusers writes them


@pytest.fixture(scope="module")
def sd1(tmp_path_factory, shared) -> Path:
    pytest.importorskip("diffusers")
    from peers import tiny

    folder = tmp_path_factory.mktemp("sd1")
    tiny.saved("sd1", shared, folder)
    return folder


@pytest.fixture
def drawn(command, sd1, pictures):
    """A picture by the tiny Stable Diffusion, made again by --from; its stderr too."""

    def draw(*options: Any) -> tuple[np.ndarray, str]:
        done = command(*PROMPT, "--model", sd1, "--size", "64x64", *options, "--out", "first.png", "--json")
        assert done.code == 0, done.err
        name = json.loads(done.out)["pictures"][0]["path"]
        again = command("generate", "--from", name, "--out", f"again-{name}")
        assert again.code == 0 and "may differ" not in again.err, again.err
        assert (pixels(name) == pixels(f"again-{name}")).all()
        return pixels(name), done.err

    return draw


def test_what_told_the_family_and_who_did_not_look_are_said(drawn):
    _, err = drawn()
    assert "sd1: StableDiffusionPipeline folder; eps, scaled_linear betas" in err
    assert "note: no safety checker" in err


@pytest.fixture
def adapters(command, sd1) -> None:
    """line.safetensors, a LoRA, and fruit.safetensors, a word of two vectors, in the folder of the command."""
    modules = dict(unnoise.load(sd1).networks["network"].named_modules())
    name, linear = next((name, module) for name, module in modules.items() if name.endswith("attn2.to_q"))
    out, inside = linear.weight.shape
    noise = torch.Generator().manual_seed(1)
    shapes = {f"unet.{name}.lora_A.weight": (4, inside), f"unet.{name}.lora_B.weight": (out, 4)}
    save_file({key: torch.randn(shape, generator=noise) for key, shape in shapes.items()}, "line.safetensors")
    save_file({"emb_params": torch.randn(2, 32, generator=noise)}, "fruit.safetensors")


def test_a_lora_has_a_scale(drawn, adapters):
    plain, _ = drawn("--lora", "line.safetensors=0")
    on, err = drawn("--lora", "line.safetensors=0.5")
    assert (on != plain).any() and "line.safetensors: LoRA on 1 modules at 0.5" in err
    assert (drawn()[0] == plain).all()
    assert [read(name).settings.get("lora") for name in ("first-2.png", "first-3.png")] == [[["line.safetensors", 0.5]], None]


def test_a_word_is_learned(drawn, adapters):
    assert (drawn("--embedding", "fruit.safetensors=apple")[0] != drawn()[0]).any()


def test_a_tag_in_a_prompt_is_the_lora_of_the_folder(command, drawn, adapters, sd1):
    named, _ = drawn("--lora", "line.safetensors=0.5")
    tagged = ["generate", "a red apple <lora:line:0.5>", *PROMPT[2:], "--model", sd1, "--size", "64x64", "--lora-dir", "."]
    assert command(*tagged, "--out", "tagged.png").code == 0
    assert (pixels("tagged.png") == named).all() and read("tagged.png").settings["prompt"] == "a red apple"
    assert "expected --lora-dir" in command(*tagged[:-2]).err


def test_a_refiner_takes_over(drawn, sd1):
    refined, _ = drawn("--refiner", sd1, "--denoising-end", "0.5")
    assert (refined == drawn()[0]).all()  # a refiner that is the model itself goes on where that would have
    record = read("first.png").settings
    assert record["denoising_end"] == 0.5 and record["refiner"] == str(sd1)


def test_parts_and_brackets(drawn, sd1):
    whole, _ = drawn("--part", f"autoencoder={sd1 / 'vae'}", "--prediction", "eps", "--clip-skip", "1")
    assert (drawn("--clip-skip", "1")[0] == whole).all()
    assert (drawn("--no-prompt-weights")[0] == drawn()[0]).all()  # a prompt without brackets


def test_a_control_is_given_with_its_hint(command, drawn, sd1, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("cv2")
    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel.from_pretrained(sd1 / "unet")
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 16, 32, 32))
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    net.save_pretrained(tmp_path / "net")
    plain, _ = drawn()
    on, _ = drawn("--control", "net=photo.png,scale=0.8,end=0.7,hint=canny,low_threshold=50")
    assert (on != plain).any()
    assert (drawn("--control", "net=photo.png,scale=0")[0] == plain).all()


# Models without text


def written(path: str, config: UNetConfig, layout: Layout) -> str:
    torch.manual_seed(1)
    weights = keys.write(layout, UNet(config).state_dict())
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


SMALL: dict[str, Any] = {"in_channels": 3, "widths": (32, 64), "depths": (0, 1), "blocks": 1, "context_width": 0}
FAST = ["--size", "16x16", "--steps", "2", "--seed", "7"]


def test_a_model_without_text_wants_no_prompt(command):
    config = UNetConfig(**SMALL, out_channels=3, **ddpm.TENSORFLOW)
    path = written("ddpm.safetensors", config, ddpm.unet(config))
    done = command("generate", "--model", path, *FAST)
    assert done.code == 0 and done.out == f"{Path('outputs/0007-picture.png')}  seed 7\n", done.err
    assert "ddpm-cifar: the names of Ho et al.'s U-Net" in done.err
    refused = command("generate", "an apple", "--model", path, *FAST)
    assert refused.code == 2 and "ddpm-cifar knows no text" in refused.err.splitlines()[-1]


def test_labels_say_how_many_pictures(command):
    config = UNetConfig(**SMALL, out_channels=6, num_classes=10, heads=4, scale_shift=True)
    path = written("classes.safetensors", config, numbered.unet(config, "head qkv d"))
    done = command("generate", "--model", path, "--label", "3", "--label", "4", *FAST, "--json")
    assert done.code == 0, done.err
    names = [Path(picture["path"]).name for picture in json.loads(done.out)["pictures"]]
    assert names == ["0007-class-3.png", "0008-class-4.png"]
    again = command("generate", "--from", "outputs/0008-class-4.png", "--out", "again.png")
    assert again.code == 0 and (pixels("again.png") == pixels("outputs/0008-class-4.png")).all(), again.err
    one_file = command("generate", "--model", path, "--label", "3", "--label", "4", *FAST, "--out", "one.png")
    assert one_file.code == 2 and "2 pictures are asked for" in one_file.err


def test_a_missing_part_is_named_as_it_is_typed(command, sd1, tmp_path):
    from unnoise.checkpoints.layouts import dit as layouts

    config = DiTConfig(4, patch=2, width=32, depth=1, heads=2, num_classes=10)
    torch.manual_seed(1)
    save_file(keys.write(layouts.dit(config), DiT(config).state_dict()) | layouts.constants(config, 8), "dit.safetensors")
    label = ["generate", "--model", "dit.safetensors", "--label", "3", "--size", "64x64", "--steps", "2", "--guidance", "1"]
    refused = command(*label)
    assert refused.code == 2 and "load it with --part autoencoder=FILE" in refused.err, refused.err
    done = command(*label, "--part", f"autoencoder={sd1 / 'vae'}", "--out", "class.png")
    assert done.code == 0 and Path("class.png").exists(), done.err
