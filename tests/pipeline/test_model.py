"""Model, over a tiny random one that was saved and loaded: the same picture whatever surrounds it, refusals in one line, files."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import unnoise
from unnoise.checkpoints import native
from unnoise.diffusion.noise import Streams
from unnoise.diffusion.solvers import SOLVERS
from unnoise.errors import ArgumentError, FileError, NonFiniteError, UnknownName, UnnoiseError
from unnoise.families.spec import Defaults, ModelSpec, ScheduleSpec
from unnoise.networks import tokenizers
from unnoise.networks.dit import DiTConfig
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig
from unnoise.pipeline import loading, locating
from unnoise.pipeline import model as modelling
from unnoise.pipeline.encoding import Encoder
from unnoise.pipeline.locating import BUILTIN
from unnoise.pipeline.model import Model
from unnoise.pipeline.records import request_of
from unnoise.pipeline.request import OutputType, Request
from unnoise.pipeline.stages import Progress, Result

BACKBONES = {
    "unet": UNetConfig(3, 3, widths=(32, 32), blocks=1, depths=(0, 1), heads=2, context_width=0, pooled_width=16, patch=2),
    "draft": UNetConfig(6, 3, widths=(32,), blocks=1, depths=(0,), mid_depth=0, context_width=0, pooled_width=16, patch=4),
    "dit": DiTConfig(3, patch=4, width=32, depth=1, heads=2, learn_sigma=False, context_width=16, pooled_width=16),
}
LEARNED = {"sigma": DiTConfig(3, patch=4, width=32, depth=1, heads=2, learn_sigma=True, context_width=16, pooled_width=16)}
PROMPTS = ["a red apple", "파란 자동차", "a black cat"]


def write(path: Path, backbone: str = "unet", dtype: torch.dtype = torch.float32, **more) -> Path:
    """A model with weights of ordinary size, so that every layer is heard in the picture."""
    tokenizer = tokenizers.learn(PROMPTS, vocab=600, length=12)
    text = CLIPTextConfig(
        tokenizer.pieces.get_vocab_size(), 12, 16, layers=1, heads=2, mlp=32, projection=48 * (backbone == "draft"), end_token=tokenizer.end
    )
    spec = ModelSpec(
        name="tiny", size=16, multiple=4, networks={"text_encoder": text, "network": {**BACKBONES, **LEARNED}[backbone]}, **more
    )
    generator = torch.Generator().manual_seed(5)
    shapes = {name: p.shape for name, p in spec.build("meta").named_parameters()}
    native.save(path, spec, tokenizer, {name: (torch.randn(shape, generator=generator) / 8).to(dtype) for name, shape in shapes.items()})
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write(folder / f"{name}.safetensors", name) for name in BACKBONES}


@pytest.fixture(scope="module", params=BACKBONES)
def model(request, files) -> Model:
    return unnoise.load(files[request.param])


@pytest.fixture(scope="module")
def unet(files) -> Model:
    return unnoise.load(files["unet"])


def latents(model: Model, prompt="a red apple", **more) -> torch.Tensor:
    return model.generate(prompt, **{"num_inference_steps": 3, "seed": 7, "output_type": "latent", **more}).latents


# The same picture


@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_picture_of_a_batch_is_the_picture_alone(model, sampler):
    """Nine pictures of three prompts at once, each again by itself with its own seed: equal to the last bit."""
    together = model.generate(PROMPTS, negative_prompt="흐림", num_images_per_prompt=3, seed=7, num_inference_steps=3, sampler=sampler)
    assert together.seeds == list(range(7, 16)) and len({picture.tobytes() for picture in together.images}) == 9
    for index, seed in enumerate(together.seeds):
        alone = latents(model, PROMPTS[index // 3], negative_prompt="흐림", seed=seed, sampler=sampler)
        assert torch.equal(alone[0], together.latents[index]), index


def test_prompt_and_seed_decide_the_picture(model):
    """What the test above could not tell from a model that ignores its prompt or seed."""
    pictures = [latents(model, prompt, seed=seed) for prompt in PROMPTS for seed in (1, 2)]
    assert all(not torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])
    assert torch.equal(latents(model, seed=3), latents(model, seed=3))


SETTINGS = [
    {
        "prompt": PROMPTS[i % 3],
        "seed": i,
        "sampler": list(SOLVERS)[i % len(SOLVERS)],
        "num_inference_steps": 2 + i % 4,
        "guidance_scale": (0.0, 1.0, 3.0, 7.5)[i % 4],
        "guidance_rescale": (0.0, 0.7)[i % 2],
        "height": (16, 24)[i % 2],
        "spacing": (None, "linspace", "karras")[i % 3],
    }
    for i in range(len(SOLVERS))
]


def test_sixteen_threads_share_a_model(unet):
    serial = [latents(unet, **settings) for settings in SETTINGS]
    with ThreadPoolExecutor(16) as pool:
        threaded = list(pool.map(lambda settings: latents(unet, **settings), SETTINGS))
    assert all(torch.equal(a, b) for a, b in zip(serial, threaded, strict=True))


def test_generate_is_the_end_of_the_stream(model):
    states = list(model.stream(PROMPTS[:2], seed=7, num_inference_steps=4))
    result = model.generate(PROMPTS[:2], seed=7, num_inference_steps=4)
    assert [(state.step, state.steps) for state in states] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    last = states[-1].result()
    assert torch.equal(last.latents, result.latents) and (last.seeds, last.metadata) == (result.seeds, result.metadata)
    assert [picture.tobytes() for picture in last.images] == [picture.tobytes() for picture in result.images]


def test_generate_holds_one_step_at_a_time(unet, monkeypatch):
    """And the one that is being made: a thousand steps are not a thousand states."""
    import unnoise.pipeline.model as module

    made, alive = [], []

    def counted(*given):
        made.append(weakref.ref(step := Progress(*given)))
        alive.append(sum(ref() is not None for ref in made))
        return step

    monkeypatch.setattr(module, "Progress", counted)
    unet.generate("x", seed=1, num_inference_steps=6)
    assert len(made) == 6 and max(alive) == 2


def test_latents_take_part_in_autograd(unet):
    result = unet.generate("x", seed=1, num_inference_steps=1, output_type="pt")
    weight = torch.ones(1, requires_grad=True)
    ((result.latents * weight).sum() + (result.images * weight).sum()).backward()
    assert weight.grad is not None and not result.latents.requires_grad


def test_leaving_the_loop_stops_the_work_and_leaves_the_model_as_it_was(unet, monkeypatch):
    whole, asked = latents(unet, num_inference_steps=9), []
    for state in unet.stream("a red apple", seed=7, num_inference_steps=9):
        if state.step == 2:
            monkeypatch.setattr(unet.networks["network"], "forward", lambda *given: asked.append(1))
            break
    assert asked == []
    monkeypatch.undo()
    assert torch.equal(latents(unet, num_inference_steps=9), whole)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_previews_are_pictures_that_end_as_the_result(unet):
    states = list(unet.stream(PROMPTS[:2], seed=7, num_inference_steps=3, height=24))
    previews = [state.preview() for state in states]
    assert all(picture.size == (16, 24) and picture.mode == "RGB" for pair in previews for picture in pair)
    assert [p.tobytes() for p in previews[-1]] == [p.tobytes() for p in states[-1].result().images]
    assert previews[0][0].tobytes() != previews[-1][0].tobytes()


def test_output_types_hold_the_same_picture(unet):
    made: dict[str, Result] = {
        kind: unet.generate(PROMPTS[:2], seed=7, num_inference_steps=2, output_type=kind) for kind in get_args(OutputType)
    }
    pil, array, tensor = made["pil"].images, made["numpy"].images, made["pt"].images
    assert isinstance(pil, list) and isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor)
    assert array.shape == (2, 16, 16, 3) and tensor.shape == (2, 3, 16, 16) and array.dtype == np.float32
    assert made["latent"].images is made["latent"].latents
    expected = ((made["latent"].latents + 1) / 2).clamp(0, 1)
    assert torch.equal(tensor, expected) and np.array_equal(array, expected.permute(0, 2, 3, 1).numpy())
    for index, picture in enumerate(pil):
        assert np.array_equal(np.asarray(picture), (array[index] * 255).round().astype(np.uint8))


def test_latents_take_the_place_of_the_seed(unet):
    noise = torch.cat([torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8)])
    given = latents(unet, PROMPTS[:2], seed=100, latents=noise)
    assert torch.equal(given, latents(unet, PROMPTS[:2], seed=7))  # the stream of seed 7 begins with that noise
    assert torch.equal(latents(unet, PROMPTS[:2], latents=noise.double()), given)
    assert not torch.equal(latents(unet, PROMPTS[:2], latents=noise.flip(0)), given)


@pytest.mark.parametrize("sampler, options", [("ddpm", {}), ("ddim", {"eta": 1.0}), ("dpmpp_2m", {})])
def test_the_seeds_own_noise_as_latents_is_the_seed(unet, sampler, options):
    """A stochastic sampler goes on in the stream behind it, given or not."""
    noise = Streams([7, 8]).draw(torch.empty(2, 3, 16, 16))
    asked = {"sampler": sampler, "sampler_options": options}
    assert torch.equal(latents(unet, PROMPTS[:2], latents=noise, **asked), latents(unet, PROMPTS[:2], **asked))


def test_options_of_the_spacing_reach_the_plan(unet):
    """Both of DDIM's endings, and numpy's numbers as options; the record keeps what was asked."""
    asked = {"sampler": "ddim", "spacing": "karras", "num_inference_steps": 4, "seed": 3}
    clean, first = (latents(unet, **asked, spacing_options=options) for options in (None, {"ending": "first"}))
    assert not torch.equal(clean, first)
    result = unet.generate("x", **asked, spacing_options={"rho": np.float32(3), "ending": "first"}, sampler_options={"eta": np.int64(1)})
    record = json.loads(json.dumps(result.metadata[0]))
    assert record["spacing_options"] == {"rho": 3.0, "ending": "first"} and record["sampler_options"] == {"eta": 1}
    assert torch.equal(latents(unet, "x", sampler="unipc", sampler_options={"order": np.int64(2)}), latents(unet, "x", sampler="unipc"))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_model_with_a_learned_variance(tmp_path, scale):
    """A DiT of twice the channels, through ddpm: its own variance is neither of the two that the schedule knows."""
    path = write(tmp_path / "sigma.safetensors", "sigma", prediction="v", schedule=ScheduleSpec(kind="vp"))
    asked = {"sampler": "ddpm", "guidance_scale": scale}
    own = unnoise.load(path)
    found = [latents(own, **asked, sampler_options={"variance": name}) for name in ("learned_range", "beta", "posterior")]
    assert all(x.shape == (1, 3, 16, 16) and bool(torch.isfinite(x).all()) for x in found)
    assert not any(torch.equal(a, b) for a, b in ((found[0], found[1]), (found[0], found[2]), (found[1], found[2])))
    record = own.generate("x", seed=1, num_inference_steps=1, sampler="ddpm", sampler_options={"variance": "beta"}).metadata[0]
    assert record["sampler_options"] == {"variance": "beta"}


def test_a_model_of_a_table_of_times(tmp_path):
    """The same surface over a discrete schedule and eps: nothing here assumes a flow."""
    path = write(tmp_path / "vp.safetensors", prediction="eps", schedule=ScheduleSpec(kind="vp"), defaults=Defaults(sampler="ddim"))
    made = unnoise.load(path).generate("a red apple", seed=1, num_inference_steps=4)
    assert made.metadata[0]["sampler"] == "ddim" and torch.isfinite(made.latents).all()


# Arguments


def test_defaults_are_the_models_own(tmp_path):
    defaults = Defaults(sampler="euler", num_inference_steps=2, guidance_scale=2.5, guidance_interval=(0.1, 0.8), spacing="trailing")
    own = unnoise.load(write(tmp_path / "own.safetensors", defaults=defaults))
    record = own.generate("x", seed=1).metadata[0]
    expected = {"sampler": "euler", "num_inference_steps": 2, "guidance_scale": 2.5, "guidance_interval": [0.1, 0.8], "spacing": "trailing"}
    assert {key: record[key] for key in expected} == expected and (record["width"], record["height"]) == (16, 16)
    assert own.generate("x", seed=1, sampler="ddim").metadata[0]["spacing"] is None  # the spacing belongs to the default sampler


def test_no_seed_is_a_new_seed_each_time(unet):
    seeds = {seed for given in ({}, {}, {"seed": -1}) for seed in unet.generate("x", num_inference_steps=1, **given).seeds}
    assert len(seeds) == 3 and all(0 <= seed < 2**32 for seed in seeds)


def test_numbers_of_numpy_are_numbers(unet):
    plain = latents(unet, num_inference_steps=2, guidance_scale=2.0)
    assert torch.equal(latents(unet, num_inference_steps=np.int64(2), seed=np.int32(7), guidance_scale=np.float32(2)), plain)


WRONG = {  # argument: values, and what the line expects
    "prompt": ([None, 3, [], [None], ["a", 3], b"bytes", {"a": 1}.keys(), object()], "expected a text or a list of texts"),
    "negative_prompt": ([3, [], [None], ["a", "b"]], "expected"),
    "num_inference_steps": ([0, -1, 1001, 2.0, "3", True, float("nan"), [3]], "expected a whole number from 1 to 1000"),
    "guidance_scale": ([float("nan"), float("inf"), -101, 101, "3", True, [1.0]], "expected a number from -100 to 100"),
    "guidance_rescale": ([float("nan"), -0.1, 1.1, "0", None], "expected a number from 0 to 1"),
    "guidance_interval": ([0.5, "ab", (0.1,), (0.1, 0.2, 0.3), (-0.1, 1), (0, 1.1), (0.5, 0.5), (0.9, 0.1), (0, float("nan"))], "expected"),
    "sampler": (["", "eular", 3, True, ["euler"], "euler\n"], "unknown sampler"),
    "sampler_options": ([[], "eta", {"etta": 1}, {"eta": "1"}, {"eta": float("nan")}, {"eta": -1}, {"eta": None}], "eta"),
    "spacing": (["", "karas", 3, ["karras"]], "unknown spacing"),
    "spacing_options": ([[], "rho", {"ending": "clear"}, {"offset": 1.5}, {"rho": 7}], ""),
    "height": ([0, -16, 18, 2052, 16.0, "16", True, 10**30], "expected a"),
    "width": ([0, -16, 18, 2052, 16.0, "16", True, 10**30], "expected a"),
    "num_images_per_prompt": ([0, -1, 1025, 1.0, "1", None, True], "expected a whole number from 1 to 1024"),
    "seed": ([-2, 2**63, 1.0, "7", True, float("nan"), [7]], "expected a whole number from -1 to 9223372036854775807"),
    "output_type": (["", "PIL", "np", 3, None, ["pil"]], "unknown output_type"),
    "latents": (
        [
            3,
            "x",
            [1.0],
            np.zeros((1, 3, 16, 16)),
            torch.zeros(3, 16, 16),
            torch.zeros(2, 3, 16, 16),
            torch.zeros(1, 3, 16, 16, dtype=torch.long),
        ],
        "expected",
    ),
    "image": ([3, object(), np.zeros((1, 2, 3, 5)), np.full((16, 16, 3), 2.0), np.full((16, 16, 3), np.nan), [None]], "image"),
    "strength": ([0.5, 1.0], "without an image"),
    "mask_image": (["mask.png", 3], "without an image"),
    "control": ([3, "hint.png", [None], {}], "expected unnoise.Control"),
    "class_labels": ([0, [1], "cat"], "knows no classes"),
    "classifier": ([3, {}], "expected one that unnoise.load_classifier gave"),
    "classifier_scale": ([-1, 1001, "1", None, float("nan")], "expected a number from 0 to 1000"),
    "skip_guidance_layers": ([[0]], "has none to skip"),
    "skip_layer_guidance_scale": ([-1, 101, "2", None], "expected a number from 0 to 100"),
    "skip_layer_guidance_start": ([-0.1, 1.1, "0", None], "expected a number from 0 to 1"),
    "skip_layer_guidance_stop": ([-0.1, 1.1, "0", None], "expected a number from 0 to 1"),
    "clip_skip": ([-1, 1.0, "1", None, 101, True], "expected a whole number from 0 to 100"),
    "original_size": ([16, (16,), (16, 16, 16), (16.0, 16), (-1, 16), "16x16"], "expected"),
    "crops_coords_top_left": ([16, (16,), (1, 2, 3), (1.5, 2), (-1, 0)], "expected"),
    "target_size": ([16, (16,), (16, 16, 16), (16.0, 16), (-1, 16)], "expected"),
    "aesthetic_score": ([-1, 11, "6", None, float("nan")], "expected a number from 0 to 10"),
    "negative_aesthetic_score": ([-1, 11, "6", None, float("nan")], "expected a number from 0 to 10"),
    "denoising_start": ([-0.1, 1.1, "0.8", float("nan"), True], "expected a number from 0 to 1"),
    "denoising_end": ([-0.1, 1.1, "0.8", float("nan"), True], "expected a number from 0 to 1"),
    "max_sequence_length": ([0, 513, 77.0, "77", True], "expected a whole number from 1 to 512"),
    "prompt_weights": (["yes", None, 1, 0.0], "expected True or False"),
    "refiner": ([3, {}], "expected a model"),
    "lora": ([3, [3], ("a", "b"), [("a", 1, 2)], {}], "expected a file"),
    "safety": (["", "none", 3, None], "unknown safety"),
}
NOT_FINITE = torch.full((1, 3, 16, 16), float("nan"))


def test_every_argument_has_its_wrong_values():
    assert WRONG.keys() == Request.model_fields.keys()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_before_anything_runs(unet, monkeypatch, name):
    monkeypatch.setattr(Encoder, "__call__", lambda *given: pytest.fail("the text encoder ran"))
    values, expected = WRONG[name]
    for value in values:
        given = {"prompt": "x", "sampler": "ddim", name: value}
        with pytest.raises(ArgumentError) as refused:
            unet.stream(**given)  # not iterated: the refusal comes with the call
        message = str(refused.value)
        named = name in message or "option of sampler" in message or "spacing" in message or "ending" in message
        assert expected in message and named and "\n" not in message and len(message) < 300, (value, message)


@pytest.mark.parametrize("name", ["refiner", "classifier", "lora"])
def test_files_that_are_not_there_are_refused_with_the_call(unet, name):
    with pytest.raises(FileError, match=r"no file none\.safetensors") as refused:
        unet.stream("x", **{name: "none.safetensors"})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("sampler, options", [("ddim", {"eta": 2}), ("ddim", {"eta": math.inf}), ("ddpm", {"variance": "betta"})])
def test_options_that_the_sampler_does_not_allow_are_refused_with_the_call(unet, sampler, options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        unet.stream("x", sampler=sampler, sampler_options=options)


def test_latents_that_are_not_finite_are_refused(unet):
    with pytest.raises(ArgumentError, match="latents that are not finite"):
        unet.stream("x", latents=NOT_FINITE)


@pytest.mark.parametrize(
    "wrong, near",
    [
        ("num_steps", "num_inference_steps"),
        ("steps", "num_inference_steps"),
        ("guidance", "guidance_scale"),
        ("negativ_prompt", "negative_prompt"),
    ],
)
def test_an_unknown_argument_names_the_nearest(unet, wrong, near):
    with pytest.raises(UnknownName, match=f"unknown argument '{wrong}': .*'{near}'"):
        unet.generate("x", **{wrong: 3})


def test_steps_of_a_table_are_at_most_its_entries(tmp_path):
    path = write(tmp_path / "vp.safetensors", prediction="eps", schedule=ScheduleSpec(kind="vp"))
    assert unnoise.load(path).stream("x", num_inference_steps=1000) is not None


# Records


@pytest.mark.parametrize("index", range(0, len(SOLVERS), 3))
def test_a_record_makes_the_picture_again(unet, index):
    """Through JSON, as a file holds it; by a model loaded anew."""
    settings = {**SETTINGS[index], "prompt": [PROMPTS[0], SETTINGS[index]["prompt"]], "negative_prompt": ["", "흐림"]}
    if SETTINGS[index]["sampler"] == "ddim":
        settings["sampler_options"] = {"eta": 0.7}
    if SETTINGS[index].get("spacing") == "karras":
        settings["spacing_options"] = {"rho": 5, "ending": "first"}
    made = unet.generate(**settings, guidance_interval=(0.1, 0.9))
    for picture, record in zip(made.images, made.metadata, strict=True):
        read = json.loads(json.dumps(record))
        again = unnoise.load(read["model"]).generate(**request_of(read).fields())
        assert again.images[0].tobytes() == picture.tobytes() and again.metadata == [record]


def test_a_record_names_file_weights_and_place(unet, files):
    record = unet.generate("x", seed=1, num_inference_steps=1).metadata[0]
    assert record["model"] == str(files["unet"]) and record["version"] == unnoise.__version__
    assert (record["dtype"], record["device"]) == ("float32", "cpu")
    assert record["model_hash"] == unet.hash and len(unet.hash) == 10 and unet.hash != unnoise.load(files["dit"]).hash


def test_a_record_counts_the_tokens_that_did_not_fit(unet):
    """The tiny tokenizer holds ten between start and end; a letter that it never saw is a token."""
    asked = {"seed": 1, "num_inference_steps": 1}
    made = unet.generate(["a red apple", "q w q w q w q w q w q w q"], negative_prompt=["", "q w q w q w q w q w q"], **asked)
    assert ["dropped_tokens" in record for record in made.metadata] == [False, True]
    assert made.metadata[1]["dropped_tokens"] == 3 + 1
    assert request_of(made.metadata[1]).prompt == "q w q w q w q w q w q w q"  # and is no field of a request


# Files


def test_the_hash_is_that_of_the_whole_file(tmp_path):
    path = tmp_path / "long"
    path.write_bytes(b"unnoise" * 400_000)  # more than two blocks, and a part of one
    assert native.file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def test_saved_and_loaded_is_the_same_model(model, tmp_path):
    model.save(tmp_path / "copy.safetensors")
    copy = unnoise.load(tmp_path / "copy.safetensors")
    assert copy.spec == model.spec
    for (name, p), (other, q) in zip(model.networks.named_parameters(), copy.networks.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q) and p.dtype == q.dtype
    assert torch.equal(latents(copy), latents(model))
    copy.save(tmp_path / "copy.safetensors")  # over the file that it is mapped from
    assert torch.equal(latents(copy), latents(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.safetensors"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's map of memory")
def test_weights_of_the_wanted_type_are_mapped_not_copied(files):
    mapped = unnoise.load(files["unet"])
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(files["unet"]) in line]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    assert all(any(low <= p.data_ptr() < high for low, high in ranges) for _, p in mapped.networks.named_parameters())
    cast = unnoise.load(files["unet"], dtype="bfloat16")
    assert not any(any(low <= p.data_ptr() < high for low, high in ranges) for _, p in cast.networks.named_parameters())


def test_half_precision_on_disk_is_single_precision_on_a_cpu(tmp_path):
    path = write(tmp_path / "half.safetensors", dtype=torch.float16)
    stored = load_file(path)
    model = unnoise.load(path, device="cpu")
    assert {value.dtype for value in stored.values()} == {torch.float16} and model.dtype == torch.float32
    assert all(torch.equal(p, stored[name].float()) for name, p in model.networks.named_parameters())
    half = unnoise.load(path, dtype="bfloat16", device="cpu")
    assert half.dtype == torch.bfloat16 and half.generate("x", seed=1, num_inference_steps=2).latents.dtype == torch.float32


def test_a_new_file_is_for_everyone_that_the_users_files_are_for(unet, tmp_path):
    unet.save(tmp_path / "model.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_save_that_fails_leaves_the_old_file(unet, tmp_path, monkeypatch, error):
    from unnoise.checkpoints.store import write as written

    path = tmp_path / "model.safetensors"
    unet.save(path)
    before = path.read_bytes()

    def fail(tensors, place, metadata=None):
        Path(place).write_bytes(b"half")
        raise error

    monkeypatch.setattr(written, "save_file", fail)
    with pytest.raises(FileError if isinstance(error, OSError) else KeyboardInterrupt) as failed:
        unet.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    if isinstance(error, OSError):
        assert str(failed.value).endswith("model.safetensors: No space left on device")


def test_a_folder_that_is_not_there(unet, tmp_path):
    with pytest.raises(FileError, match=r"cannot write .*none.model\.safetensors: No such file or directory"):
        unet.save(tmp_path / "none" / "model.safetensors")


def rewritten(source: Path, target: Path, change) -> None:
    """The file with its weights or header changed by `change(weights, header)`."""
    from safetensors import safe_open

    with safe_open(source, "pt") as file:
        header = dict(file.metadata())
    weights = {name: value.clone() for name, value in load_file(source).items()}
    save_file(weights, target, metadata=header if change(weights, header) is None else None)


def cut(weights: dict, header: dict) -> None:
    weights["network.conv_in.weight"] = weights["network.conv_in.weight"][:5].clone()


def without_bias(weights: dict, header: dict) -> None:
    del weights["network.conv_in.bias"]


CHANGED = {
    "a missing weight": (without_bias, "1 weights are missing ['network.conv_in.bias']"),
    "an unknown weight": (lambda w, h: w.update(extra=torch.zeros(2)), "1 unknown ['extra']"),
    "a wrong shape": (cut, "network.conv_in.weight has shape (5, 12, 3, 3), expected (32, 12, 3, 3)"),
    "no header": (lambda w, h: False, "is no model of a family that runs here: 166 tensors such as"),
    "a later format": (lambda w, h: h.update(format="unnoise-9"), "got format unnoise-9"),
    "no description": (lambda w, h: h.pop("spec") and None, "its description is not understood"),
    "a description of a later version": (lambda w, h: h.update(spec=h["spec"].replace('"size"', '"sizes"')), "sizes"),
    "no backbone": (
        lambda w, h: h.update(spec=json.dumps({**json.loads(h["spec"]), "networks": {}})),
        "expected a network that denoises in the place 'network'",
    ),
    "no tokenizer": (lambda w, h: h.pop("tokenizer") and None, "its tokenizer is not understood"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_file_that_does_not_fit_says_what(files, tmp_path, case):
    change, expected = CHANGED[case]
    path = tmp_path / "changed.safetensors"
    rewritten(files["unet"], path, change)
    with pytest.raises(FileError) as refused:
        unnoise.load(path)
    message = str(refused.value)
    assert expected in message and str(path) in message and "\n" not in message, message


def contents(whole: bytes) -> dict[str, tuple[bytes, str]]:
    return {
        "cut in its weights": (whole[:-100], "not a whole safetensors file"),
        "cut in its header": (whole[:100], "not a whole safetensors file"),
        "empty": (b"", "not a whole safetensors file"),
        "a page of the web": (b"<!DOCTYPE html><html>not found</html>", "not a whole safetensors file"),
        "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer.*git lfs pull"),
    }


@pytest.mark.parametrize("case", contents(b""))
def test_a_file_that_is_not_whole(files, tmp_path, case):
    content, expected = contents(files["unet"].read_bytes())[case]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match=expected) as refused:
        unnoise.load(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_places_that_hold_no_file(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for name, expected in (("none.safetensors", "no file"), ("folder.safetensors", "model_index.json: expected a diffusers folder")):
        with pytest.raises(FileError, match=expected):
            unnoise.load(tmp_path / name)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("network.conv_out.bias", r"denoiser: .*not finite after step 1 of 3"),
        ("text_encoder.text_model.final_layer_norm.weight", r"text encoder: .*not finite"),
    ],
)
def test_a_weight_that_is_no_number_gives_no_picture(files, tmp_path, name, expected):
    path = tmp_path / "nan.safetensors"
    rewritten(files["unet"], path, lambda w, h: w[name].fill_(math.nan) is None or None)
    with pytest.raises(NonFiniteError, match=expected):
        unnoise.load(path).generate("x", seed=1, num_inference_steps=3)


def test_unknown_names_and_places(files):
    for given in ({"model": "emojy"}, {"model": files["unet"], "dtype": "float17"}, {"model": files["unet"], "device": "cudda"}):
        with pytest.raises(UnknownName, match="unknown"):
            unnoise.load(**given)
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match="which this machine does not have"):
            unnoise.load(files["unet"], device="cuda")


@pytest.mark.parametrize("wrong", [5, None, 1.5, ["emoji"], b"emoji"])
def test_what_names_no_model(wrong):
    with pytest.raises(
        ArgumentError,
        match=r"got model .*: expected a name that unnoise.models\(\) lists, a .safetensors file, a diffusers folder or a hub id",
    ):
        unnoise.load(wrong)


def builtin(monkeypatch, folder: Path) -> None:
    """The built-in models are those in `folder`."""
    for module in (loading, locating, modelling):
        monkeypatch.setattr(module, "BUILTIN", folder)


@pytest.mark.parametrize("name", ["emoji", "", "folder/model.ckpt"])
def test_an_unknown_model_where_none_is_known(name, monkeypatch, tmp_path):
    builtin(monkeypatch, tmp_path)
    with pytest.raises(UnnoiseError) as refused:
        unnoise.load(name)
    expected = "expected a name that unnoise.models() lists, a .safetensors file, a diffusers folder or a hub id"
    assert str(refused.value).endswith(f": {expected}")
    assert str(tmp_path) not in str(refused.value)


def test_the_list_of_models_reads_headers_only(files, monkeypatch, tmp_path):
    (tmp_path / "tiny.safetensors").write_bytes(files["unet"].read_bytes())
    builtin(monkeypatch, tmp_path)
    (info,) = unnoise.models()
    weights = load_file(files["unet"])
    assert (info.name, info.family, info.bytes) == ("tiny", "pixel", files["unet"].stat().st_size)
    assert info.parameters == sum(value.numel() for value in weights.values())
    assert unnoise.load("tiny").generate("x", seed=1, num_inference_steps=1).metadata[0]["model"] == "tiny"
    (tmp_path / "tiny.safetensors").write_bytes(b"")
    with pytest.raises(FileError, match="not a whole safetensors file"):
        unnoise.models()


def test_pictures_are_pictures(unet):
    (picture,) = unet.generate("x", seed=1, num_inference_steps=1).images
    assert isinstance(picture, Image.Image) and picture.size == (16, 16) and BUILTIN.name == "builtin"
