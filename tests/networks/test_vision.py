"""The vision tower's sizes and names, and what it refuses; tests/peers/test_vision.py compares its outputs."""

from __future__ import annotations

import pytest
import torch

from unnoise.checkpoints.found import Part
from unnoise.checkpoints.recognise import SAFETY
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import ArgumentError
from unnoise.networks.vision import VISION, CLIPVisionConfig, CLIPVisionEncoder, SafetyConfig, SafetyNetwork, cosines

TINY = CLIPVisionConfig(image=28, patch=14, width=32, layers=2, heads=2, mlp=48, projection=24)


# OpenAI's and OpenCLIP's models as transformers counts them: the whole CLIP less its text half and its logit scale
@pytest.mark.parametrize(("name", "parameters"), [("vit_l_14", 303_966_208), ("vit_b_32", 87_849_216)])
def test_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in CLIPVisionEncoder(VISION[name]).parameters()) == parameters


def test_the_safety_checkers_names() -> None:
    """Of the published file: the tower lies in a tower."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in SafetyNetwork().state_dict().items()}
    assert shapes["concept_embeds"] == (17, 768) and shapes["concept_embeds_weights"] == (17,)
    assert shapes["special_care_embeds"] == (3, 768) and shapes["special_care_embeds_weights"] == (3,)
    assert shapes["visual_projection.weight"] == (768, 1024)
    inner = "vision_model.vision_model."
    assert shapes[inner + "embeddings.class_embedding"] == (1024,)
    assert shapes[inner + "embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert shapes[inner + "embeddings.position_embedding.weight"] == (257, 1024)
    assert shapes[inner + "pre_layrnorm.bias"] == shapes[inner + "post_layernorm.weight"] == (1024,)
    assert shapes[inner + "encoder.layers.23.mlp.fc1.weight"] == (4096, 1024)
    assert len(shapes) == 3 + 4 + 24 * 16 + 5  # embeddings, two norms, layers, the projection and the concepts


def test_old_files_carry_numbers_that_nobody_reads() -> None:
    network = SafetyNetwork(TINY)
    old = {**network.state_dict(), "vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]}
    again = Part(SafetyConfig(TINY), SAFETY, Weights.open(old)).load()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())


def test_other_sides_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"got pixels of \(1, 3, 32, 28\), expected \(b, 3, 28, 28\)"):
        CLIPVisionEncoder(TINY)(torch.zeros(1, 3, 32, 28))


def test_cosines() -> None:
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0], [-6.0, -8.0]])
    torch.testing.assert_close(cosines(a, b), torch.tensor([[0.96, -1.0]]))
