"""What holds of pictures whatever the model: bytes outside a mask, a row of a batch, numbers that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unnoise
from peers.families import PROMPT, half, pair, picture
from unnoise.errors import NonFiniteError
from unnoise.pipeline.model import Model
from unnoise.runtime import first_stage
from unnoise.runtime.placement import Networks, Placement

pytest.importorskip("diffusers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

Models = Callable[[str], Model]
HALF = Placement(torch.device("cpu"), torch.float16)
FEW: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "seed": 5}


@pytest.fixture(scope="module")
def models(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            made[name] = pair(name, shared, tmp_path_factory.mktemp(name)).model
        return made[name]

    return get


def photograph(side: int = 128) -> Image.Image:
    """Every byte from 0 to 255, and noise that no resampling or rounding leaves alone."""
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    values[0, :, 0] = np.arange(side) % 256
    return Image.fromarray(values)


def blots(side: int = 128) -> Image.Image:
    """A mask that follows no cell of the latents."""
    rows, cols = np.mgrid[0:side, 0:side]
    return Image.fromarray((((rows - 51) ** 2 + (cols - 70) ** 2 < 33**2).astype(np.uint8)) * 255)


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("name", ["inpainting", "sd1", "sdxl"])
def test_what_the_mask_leaves_alone_stays_to_the_byte(name: str, strength: float, models: Models):
    image, mask = photograph(), blots()
    made = models(name).generate(PROMPT, image=image, mask_image=mask, strength=strength, **FEW).images[0]
    kept = np.asarray(mask) == 0
    assert (np.asarray(made)[kept] == np.asarray(image)[kept]).all()
    assert (np.asarray(made)[~kept] != np.asarray(image)[~kept]).any(axis=-1).mean() > 0.9


# A row of a batch is the row alone

GIVEN: dict[str, dict[str, Any]] = {
    "text": {},
    "image": {"image": picture(), "strength": 0.7},
    "mask": {"image": picture(), "mask_image": half()},
}


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_row_of_a_batch_is_the_same_alone(name: str, given: dict[str, Any], sampler: str, models: Models):
    model, prompts, how = models(name), [PROMPT, "an apple", "the sea"], {**FEW, "sampler": sampler, "output_type": "pt"}
    together = model.generate(prompts, **given, **how)
    for i, prompt in enumerate(prompts):
        alone = model.generate(prompt, **given, **{**how, "seed": 5 + i})
        assert torch.equal(alone.latents[0], together.latents[i])
        assert torch.equal(alone.images[0], together.images[i])


# Numbers that are not finite


class Breaks(nn.Module):
    """The network until its third question, whose answer has one NaN."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.config, self.asked = network, network.config, 0

    def forward(self, *arguments: Any, **more: Any) -> Tensor:
        self.asked += 1
        answer = self.network(*arguments, **more)
        if self.asked == 3:
            answer[0, 0, 0, 0] = torch.nan
        return answer


def broken(model: Model, **places: nn.Module) -> Model:
    return Model(model.spec, model.tokenizers, model.networks.replaced(places), file=model.file)


def test_latents_that_are_not_finite_name_the_component_and_the_step(models: Models):
    model = models("sd1")
    network = broken(model, network=Breaks(model.networks["network"]))
    with pytest.raises(NonFiniteError, match="denoiser: the latents are not finite after step 3 of 5"):
        network.generate(PROMPT, **{**FEW, "num_inference_steps": 5}, sampler="euler")


def overflowing(model: Model) -> nn.Module:
    """The autoencoder with one layer whose values are beyond float16 on the way, and come back."""
    stage = unnoise.load(model.file, dtype="float32", device="cpu").networks["autoencoder"]
    with torch.no_grad():
        for value in (stage.decoder.conv_in.weight, stage.decoder.conv_in.bias):
            value *= 3e4 / value.abs().max()  # the weights themselves fit
    return stage


def test_an_autoencoder_that_overflows_in_float16_decodes_in_float32(models: Models):
    model = models("sdxl")
    stage = overflowing(model)
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = stage.decode(stage.unscaled(latents))
        half_stage = stage.half()
        assert not torch.isfinite(half_stage.decode(half_stage.unscaled(latents.half()))).all()  # the fault is there
        decoded = first_stage.Stage(Networks({"autoencoder": half_stage}, {"autoencoder": half_stage.config}, HALF)).decode(latents)
    assert decoded.dtype == torch.float32 and next(half_stage.parameters()).dtype == torch.float16
    assert float((decoded.pictures - expected).abs().max() / expected.abs().max()) < 2e-2  # of weights that were rounded once


def test_its_record_says_so(models: Models):
    """A whole model in float16: the picture is finite, and in the metadata."""
    model = unnoise.load(models("sd1").file, dtype="float16", device="cpu")
    stage = overflowing(models("sd1")).half()
    small = {**FEW, "height": 32, "width": 32}
    result = broken(model, autoencoder=stage).generate(PROMPT, **small, output_type="pt")
    assert torch.isfinite(result.images).all() and result.metadata[0]["decoded_in"] == "float32"
    assert "decoded_in" not in model.generate(PROMPT, **small).metadata[0]


def test_an_autoencoder_that_is_broken_in_float32_too_is_named(models: Models):
    model = models("sd1")
    stage = unnoise.load(model.file, dtype="float32", device="cpu").networks["autoencoder"]
    with torch.no_grad():
        stage.decoder.conv_out.weight[0] = torch.nan
    with pytest.raises(NonFiniteError, match="autoencoder: the decoded picture is not finite"):
        broken(model, autoencoder=stage).generate(PROMPT, **FEW)
