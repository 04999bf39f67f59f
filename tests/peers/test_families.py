"""Whole families beside diffusers: tiny pipelines with random weights, saved as folders, loaded by `unnoise.load`.

Every component to 1e-5 and every trajectory to 1e-4 of the largest value, float32. Where diffusers deviates from a model's authors we
follow the authors, and the test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import unnoise
from peers import tiny
from peers.families import LEADING, NEGATIVE, PROMPT, TRAILING, Pair, Pairs, as_noisy, close, draws, feed, half, once, ours, picture, theirs
from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.pipeline.job import resolve
from unnoise.pipeline.request import Request
from unnoise.pipeline.start import plan_of

pytest.importorskip("diffusers")
# numpy 2 inside diffusers, on every conversion of a tensor, and its own renamings; nothing of ours
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CFG = {"num_inference_steps": 10, "guidance_scale": 5.0}
COMMON = {**CFG, "negative_prompt": NEGATIVE}


@pytest.fixture(scope="session")
def pairs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return once(shared, tmp_path_factory)


# Components


@pytest.mark.parametrize("name", tiny.PIPELINES)
@torch.no_grad()
def test_text_encoders(name: str, pairs: Pairs):
    both = pairs(name)
    ids = torch.tensor([[49406, 320, 1125, 539, 550, 18376, 6765, 49407, *[49407] * 69]])
    places = {"text_encoder": "text_encoder_2"} if name == "refiner" else {p: p for p in ("text_encoder", "text_encoder_2")}
    for mine, peer in places.items():
        if mine not in both.model.networks:
            continue
        found, expected = both.model.networks[mine](ids), getattr(both.pipe, peer)(ids, output_hidden_states=True)
        for a, b in zip(found.hidden, expected.hidden_states, strict=True):
            close(a, b, 1e-5, f"{name} {mine} hidden")
        close(found.last, expected.last_hidden_state, 1e-5, f"{name} {mine} last")
        pooled = found.pooled if found.projected is None else found.projected
        close(pooled, expected[0] if found.projected is not None else expected.pooler_output, 1e-5, f"{name} {mine} pooled")
    if name == "sd3":
        t5 = torch.tensor([[3, 9, 1712, 1, *[0] * 20]])
        close(both.model.networks["text_encoder_3"](t5), both.pipe.text_encoder_3(t5)[0], 1e-5, "t5")


@pytest.mark.parametrize("name", tiny.PIPELINES)
@torch.no_grad()
def test_autoencoder(name: str, pairs: Pairs):
    both = pairs(name)
    stage, vae = both.model.networks["autoencoder"], both.pipe.vae
    x, latents = torch.rand(1, 3, 128, 128) * 2 - 1, torch.randn(1, 4, 16, 16)
    mine, peer = stage.encode(x), vae.encode(x).latent_dist
    close(mine.mean, peer.mean, 1e-5, f"{name} encoded")
    close(mine.sample(latents), peer.mean + peer.std * latents, 1e-5, f"{name} drawn")
    close(stage.decode(latents), vae.decode(latents).sample, 1e-5, f"{name} decoded")
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    close(stage.scaled(latents), (latents - shift) * vae.config.scaling_factor, 1e-6, f"{name} scaled")


@pytest.mark.parametrize("name", tiny.PIPELINES)
@torch.no_grad()
def test_network(name: str, pairs: Pairs):
    both = pairs(name)
    config = both.model.networks["network"].config
    t = torch.tensor([7.0, 981.0])
    x = torch.randn(2, config.in_channels, 16, 16)
    tokens, pooled = torch.randn(2, 77, config.context_width), torch.randn(2, 80 if name == "sd3" else 48)
    if name == "sd3":
        peer = both.pipe.transformer(x, encoder_hidden_states=tokens, pooled_projections=pooled, timestep=t).sample
        close(both.model.networks["network"](x, t, Cond(tokens=tokens, pooled=pooled)), peer, 1e-5, name)
        return
    cond, more = Cond(tokens=tokens), {}
    if config.pooled_width:
        sizes = torch.tensor([[512.0, 256.0, 0.0, 64.0, 6.0], [64.0, 64.0, 8.0, 8.0, 2.5]])
        sizes = sizes if name == "refiner" else torch.cat([sizes, sizes[:, :1]], dim=1)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        waves = both.pipe.unet.add_time_proj(sizes.flatten()).reshape(2, -1)
        cond = Cond(tokens=tokens, pooled=torch.cat([pooled, waves], dim=1))
    if config.guidance_width:
        scale = torch.tensor([1.0, 8.5])
        more = {"timestep_cond": both.pipe.get_guidance_scale_embedding(scale - 1, config.guidance_width)}
        cond = Cond(tokens=tokens, guidance=scale)
    close(both.model.networks["network"](x, t, cond), both.pipe.unet(x, t, tokens, **more).sample, 1e-5, name)


# Text to latents


SAMPLERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # ours: their scheduler, its config, our spacing
    "ddim": ("DDIMScheduler", {"timestep_spacing": "leading", "clip_sample": False, "set_alpha_to_one": False}, LEADING),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, {"spacing": "leading", "spacing_options": {"offset": 1}}),
    # theirs divides leading and linspace by one more than there are steps, which no one else does
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing", "steps_offset": 0}, TRAILING),
    "pndm": ("PNDMScheduler", {"timestep_spacing": "leading", "skip_prk_steps": True}, LEADING),
}


# PNDM extrapolates eps, as its authors have it; theirs extrapolates whatever the network says, in Stable Diffusion 2 v
CASES = [(name, sampler) for name in ("sd1", "sd2", "sdxl") for sampler in SAMPLERS if (name, sampler) != ("sd2", "pndm")]


@pytest.mark.parametrize("name, sampler", CASES)
def test_text_to_latents(name: str, sampler: str, pairs: Pairs):
    both = pairs(name)
    cls, config, spacing = SAMPLERS[sampler]
    noise = torch.randn(1, 4, 16, 16)
    peer = theirs(both.scheduled(cls, **config), latents=noise, **COMMON)
    close(ours(both.model, latents=noise, sampler=sampler, **spacing, **COMMON), peer, what=f"{name} {sampler}")


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_karras_spacing(name: str, pairs: Pairs):
    both = pairs(name)
    noise = torch.randn(1, 4, 16, 16)
    pipe = both.scheduled("EulerDiscreteScheduler", use_karras_sigmas=True, timestep_spacing="linspace")
    peer = theirs(pipe, latents=as_noisy(pipe, noise), **COMMON)
    close(ours(both.model, latents=noise, sampler="euler", spacing="karras", **COMMON), peer, what=f"{name} karras")


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_list_of_prompts_with_one_negative_prompt_each(name: str, pairs: Pairs):
    both = pairs(name)
    noise, prompts, negatives = torch.randn(2, 4, 16, 16), [PROMPT, "an apple"], [NEGATIVE, ""]
    cls, config, spacing = SAMPLERS["ddim"]
    how = {**CFG, "latents": noise, "negative_prompt": negatives}
    close(ours(both.model, prompts, sampler="ddim", **spacing, **how), theirs(both.scheduled(cls, **config), prompts, **how), what=name)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_no_negative_prompt(name: str, pairs: Pairs):
    """Stable Diffusion's is an empty text; SDXL's are zeros, and an empty text is something else."""
    both = pairs(name)
    noise = torch.randn(1, 4, 16, 16)
    cls, config, spacing = SAMPLERS["ddim"]
    pipe = both.scheduled(cls, **config)
    mine = ours(both.model, latents=noise, sampler="ddim", **spacing, **CFG)
    close(mine, theirs(pipe, latents=noise, **CFG), what=f"{name} none")
    empty = ours(both.model, latents=noise, sampler="ddim", negative_prompt="", **spacing, **CFG)
    close(empty, theirs(pipe, latents=noise, negative_prompt="", **CFG), what=f"{name} empty")
    assert torch.equal(mine, empty) == (name != "sdxl")


@pytest.mark.parametrize("skip", [1, 2])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_clip_skip(name: str, skip: int, pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    """Of the prompt alone: the negative side is the whole encoder's, in theirs and ours."""
    both = pairs(name)
    encoder = both.pipe.text_encoder  # diffusers looks for its norm where transformers 5 has it no more
    monkeypatch.setattr(encoder, "text_model", SimpleNamespace(final_layer_norm=encoder.final_layer_norm), raising=False)
    noise = torch.randn(1, 4, 16, 16)
    cls, config, spacing = SAMPLERS["ddim"]
    how = {**COMMON, "latents": noise, "clip_skip": skip}
    close(ours(both.model, sampler="ddim", **spacing, **how), theirs(both.scheduled(cls, **config), **how), what=f"{name} skip {skip}")


def test_sizes_and_crops(pairs: Pairs):
    both = pairs("sdxl")
    noise = torch.randn(1, 4, 16, 16)
    cls, config, spacing = SAMPLERS["euler"]
    how = {**COMMON, "latents": noise, "original_size": (512, 256), "crops_coords_top_left": (16, 64), "target_size": (96, 160)}
    told = {f"negative_{name}": how[name] for name in ("original_size", "crops_coords_top_left", "target_size")}
    close(ours(both.model, sampler="euler", **spacing, **how), theirs(both.scheduled(cls, **config), **how, **told), what="sizes")
    plain = ours(both.model, sampler="euler", latents=noise, **spacing, **COMMON)
    assert not torch.allclose(plain, ours(both.model, sampler="euler", **spacing, **how), atol=1e-3)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_zero_terminal_snr(rescale: float, pairs: Pairs):
    """The first step is the table's last, of pure noise; guidance rescaled as in Lin et al. 2023, section 3.4."""
    both = pairs("zero_snr")
    noise = torch.randn(1, 4, 16, 16)
    how = {**COMMON, "latents": noise, "guidance_rescale": rescale}
    assert float(both.model.schedule.alpha(999)) == 0 and both.model.spec.defaults.spacing == "trailing"
    mine = ours(both.model, sampler="ddim", spacing="trailing", spacing_options={"ending": "first"}, **how)
    close(mine, theirs(both.pipe, **how), what=f"zero SNR, rescale {rescale}")


def test_flow(pairs: Pairs):
    """diffusers' spacing is the authors' own: shifted twice at the clean end. T5 as long as theirs."""
    both = pairs("sd3")
    noise = torch.randn(1, 4, 16, 16)
    peer = theirs(both.pipe, latents=noise, **COMMON)
    mine = ours(both.model, latents=noise, sampler="euler", spacing="sd3", max_sequence_length=256, **COMMON)
    close(mine, peer, what="sd3 euler")


@pytest.mark.parametrize("layers, start, stop", [([0], 0.01, 0.2), ([0, 1], 0.05, 0.55)])
def test_skip_layer_guidance(layers: list[int], start: float, stop: float, pairs: Pairs):
    """Steps counted as the authors do: after start n and before stop n, both excluded."""
    both = pairs("sd3")
    noise = torch.randn(1, 4, 16, 16)
    said = {"skip_guidance_layers": layers, "skip_layer_guidance_scale": 2.8}
    said |= {"skip_layer_guidance_start": start, "skip_layer_guidance_stop": stop}
    how = {"sampler": "euler", "spacing": "sd3", "max_sequence_length": 256, "latents": noise, **COMMON}
    mine = ours(both.model, **said, **how)
    close(mine, theirs(both.pipe, latents=noise, **said, **COMMON), what=f"skip layers {layers}")
    assert not torch.allclose(mine, ours(both.model, **how), atol=1e-2)


# From a picture


IMAGE_TO_IMAGE = {"sd1": "StableDiffusionImg2ImgPipeline", "sdxl": "StableDiffusionXLImg2ImgPipeline"}


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("name", IMAGE_TO_IMAGE)
def test_image_to_image(name: str, sampler: str, pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    both = pairs(name)
    cls, config, spacing = SAMPLERS[sampler]
    pipe = both.as_(IMAGE_TO_IMAGE[name], scheduler=both.scheduled(cls, **config).scheduler)
    start, encoded = draws(2)
    feed(monkeypatch, pipe, [encoded, start])
    peer = theirs(pipe, image=picture(), strength=0.65, **COMMON)
    mine = ours(both.model, image=picture(), strength=0.65, height=128, width=128, sampler=sampler, **spacing, **COMMON)
    close(mine, peer, what=f"{name} {sampler} image to image")


def test_image_to_image_of_a_flow(pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    both = pairs("sd3")
    pipe = both.as_("StableDiffusion3Img2ImgPipeline")
    start, encoded = draws(2)
    feed(monkeypatch, pipe, [encoded, start])
    peer = theirs(pipe, image=picture(), strength=0.6, height=128, width=128, **COMMON)
    how = {"sampler": "euler", "spacing": "sd3", "max_sequence_length": 256, "height": 128, "width": 128}
    close(ours(both.model, image=picture(), strength=0.6, **how, **COMMON), peer, what="sd3 image to image")


def test_inpainting_network(pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    """Nine channels: the state, the mask, and the latents of the picture without its masked part."""
    both = pairs("inpainting")
    start, _, masked = draws(3)
    feed(monkeypatch, both.pipe, [start, masked])
    peer = theirs(both.pipe, image=picture(), mask_image=half(), strength=1.0, height=128, width=128, **COMMON)
    mine = ours(both.model, image=picture(), mask_image=half(), height=128, width=128, sampler="ddim", **LEADING, **COMMON)
    close(mine, peer, what="nine channels")


def test_inpainting_network_from_the_picture(pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    both = pairs("inpainting")
    start, encoded, masked = draws(3)
    feed(monkeypatch, both.pipe, [encoded, start, masked])
    how = {"image": picture(), "mask_image": half(), "strength": 0.6, "height": 128, "width": 128, **COMMON}
    close(ours(both.model, sampler="ddim", **LEADING, **how), theirs(both.pipe, **how), what="nine channels, strength 0.6")


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_inpainting_with_a_plain_network(name: str, pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    """With the same noise for the known part in all steps, as theirs, a blended state and a known estimate are one and the same.

    At strength 1 they are not: theirs first asks about noise without the picture, against the authors (CompVis blends before each step).
    """
    both = pairs(name)
    cls, config, spacing = SAMPLERS["euler"]
    inpaint = "StableDiffusionXLInpaintPipeline" if name == "sdxl" else "StableDiffusionInpaintPipeline"
    pipe = both.as_(inpaint, scheduler=both.scheduled(cls, **config).scheduler)
    start, encoded = draws(2)
    feed(monkeypatch, pipe, [encoded, start, encoded])  # the last of a masked picture, which a plain network is not shown
    how = {"image": picture(), "mask_image": half(), "strength": 0.8, "height": 128, "width": 128, **COMMON}
    close(ours(both.model, sampler="euler", **spacing, **how), theirs(pipe, **how), what=f"{name} inpainting")


# A second model


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_base_and_refiner(sampler: str, pairs: Pairs):
    base, refiner = pairs("sdxl"), pairs("refiner")
    cls, config, spacing = SAMPLERS[sampler]
    noise, split = torch.randn(1, 4, 16, 16), 0.8
    handed = theirs(base.scheduled(cls, **config), latents=noise, denoising_end=split, **COMMON)
    pipe = refiner.as_("StableDiffusionXLImg2ImgPipeline", scheduler=refiner.scheduled(cls, **config).scheduler)
    scores = {"aesthetic_score": 7.0, "negative_aesthetic_score": 1.5}
    peer = theirs(pipe, image=handed, denoising_start=split, **scores, **COMMON)

    how = {"sampler": sampler, **spacing, **COMMON}
    left = ours(base.model, latents=noise, denoising_end=split, **how)
    scale = (1 + pipe.scheduler.sigmas[-3].double() ** 2).sqrt() if sampler == "euler" else 1.0
    close(scale * left, handed, what=f"{sampler} handed over")
    close(ours(refiner.model, image=left, denoising_start=split, **scores, **how), peer, what=f"{sampler} refined")
    joined = ours(base.model, latents=noise, denoising_end=split, refiner=refiner.model, **scores, **how)
    close(joined, peer, what=f"{sampler} in one call")


# ControlNets


@pytest.fixture(scope="session")
def nets(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[tuple[Any, Any]]]:
    """Two of each family: theirs, and ours of the folder."""
    made: dict[str, list[tuple[Any, Any]]] = {}

    def get(name: str) -> list[tuple[Any, Any]]:
        if name not in made:
            made[name] = []
            for seed in (1, 2):
                folder = tmp_path_factory.mktemp(f"{name}_net")
                net = tiny.controlnet(pairs(name).pipe.unet, seed)
                net.save_pretrained(str(folder))
                made[name].append((net, unnoise.load_control(folder, model=pairs(name).model)))
        return made[name]

    return get


CONTROLLED = {"sd1": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}
Nets = Callable[[str], list[tuple[Any, Any]]]


def _controlled(both: Pair, name: str, net: Any) -> tuple[Any, dict[str, Any]]:
    cls, config, spacing = SAMPLERS["ddim"]
    pipe = both.as_(CONTROLLED[name], scheduler=both.scheduled(cls, **config).scheduler, controlnet=net)
    return pipe, {"sampler": "ddim", **spacing, "height": 128, "width": 128}


@pytest.mark.parametrize("scale, start, end", [(1.0, 0.0, 1.0), (0.6, 0.0, 1.0), (1.3, 0.2, 0.7)])
@pytest.mark.parametrize("name", CONTROLLED)
def test_controlnet(name: str, scale: float, start: float, end: float, pairs: Pairs, nets: Nets):
    both, ((peer_net, net), _) = pairs(name), nets(name)
    pipe, how = _controlled(both, name, peer_net)
    noise, hint = torch.randn(1, 4, 16, 16), picture()
    said = {"controlnet_conditioning_scale": scale, "control_guidance_start": start, "control_guidance_end": end}
    peer = theirs(pipe, image=hint, latents=noise, **said, **COMMON)
    mine = ours(both.model, latents=noise, control=unnoise.Control(net, hint, scale, start, end), **how, **COMMON)
    close(mine, peer, what=f"{name} ControlNet {scale} {start} {end}")
    assert not torch.allclose(mine, ours(both.model, latents=noise, **how, **COMMON), atol=1e-2)


@pytest.mark.parametrize("name", CONTROLLED)
def test_two_controlnets(name: str, pairs: Pairs, nets: Nets):
    both, ((peer_a, a), (peer_b, b)) = pairs(name), nets(name)
    pipe, how = _controlled(both, name, [peer_a, peer_b])
    noise, hints = torch.randn(1, 4, 16, 16), [picture(), half().convert("RGB")]
    scales, starts, ends = [0.8, 0.5], [0.0, 0.3], [0.6, 1.0]
    said = {"controlnet_conditioning_scale": scales, "control_guidance_start": starts, "control_guidance_end": ends}
    peer = theirs(pipe, image=hints, latents=noise, **said, **COMMON)
    control = [unnoise.Control(*one) for one in zip((a, b), hints, scales, starts, ends, strict=True)]
    close(ours(both.model, latents=noise, control=control, **how, **COMMON), peer, what=f"{name} two ControlNets")


@pytest.mark.parametrize("name", CONTROLLED)
def test_guess_mode(name: str, pairs: Pairs, nets: Nets, monkeypatch: pytest.MonkeyPatch):
    """Only the prompted half sees the hint. Theirs grows the residuals as a logspace, the authors and ours by powers of 0.825: the test
    gives theirs the authors' numbers."""
    both, ((peer_net, net), _) = pairs(name), nets(name)
    pipe, how = _controlled(both, name, peer_net)
    noise, hint = torch.randn(1, 4, 16, 16), picture()
    monkeypatch.setattr(torch, "logspace", lambda low, high, n, **_: 0.825 ** (12 - torch.arange(n)).float())
    peer = theirs(pipe, image=hint, latents=noise, guess_mode=True, **COMMON)
    mine = ours(both.model, latents=noise, control=unnoise.Control(net, hint, guess=True), **how, **COMMON)
    close(mine, peer, what=f"{name} guess mode")


@pytest.mark.parametrize("name", CONTROLLED)
def test_controlnet_at_scale_zero_is_exactly_off(name: str, pairs: Pairs, nets: Nets):
    both, (_, net) = pairs(name), nets(name)[0]
    how = {"latents": torch.randn(1, 4, 16, 16), "sampler": "ddim", "height": 128, "width": 128, **COMMON}
    assert torch.equal(ours(both.model, control=unnoise.Control(net, picture(), 0.0), **how), ours(both.model, **how))


def test_controlnet_from_a_picture(pairs: Pairs, nets: Nets, monkeypatch: pytest.MonkeyPatch):
    both, ((peer_net, net), _) = pairs("sd1"), nets("sd1")
    cls, config, spacing = SAMPLERS["ddim"]
    scheduler = both.scheduled(cls, **config).scheduler
    pipe = both.as_("StableDiffusionControlNetImg2ImgPipeline", scheduler=scheduler, controlnet=peer_net)
    start, encoded = draws(2)
    feed(monkeypatch, pipe, [encoded, start])
    how = {"image": picture(), "strength": 0.6, "height": 128, "width": 128, **COMMON}
    peer = theirs(pipe, control_image=half().convert("RGB"), controlnet_conditioning_scale=0.7, **how)
    control = unnoise.Control(net, half().convert("RGB"), 0.7)
    close(ours(both.model, control=control, sampler="ddim", **spacing, **how), peer, what="ControlNet and image to image")


# Few steps


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_latent_consistency_model(steps: int, pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    """The guidance scale is told to the network. Steps that divide the 50 of the distillation: for others theirs spreads them anew."""
    both = pairs("lcm")
    noise, *steps_noise = draws(1 + steps)
    feed(monkeypatch, both.pipe, steps_noise)
    how = {"num_inference_steps": steps, "guidance_scale": 7.5}
    mine = ours(both.model, latents=noise, **how)
    close(mine, theirs(both.pipe, latents=noise, **how), what=f"LCM, {steps} steps")
    assert not torch.allclose(mine, ours(both.model, latents=noise, num_inference_steps=steps, guidance_scale=2.0), atol=1e-3)


def test_latent_consistency_model_in_four_steps(pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    """The authors take every twelfth of the 50 (999, 759, 519, 279); diffusers spreads four over them (999, 759, 499, 259)."""
    both = pairs("lcm")
    noise, *steps_noise = draws(5)
    assert both.model.spec.defaults.sampler == "lcm" and both.model.spec.defaults.spacing == "lcm"
    times = plan_of(both.model.parts, resolve(Request(prompt=PROMPT), both.model.spec)).levels
    assert [level.t for level in times] == [999, 759, 519, 279, -1]
    feed(monkeypatch, both.pipe, steps_noise)
    how = {"num_inference_steps": 4, "guidance_scale": 8.0}
    close(ours(both.model, latents=noise, spacing="tcd", **how), theirs(both.pipe, latents=noise, **how), what="LCM, diffusers' times")


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_consistency_lora_style(name: str, pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    """LCM's sampler on a network that is not told the scale, with guidance: what an LCM LoRA makes of any model."""
    both = pairs(name)
    pipe = both.scheduled("LCMScheduler", timestep_spacing="leading")
    noise, *steps_noise = draws(6)
    feed(monkeypatch, pipe, steps_noise)
    how = {"num_inference_steps": 5, "guidance_scale": 1.5, "negative_prompt": NEGATIVE}
    close(ours(both.model, latents=noise, sampler="lcm", spacing="lcm", **how), theirs(pipe, latents=noise, **how), what=name)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 4])
def test_trajectory_consistency(steps: int, eta: float, pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    both = pairs("sdxl")
    pipe = both.scheduled("TCDScheduler", timestep_spacing="leading")
    noise, *steps_noise = draws(1 + steps)
    feed(monkeypatch, pipe, steps_noise)
    how = {"num_inference_steps": steps, "guidance_scale": 1.0, "latents": noise}
    options = {"sampler": "tcd", "sampler_options": {"eta": eta}, "spacing": "tcd", "spacing_options": {"ending": "first"}}
    close(ours(both.model, **options, **how), theirs(pipe, eta=eta, **how), what=f"TCD, {steps} steps, eta {eta}")


FEW_STEP = [
    ("LCMScheduler", "leading", "lcm"),
    ("TCDScheduler", "leading", "tcd"),
    ("EulerAncestralDiscreteScheduler", "trailing", "euler_ancestral"),
]


@pytest.mark.parametrize("cls, spacing, sampler", FEW_STEP)
def test_a_folder_with_a_few_step_scheduler_runs_as_it_asks(cls: str, spacing: str, sampler: str, pairs: Pairs, tmp_path: Path):
    pairs("sd1").scheduled(cls, timestep_spacing=spacing).save_pretrained(str(tmp_path))
    defaults = unnoise.load(tmp_path, dtype="float32", device="cpu").spec.defaults
    assert (defaults.sampler, defaults.num_inference_steps, defaults.guidance_scale) == (sampler, 4, 1.0)


@pytest.mark.parametrize("steps", [1, 4])
def test_turbo(steps: int, pairs: Pairs, monkeypatch: pytest.MonkeyPatch):
    """SDXL-Turbo: ancestral steps from the noisy end, no guidance."""
    both = pairs("sdxl")
    pipe = both.scheduled("EulerAncestralDiscreteScheduler", timestep_spacing="trailing", steps_offset=0)
    noise, *steps_noise = draws(1 + steps)
    feed(monkeypatch, pipe, steps_noise)
    how = {"num_inference_steps": steps, "guidance_scale": 1.0, "latents": noise}
    peer = theirs(pipe, **{**how, "guidance_scale": 0.0, "latents": as_noisy(pipe, noise)})  # theirs writes "none" as 0
    close(ours(both.model, sampler="euler_ancestral", **TRAILING, **how), peer, what=f"turbo, {steps} steps")


def test_what_guidance_was_distilled_into_is_told_it_and_takes_no_negative_prompt(pairs: Pairs):
    model = pairs("lcm").model
    with pytest.raises(ArgumentError, match="guidance was distilled into"):
        model.generate(PROMPT, negative_prompt=NEGATIVE)
    with pytest.raises(ArgumentError, match="conditioned on guidance"):
        network = model.networks["network"]
        network(torch.zeros(1, 4, 16, 16), torch.zeros(1), Cond(tokens=torch.zeros(1, 77, network.config.context_width)))
