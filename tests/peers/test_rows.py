"""Prompts of unlike lengths in one batch, and what a refiner and a safety checker do to the result."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import unnoise
from peers import tiny
from unnoise.errors import ArgumentError
from unnoise.images.safety import Verdict
from unnoise.pipeline.model import Model

SMALL = {"num_inference_steps": 3, "height": 128, "width": 128, "seed": 5}
LONG = "word " * 100


@pytest.fixture(scope="module")
def models(shared, tmp_path_factory) -> dict[str, Model]:
    def made(name: str) -> Model:
        folder: Path = tmp_path_factory.mktemp(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tiny.saved(name, shared, folder)
        return unnoise.load(folder)

    return {name: made(name) for name in ("sd1", "sdxl", "refiner", "sd3")}


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_long_prompt_changes_nothing_beside_it(models, name):
    """A hundred words take two chunks; the cat beside them has one, alone and in the batch."""
    both = models[name].generate(["a cat", LONG], output_type="latent", **SMALL).latents
    cat = models[name].generate("a cat", output_type="latent", **SMALL).latents
    words = models[name].generate(LONG, output_type="latent", **{**SMALL, "seed": 6}).latents
    assert torch.equal(both, torch.cat([cat, words]))


def test_every_end_of_a_long_prompt_is_heard(models):
    drawn = [models["sd1"].generate(LONG + end, output_type="latent", **SMALL).latents for end in ("cat", "dog")]
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("prompt, text", [("(a:1.2) (b:1.3)", "a b"), ("a b " * 20, "a b " * 20)])
def test_only_text_that_t5_never_sees_is_dropped(models, prompt, text):
    """Seven tokens fit beside the end; marks of weights are no text."""
    made = models["sd3"].generate(prompt, max_sequence_length=8, output_type="latent", **{**SMALL, "num_inference_steps": 1})
    count = sum(map(len, models["sd3"].tokenizers["text_encoder_3"].groups(text)))
    assert made.metadata[0].get("dropped_tokens", 0) == max(0, count - 7)


def test_the_autoencoder_has_the_scale_of_its_family(models):
    for model in models.values():
        assert model.networks["autoencoder"].config == model.spec.first_stage
    assert models["sdxl"].spec.first_stage.scale == 0.13025 and models["sd1"].spec.first_stage.scale == 0.18215


def test_a_single_file_decodes_as_its_folder(models, tmp_path):
    """SDXL's latents have another scale than Stable Diffusion 1's, which no shape shows."""
    path = tmp_path / "sdxl.safetensors"
    models["sdxl"].save(path)
    heads = {"head_width": 16, "heads": 8}
    file = unnoise.load(path, config={"network": heads})
    assert file.networks["autoencoder"].config == models["sdxl"].networks["autoencoder"].config


@pytest.mark.parametrize("kind", ["pil", "numpy", "pt"])
def test_a_flagged_picture_is_black_in_every_form(models, kind):
    flagging = models["sd1"]
    judged = Model(flagging.spec, flagging.tokenizers, flagging.networks, safety=lambda pictures: [Verdict(True, {}, {})] * len(pictures))
    result = judged.generate("x", output_type=kind, **SMALL)
    values = np.asarray(result.images[0]) if kind == "pil" else np.asarray(result.images)
    assert values.max() == 0 and result.metadata[0]["safety_checker"] == "flagged"


def test_a_refiner_is_of_the_same_latents_and_refuses_first(models):
    with pytest.raises(ArgumentError, match="same latents"):
        models["sd1"].stream("x", refiner=models["refiner"], **SMALL)
    for share in (0.0, 1.0):
        with pytest.raises(ArgumentError, match="denoising_end"):
            models["sdxl"].stream("x", refiner=models["refiner"], denoising_end=share, **SMALL)


def test_a_refiner_draws_noise_of_its_own(models):
    """With one seed the two models' streams are not one stream twice."""
    from unnoise.pipeline.start import _streams

    streams = []
    for model, share in ((models["sdxl"], {"denoising_end": 0.8}), (models["refiner"], {"denoising_start": 0.8})):
        state = next(iter(model.stream("x", image=torch.zeros(1, 4, 16, 16), **share, **{**SMALL, "num_inference_steps": 10})))
        streams.append(_streams(state.job).draw(torch.empty(1, 4, 16, 16)))
    assert not torch.allclose(*streams, atol=0.5)
