"""PixArt-Sigma against diffusers' PixArtSigmaPipeline: the network, its folder both ways, whole trajectories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import unnoise
from peers.families import LEADING, PROMPT, TRAILING, close, ours, theirs
from peers.tiny import _randomised, _t5_tokenizer, _vae
from unnoise.checkpoints.layouts import pixart
from unnoise.conditioning import Cond
from unnoise.errors import FileError
from unnoise.networks.pixart import PixArtConfig

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, in diffusers' schedulers
SIDE = 16  # of the latents
CALL: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 4.5, "height": 8 * SIDE, "width": 8 * SIDE}
THEIRS: dict[str, Any] = {"use_resolution_binning": False, "clean_caption": False}


def _pipeline() -> Any:
    from transformers import T5Config, T5EncoderModel

    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=SIDE,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        cross_attention_dim=32,
        caption_channels=48,
        interpolation_scale=2,
        use_additional_conditions=False,
    )
    t5 = T5EncoderModel(T5Config(vocab_size=32128, d_model=48, d_kv=16, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"))
    parts = {"transformer": transformer, "vae": _vae(4, scaling_factor=0.13025), "text_encoder": t5}
    _randomised(*parts.values())
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = diffusers.PixArtSigmaPipeline(**parts, tokenizer=_t5_tokenizer(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pixart")
    _pipeline().save_pretrained(str(path))
    return path


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    pipe = diffusers.PixArtSigmaPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model(folder: Path) -> unnoise.Model:
    return unnoise.load(folder, dtype="float32", device="cpu")


def test_the_folder_is_recognised(model: unnoise.Model) -> None:
    spec = model.spec
    assert (spec.name, spec.conditioning, spec.prediction, spec.size) == ("pixart-sigma", "pixart", "eps", 8 * SIDE)
    assert spec.network == PixArtConfig(width=32, depth=2, heads=2, context_width=48, grid=8, position_scale=2.0)
    assert (spec.schedule.betas, spec.schedule.steps) == ("linear", 1000)


@pytest.mark.parametrize("side", [(16, 16), (8, 12), (20, 6)], ids=str)  # that of the training pictures, and others
@torch.no_grad()
def test_network(side: tuple[int, int], model: unnoise.Model, pipe: Any) -> None:
    x, t, tokens = torch.randn(2, 4, *side), torch.tensor([7.0, 981.0]), torch.randn(2, 9, 48)
    peer = pipe.transformer(x, encoder_hidden_states=tokens, timestep=t, added_cond_kwargs={}).sample
    close(model.networks["network"](x, t, Cond(tokens=tokens)), peer, 1e-5, f"network at {side}")


@pytest.mark.parametrize("negative", ["", "Blurry, ugly"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_text_to_latents(sampler: str, negative: str, model: unnoise.Model, pipe: Any) -> None:
    cls, config, spacing = {
        "ddim": ("DDIMScheduler", {"timestep_spacing": "leading"}, LEADING),
        "dpmpp_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing", "steps_offset": 0}, TRAILING),
    }[sampler]
    pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **config)
    noise, call = torch.randn(1, 4, SIDE, SIDE), {**CALL, "negative_prompt": negative}
    peer = theirs(pipe, latents=noise, **call, **THEIRS)
    close(ours(model, latents=noise, sampler=sampler, **spacing, **call), peer, what=f"pixart {sampler}")


def test_several_prompts_and_a_long_one(model: unnoise.Model, pipe: Any) -> None:
    """Prompts of other lengths in one batch, one longer than 300 tokens; theirs pads all of them to 300 and masks the padding."""
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading", steps_offset=1)
    prompts, noise = [PROMPT, "a red apple, " * 120], torch.randn(2, 4, SIDE, SIDE)
    peer = theirs(pipe, prompts, latents=noise, **CALL, **THEIRS)
    made = model.generate(prompts, seed=3, output_type="latent", latents=noise, sampler="ddim", **LEADING, **CALL)
    close(made.latents, peer, what="pixart, two prompts")
    assert made.metadata[1]["dropped_tokens"] > 0 and "dropped_tokens" not in made.metadata[0]


def test_a_saved_folder_is_the_folder(model: unnoise.Model, folder: Path, pipe: Any, tmp_path: Path) -> None:
    """Config by config and tensor by tensor, and diffusers opens it."""
    model.save(tmp_path / "again")
    again = diffusers.PixArtSigmaPipeline.from_pretrained(str(tmp_path / "again"))
    for name in ("transformer", "vae", "text_encoder"):
        mine, peer = getattr(again, name).state_dict(), getattr(pipe, name).state_dict()
        assert mine.keys() == peer.keys() and all(torch.equal(mine[key], peer[key]) for key in peer)
    written, first = (json.loads((path / "transformer/config.json").read_text()) for path in (tmp_path / "again", folder))
    assert {key: value for key, value in written.items() if key in first and key != "_diffusers_version"} == {
        key: first[key] for key in written if key in first and key != "_diffusers_version"
    }


def test_the_table_is_itself_after_the_round_trip() -> None:
    for config in (PixArtConfig(), PixArtConfig(grid=32, position_scale=1.0, learn_sigma=False)):
        assert pixart.TABLE.read(json.loads(json.dumps(pixart.TABLE.write(config)))) == config


def test_alpha_is_refused() -> None:
    config = pixart.TABLE.write(PixArtConfig())
    for change in ({"use_additional_conditions": True}, {"use_additional_conditions": None}):
        with pytest.raises(FileError, match="this PixArt is given sizes, as PixArt-Alpha is"):
            pixart.TABLE.read({**config, **change})
