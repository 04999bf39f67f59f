"""ControlNets: whole runs of the authors' code, and diffusers on the same random weights, network by network and through its pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import golden, golden_control
from networks.controlled import Controlled
from peers import test_networks as unets
from peers import test_sd3 as sd3
from peers.replay import replay
from unnoise.checkpoints.layouts import controlnet
from unnoise.checkpoints.layouts import diffusers as layouts
from unnoise.checkpoints.store.weights import Weights
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions, schedules
from unnoise.diffusion.grids import grid
from unnoise.diffusion.guidance import Guided, guidance
from unnoise.diffusion.sampling import Plan, plan
from unnoise.networks.controlnet import ControlNet, ControlNetConfig
from unnoise.networks.controlnet_mmdit import MMDiTControlNetConfig
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.unet import UNet
from unnoise.runtime.control import hint, window
from unnoise.runtime.denoise import NetworkDenoiser

pytestmark = pytest.mark.usefixtures("one_thread")

STABLE = schedules.vp("scaled_linear")


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers")


def guided(network: nn.Module) -> Guided:
    return Guided(NetworkDenoiser(network, STABLE, predictions.eps), STABLE, predictions.eps)


def ddim(steps: int) -> Plan:
    return plan(STABLE, "ddim", times=grid(STABLE, "leading", steps, offset=1, ending="first"))


@pytest.mark.parametrize(("run", "guess"), [("ddim", None), ("ddim_guess", "power")])
def test_authors_runs(shared: Path, run: str, guess: Any) -> None:
    """Guidance 9 and strength 0.8; in guess mode the rows without a prompt have no hint. Six steps are seven: 1000 // 6 goes in 7 times."""
    io, record, unet, net = golden_control.ldm(shared / "golden/controlnet/control_ldm")
    times = [*range(997, 0, -(1000 // record["config"]["S"])), 0]
    assert times[:-1] == io[f"{run}.timesteps"].flip(0).tolist()
    walked = plan(STABLE, "ddim", times=times)
    hints = (hint(net, io["hint"], record["config"]["strength"], guess=guess),)
    cond = guidance(Cond(io["c"], hints=hints), Cond(io["uc"], hints=None if guess else hints), record["config"]["cfg_scale"])
    mine = replay(guided(unet), io["x"], walked, io[f"{run}.noises"], cond)
    golden.assert_recorded(io, record, {f"{run}.x": mine.x, f"{run}.pred_x0": mine.x0})


HINTED = {"conditioning_embedding_out_channels": (16, 32, 96, 256)}


def made(diffusers: Any, family: str, **changes: Any) -> tuple[UNet, nn.Module, ControlNet, nn.Module]:
    """A U-Net and a ControlNet of ours, and diffusers', with the same weights."""
    config, settings = unets.CONDITIONED[family]
    unet, peer = UNet(config), diffusers.UNet2DConditionModel(**settings)
    unets.share(unet, peer)
    order, pooled = changes.get("channel_order", "rgb"), changes.get("global_pool", False)
    taken = {key: value for key, value in settings.items() if key not in ("sample_size", "up_block_types")}
    more = {"controlnet_conditioning_channel_order": order, "global_pool_conditions": pooled}
    net, peer_net = ControlNet(ControlNetConfig(config, **changes)), diffusers.ControlNetModel(**taken, **HINTED, **more)
    unets.share(net, peer_net)
    return unet, peer, net, peer_net


@pytest.mark.parametrize("family", unets.CONDITIONED)
@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=["even", "odd"])
@pytest.mark.parametrize("guess", [None, "logspace"])
@torch.no_grad()
def test_unets(diffusers: Any, family: str, size: tuple[int, int], guess: Any) -> None:
    unet, peer, net, peer_net = made(diffusers, family)
    x, t, tokens = torch.randn(2, 4, *size), torch.tensor([3, 977]), torch.randn(2, 5, 24)
    picture = torch.rand(2, 3, *(8 * side for side in size))
    extra, pooled = None, None
    if family == "sdxl":
        text, sizes = torch.randn(2, 4), torch.tensor([[1024.0, 768, 0, 3, 512, 1000]] * 2)
        extra = {"text_embeds": text, "time_ids": sizes}
        pooled = torch.cat([text, peer.add_time_proj(sizes.flatten()).reshape(2, -1)], dim=1)
    asked = {"encoder_hidden_states": tokens, "added_cond_kwargs": extra}
    down, mid = peer_net(x, t, controlnet_cond=picture, conditioning_scale=0.7, guess_mode=bool(guess), return_dict=False, **asked)
    cond = Cond(tokens, pooled, hints=(hint(net, picture, 0.7, guess=guess),))
    controlled = Controlled(unet)
    for mine, theirs in zip(controlled.residuals(x, t, cond), [*down, mid], strict=True):
        assert mine is not None
        unets.assert_same(mine, theirs)
    expected = peer(x, t, **asked, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    unets.assert_same(controlled(x, t, cond), expected)


@pytest.mark.parametrize("changes", [{"channel_order": "bgr"}, {"global_pool": True}], ids=["bgr", "averaged"])
@torch.no_grad()
def test_pictures_turned_and_residuals_averaged(diffusers: Any, changes: dict[str, Any]) -> None:
    unet, peer, net, peer_net = made(diffusers, "sd1", **changes)
    x, t, tokens, picture = torch.randn(2, 4, 8, 8), torch.tensor([3, 977]), torch.randn(2, 5, 24), torch.rand(2, 3, 64, 64)
    down, mid = peer_net(x, t, tokens, picture, conditioning_scale=0.7, guess_mode=True, return_dict=False)
    expected = peer(x, t, tokens, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    cond = Cond(tokens, hints=(hint(net, picture, 0.7, guess="logspace"),))
    unets.assert_same(Controlled(unet)(x, t, cond), expected)


@pytest.mark.parametrize(
    ("scales", "guess", "starts", "ends"),
    [
        ((0.8,), False, (0.0,), (1.0,)),
        ((0.8,), True, (0.0,), (1.0,)),
        ((0.8,), False, (0.2,), (0.7,)),
        ((1.0, 0.4), False, (0.0, 0.3), (0.5, 1.0)),
        ((1.0, 0.4), True, (0.0, 0.3), (0.5, 1.0)),
    ],
    ids=["one", "guess", "window", "two", "two-guess"],
)
@torch.no_grad()
def test_pipeline(diffusers: Any, scales: tuple[float, ...], guess: bool, starts: tuple[float, ...], ends: tuple[float, ...]) -> None:
    """Ten steps of DDIM with guidance 5; each net has hint, scale, start and end of its own."""
    unet, peer, net, peer_net = made(diffusers, "sd1")
    nets, peers = [net], [peer_net]
    if len(scales) == 2:
        _, _, *second = made(diffusers, "sd1")
        nets, peers = [net, second[0]], [peer_net, second[1]]
    table = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "clip_sample": False}
    pipe = diffusers.StableDiffusionControlNetPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=peer,
        controlnet=peers if len(peers) > 1 else peers[0],
        scheduler=diffusers.DDIMScheduler(set_alpha_to_one=False, **table),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    x, tokens, negative = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 24), torch.randn(1, 5, 24)
    pictures = [torch.rand(1, 3, 64, 64) for _ in nets]
    several: Any = (lambda values: list(values)) if len(nets) > 1 else (lambda values: values[0])
    expected = pipe(
        prompt_embeds=tokens,
        negative_prompt_embeds=negative,
        image=several(pictures),
        latents=x,
        num_inference_steps=10,
        guidance_scale=5.0,
        guess_mode=guess,
        controlnet_conditioning_scale=several(scales),
        control_guidance_start=several(starts),
        control_guidance_end=several(ends),
        output_type="latent",
    ).images
    walked = ddim(10)
    acts = [window(STABLE, [level.t for level in walked.levels], start, end) for start, end in zip(starts, ends, strict=True)]
    rows = zip(nets, pictures, scales, acts, strict=True)
    hints = tuple(hint(net, picture, scale, acts=when, guess="logspace" if guess else None) for net, picture, scale, when in rows)
    cond = guidance(Cond(tokens, hints=hints), Cond(negative, hints=None if guess else hints), 5.0)
    mine = replay(guided(unet), x, walked, cond=cond).x[-1]
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    plain = replay(guided(unet), x, walked, cond=guidance(Cond(tokens), Cond(negative), 5.0)).x[-1]
    assert (plain - expected).abs().max() > 0.05 * expected.abs().max()


SIZES: dict[str, Any] = {"in_channels": 4, "width": 32, "heads": 2, "context_width": 12, "pooled_width": 10, "positions": 12}
PEERS: dict[str, Any] = {"sample_size": 16, "in_channels": 4, "out_channels": 4, "attention_head_dim": 16, "num_attention_heads": 2}
PEERS |= {"joint_attention_dim": 12, "caption_projection_dim": 32, "pooled_projection_dim": 10, "pos_embed_max_size": 12}

NETS = {
    "joint": ({}, {}),
    "zeros": ({"zero_pooled": True}, {}),
    "mask": ({"hint_channels": 5}, {"extra_conditioning_channels": 1}),
    "dual": ({}, {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}),
    "8b": ({"form": "8b"}, {"joint_attention_dim": None, "use_pos_embed": False}),
}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("size", [(16, 16), (8, 20)], ids=["square", "wide"])
@torch.no_grad()
def test_transformers(diffusers: Any, kind: str, size: tuple[int, int]) -> None:
    """Two residuals for five blocks. Of the last block diffusers has none, as joint nets; its form 8b has, since its authors' code has."""
    ours, settings = NETS[kind]
    norm = {"qk_norm": True, "dual_blocks": 1} if kind == "dual" else {}
    config, peer = MMDiTConfig(depth=5, **SIZES), diffusers.SD3Transformer2DModel(**PEERS, num_layers=5)
    mmdit = sd3.shared_with(peer, layouts.mmdit(config), config)
    told = MMDiTControlNetConfig(MMDiTConfig(depth=2, **SIZES, **norm), **{"hint_channels": 4, **ours})
    peer_net = diffusers.SD3ControlNetModel(**{**PEERS, **settings}, num_layers=2)
    net = sd3.shared_with(peer_net, controlnet.diffusers_mmdit(told), told)
    part = controlnet.part(Weights.open(dict(peer_net.state_dict())), dict(peer_net.config), {})
    assert part is not None and (part.config.form, part.config.hint_channels) == (told.form, told.hint_channels)
    x, t, tokens, pooled = torch.randn(2, 4, *size), torch.tensor([3.0, 977.5]), torch.randn(2, 7, 12), torch.randn(2, 10)
    latents = torch.randn(2, net.config.hint_channels, *size)
    given = peer.pos_embed(x) if kind == "8b" else x  # the pipeline lends that net the transformer's patches
    read = None if kind == "8b" else tokens
    heard = torch.zeros_like(pooled) if kind == "zeros" else pooled
    (expected,) = peer_net(given, latents, 0.7, read, heard, t, return_dict=False)
    cond = Cond(tokens, pooled, hints=(hint(net, latents, 0.7),))
    controlled = Controlled(mmdit)
    mine = controlled.residuals(x, t, cond)
    assert mine[0] is mine[1] is mine[2] and mine[3] is not mine[0]
    for residual, other in zip((mine[0], mine[3]), expected, strict=True):
        assert residual is not None
        same(residual, other)
    if kind == "8b":
        assert mine[4] is mine[3]
        mine[4] = None
    else:
        assert mine[4] is None
        assert torch.equal(controlled(x, t, cond), mmdit(x, t, cond, residuals=mine))
    same(mmdit(x, t, cond, residuals=mine), peer(x, tokens, pooled, t, block_controlnet_hidden_states=expected).sample)


def same(mine: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * other.abs().max().item())
