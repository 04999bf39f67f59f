"""The vision tower and the safety checker against transformers and diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from unnoise.images.safety import SafetyChecker, clip_pixels
from unnoise.networks.vision import CLIPVisionConfig, CLIPVisionEncoder, SafetyConfig, SafetyNetwork

TINY = CLIPVisionConfig(image=56, patch=14, width=32, layers=3, heads=4, mlp=48, projection=24)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def random(peer: nn.Module) -> None:
    """None left at zero or one, and attention that is sharp enough to matter."""
    for p in peer.parameters():
        nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.2 if p.dim() == 1 else p[0].numel() ** -0.5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_the_tower(transformers: Any, activation: str) -> None:
    config = transformers.CLIPVisionConfig(**SIZES, projection_dim=24, hidden_act=activation)
    peer = transformers.CLIPVisionModelWithProjection(config).eval()
    random(peer)
    mine = CLIPVisionEncoder(CLIPVisionConfig(**{**vars(TINY), "activation": activation})).eval()
    mine.load_state_dict(peer.state_dict())
    pixels = torch.randn(2, 3, 56, 56)
    states, theirs = mine(pixels), peer(pixels)
    for a, b in ((states.projected, theirs.image_embeds), (states.last, theirs.last_hidden_state)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * b.abs().max().item())


def photographs(count: int) -> list[Image.Image]:
    """Noise that has large and small shapes, of unlike sizes."""
    random, pictures = np.random.default_rng(0), []
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        pictures.append(coarse.resize((60 + 13 * i, 101 + 7 * (i % 3)), Image.Resampling.BICUBIC))
    return pictures


def test_preprocessing(transformers: Any) -> None:
    """At CLIP's own size, portrait and landscape and square."""
    peer = transformers.CLIPImageProcessorPil()
    pictures = [*photographs(4), Image.new("RGB", (300, 300), (10, 200, 30)), photographs(1)[0].resize((641, 480))]
    for picture in pictures:
        theirs = peer(picture, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(clip_pixels([picture]), theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_safety_checker(transformers: Any) -> None:
    """Random concepts, thresholds set so that some pictures are flagged only because a special concept was seen."""
    module = pytest.importorskip("diffusers.pipelines.stable_diffusion.safety_checker")
    config = transformers.CLIPConfig(vision_config={**SIZES, "hidden_act": "quick_gelu"}, text_config={}, projection_dim=24)
    peer = module.StableDiffusionSafetyChecker(config).eval()
    random(peer)
    nn.init.normal_(peer.special_care_embeds)
    nn.init.normal_(peer.concept_embeds)
    weights = peer.state_dict()
    if not any(key.startswith("vision_model.vision_model.") for key in weights):  # transformers 5 leaves one level out
        weights = {key.replace("vision_model.", "vision_model.vision_model.", 1): value for key, value in weights.items()}
    mine = SafetyNetwork(TINY)
    mine.load_state_dict(weights)
    pictures = photographs(24)
    pixels = clip_pixels(pictures, 56)
    special, concepts = (near[..., 0] for near in mine(pixels))
    for network in (mine, peer):  # half of the pictures at each special concept's edge, and a concept or two a picture
        network.special_care_embeds_weights.copy_(special.median(dim=0).values)
        network.concept_embeds_weights.copy_(concepts.quantile(0.94, dim=0))
    _, flagged = peer(pixels, [np.ones((2, 2, 3)) for _ in pictures])
    verdicts = SafetyChecker(mine, SafetyConfig(TINY))(pictures)
    assert [verdict.flagged for verdict in verdicts] == flagged and len(set(flagged)) == 2
    plain = [round((c - t).item(), 3) for row in concepts for c, t in zip(row, mine.concept_embeds_weights, strict=True)]
    raised = [score for verdict in verdicts for score in verdict.scores.values()]
    assert {round(a - b, 2) for a, b in zip(raised, plain, strict=True)} == {0.0, 0.01}  # both happened
