"""LAION's two heads, converted, against the arithmetic on the released tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from unnoise.checkpoints.store import write
from unnoise.errors import ArgumentError, FileError
from unnoise.evaluation.aesthetics import AestheticHead, scores
from unnoise.images.safety import clip_pixels
from unnoise.networks.vision import VISION, CLIPVisionConfig, CLIPVisionEncoder

HEADS = {"vit_b_32": 512, "vit_l_14": 768}


def released(shared: Path, tower: str) -> dict[str, torch.Tensor]:
    return torch.load(shared / f"weights/heads/laion_sa_0_4_{tower}_linear.pth", weights_only=True)


@pytest.mark.parametrize("tower", HEADS)
def test_a_released_head(shared: Path, tmp_path: Path, tower: str) -> None:
    """Scores are the linear layer of embeddings of length 1, and ratings of the scale of ten for directions that CLIP could give."""
    weights = released(shared, tower)
    write.tensors(tmp_path / "head.safetensors", weights)
    head = AestheticHead.load(tmp_path / "head.safetensors")
    assert head.tower == tower and head.width == HEADS[tower] == VISION[tower].projection
    embeddings = 7 * torch.randn(5, head.width)
    layer = torch.nn.Linear(head.width, 1)
    layer.load_state_dict(weights)
    expected = layer(embeddings / embeddings.norm(dim=1, keepdim=True))[:, 0].detach()
    torch.testing.assert_close(head(embeddings), expected)
    torch.testing.assert_close(head(0.01 * embeddings), expected)
    assert 1 < weights["bias"].item() < 10


def test_other_widths_are_refused(shared: Path) -> None:
    weights = released(shared, "vit_l_14")
    head = AestheticHead(weights["weight"], weights["bias"])
    with pytest.raises(ArgumentError, match=r"got embeddings of \(2, 512\), expected \(n, 768\): projected, by CLIP vit_l_14"):
        head(torch.zeros(2, 512))
    with pytest.raises(ArgumentError, match=r"got embeddings of \(768,\)"):
        head(torch.zeros(768))


@pytest.mark.parametrize(
    "tensors",
    [{"weight": torch.zeros(1, 640), "bias": torch.zeros(1)}, {"weight": torch.zeros(1, 768)}, {"layers.0.weight": torch.zeros(1024, 768)}],
)
def test_other_files_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write.tensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(FileError, match="is not an aesthetic head: got"):
        AestheticHead.load(tmp_path / "x.safetensors")


def test_a_pickle_is_refused(shared: Path) -> None:
    with pytest.raises(FileError, match="unnoise convert"):
        AestheticHead.load(shared / "weights/heads/laion_sa_0_4_vit_l_14_linear.pth")


@torch.no_grad()
def test_pictures_are_scored_by_the_heads_tower() -> None:
    """A small tower of the head's width: more pictures than a batch, each as alone."""
    config = CLIPVisionConfig(image=28, patch=14, width=16, layers=1, heads=2, mlp=16, projection=512)
    tower, head = CLIPVisionEncoder(config).eval(), AestheticHead(torch.randn(1, 512), torch.tensor([5.0]))
    pictures = [Image.new("RGB", (40, 30), (9 * i, 255 - 9 * i, 7 * i)) for i in range(20)]
    found = scores(pictures, tower, head)
    alone = [head(tower(clip_pixels([picture], 28)).projected).item() for picture in pictures]
    assert found == pytest.approx(alone, abs=1e-5) and len(set(found)) == 20
    with pytest.raises(ArgumentError, match="without its projection"):
        scores(pictures, CLIPVisionEncoder(CLIPVisionConfig(**{**vars(config), "projection": 0})), head)
