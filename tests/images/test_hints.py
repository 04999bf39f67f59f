"""Every kind of hint on a picture; the ones without a network by what they must give, those with one by their real or chosen weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from unnoise.checkpoints.store import write
from unnoise.errors import ArgumentError, FileError, MissingExtra, UnknownName
from unnoise.images import annotators
from unnoise.images.hints import HINTS, hint
from unnoise.networks.annotators import HED, BodyPose
from unnoise.networks.depth import DepthAnything, DepthConfig
from unnoise.networks.mlsd import MLSD, MLSD_LARGE
from unnoise.runtime.placement import Placement

PLAIN = [kind for kind, row in HINTS.items() if not row.model]
TINY_DEPTH = DepthConfig(64, 4, 1, (1, 2, 3, 4), (8, 8, 8, 8), 8, 4, 14, 4)


def scene(width: int = 160, height: int = 112) -> Image.Image:
    page = Image.new("RGB", (width, height), (220, 215, 200))
    ImageDraw.Draw(page).rectangle((40, 30, 100, 80), fill=(60, 80, 110))
    return page


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_hint_is_rgb_and_of_the_pictures_size(kind: str, mode: str) -> None:
    made = hint(kind, scene(161, 113).convert(mode))
    assert made.size == (161, 113) and made.mode == "RGB"


@pytest.mark.parametrize("kind", ["canny", "lineart"])
def test_lines_lie_where_the_box_ends(kind: str) -> None:
    lines = values(hint(kind, scene()))[..., 0]
    near = np.zeros_like(lines, dtype=bool)
    near[24:87, 34:107] = True
    assert lines[near].max() > 100 and lines[~near].max() < 30
    assert lines.dtype == int and (values(hint(kind, Image.new("RGB", (64, 64), "gray"))) == 0).all()


def test_cannys_thresholds() -> None:
    faint = Image.new("RGB", (64, 64), (100, 100, 100))
    ImageDraw.Draw(faint).rectangle((20, 20, 44, 44), fill=(115, 115, 115))
    assert values(hint("canny", faint)).max() == 0
    assert values(hint("canny", faint, low_threshold=10, high_threshold=40)).max() == 255
    with pytest.raises(ArgumentError, match="got low_threshold 200 and high_threshold 100, expected 0 <= low <= high"):
        hint("canny", faint, low_threshold=200, high_threshold=100)


def test_canny_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"unnoise\[control\]"):
        hint("canny", scene())


def test_colours() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    assert (values(hint("invert", picture)) == 255 - values(picture)).all()
    assert np.ptp(values(hint("gray", picture)), axis=2).max() == 0
    assert np.abs(values(hint("color", picture, cells=32))[:32, :32] - values(picture)[:32, :32].mean(axis=(0, 1))).max() <= 1
    assert hint("tile", picture).tobytes() == picture.tobytes()
    coarse = values(hint("tile", picture, factor=8))
    assert coarse.std() < 0.3 * values(picture).std() and abs(coarse.mean() - values(picture).mean()) < 2


def test_blur_has_the_deviation_that_was_asked() -> None:
    point = Image.new("RGB", (129, 129))
    point.paste((255, 255, 255), (60, 60, 69, 69))
    spread = values(hint("blur", point, sigma=6.0))[..., 0].sum(axis=0)
    x = np.arange(129)
    variance = (spread * (x - 64) ** 2).sum() / spread.sum() - (9**2 - 1) / 12  # the square's own
    assert variance == pytest.approx(36, rel=0.15)


def test_transparent_is_white() -> None:
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert hint("tile", clear).getcolors() == [(256, (255, 255, 255))]


def test_refusals() -> None:
    with pytest.raises(UnknownName, match="unknown hint 'cany': did you mean 'canny'"):
        hint("cany", scene())
    with pytest.raises(UnknownName, match="unknown option of the hint 'canny' 'low': did you mean 'low_threshold'"):
        hint("canny", scene(), low=3)
    with pytest.raises(ArgumentError, match="got a model for the hint 'blur', which needs none"):
        hint("blur", scene(), "hed.safetensors")
    with pytest.raises(ArgumentError, match="got sigma 0, expected more than 0"):
        hint("blur", scene(), sigma=0)
    with pytest.raises(ArgumentError, match=r"got factor 0.5, expected 1 or more"):
        hint("tile", scene(), factor=0.5)


def here(kind: str, network: nn.Module) -> annotators.Loaded:
    return annotators.Loaded(kind, network, Placement(torch.device("cpu"), torch.float32))


@pytest.mark.parametrize("kind", annotators.ANNOTATORS)
def test_a_network_must_be_named(kind: str) -> None:
    with pytest.raises(ArgumentError, match=f"the hint '{kind}' needs a network: pass model="):
        hint(kind, scene())
    with pytest.raises(ArgumentError, match=f"got a Linear for the hint '{kind}'"):
        hint(kind, scene(), nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match=f"got the network of 'another' for the hint '{kind}'"):
        hint(kind, scene(), here("another", nn.Linear(2, 2)))


NETWORKS = {"mlsd": lambda: MLSD(MLSD_LARGE), "hed": HED, "pose": BodyPose, "depth": lambda: DepthAnything(TINY_DEPTH)}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_file_gives_its_network_back(kind: str, tmp_path: Path) -> None:
    """In half precision, under the published names, and with what nothing needs."""
    network = NETWORKS[kind]()
    weights = {name.removeprefix("layers."): value for name, value in network.state_dict().items()}
    weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    extra = {"backbone.embeddings.mask_token": torch.zeros(1, 64)} if kind == "depth" else {}
    write.tensors(tmp_path / "a.safetensors", {**weights, **extra})
    loaded = annotators.load(kind, tmp_path / "a.safetensors")
    assert loaded.kind == kind and type(loaded.network) is type(network) and not loaded.network.training
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, weights[name.removeprefix("layers.")].to(value.dtype))
    write.tensors(tmp_path / "b.safetensors", {"layer.weight": torch.zeros(2)})
    with pytest.raises((FileError, ArgumentError), match=r"does not fit|expected those of"):
        annotators.load(kind, tmp_path / "b.safetensors")


def test_an_unknown_annotator() -> None:
    with pytest.raises(UnknownName, match="unknown annotator 'midas'"):
        annotators.load("midas", "x.safetensors")


def test_mlsd_on_a_photograph(shared: Path, tmp_path: Path) -> None:
    """The released weights, converted: the edge of the table in the toy car's picture is among the lines."""
    weights = torch.load(shared / "weights/annotators/mlsd_tiny_512_fp32.pth", weights_only=True)
    write.tensors(tmp_path / "mlsd.safetensors", weights)
    with Image.open(shared / "data/dreambooth_mini/rc_car/02.jpg") as photograph:
        made = hint("mlsd", photograph, str(tmp_path / "mlsd.safetensors"))
        lines = values(made.resize((512, 512), Image.Resampling.BOX))[..., 0] > 40
    assert made.size == photograph.size
    assert 0.005 < lines.mean() < 0.1
    edge = [max(lines[y + d, x] for d in range(-5, 6)) for x, y in ((20, 397), (60, 383), (100, 370), (140, 357))]
    assert all(edge)


class Dark(HED):
    """Edges where the picture is dark: shows the range, the order of colours and the size that the network is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return 1 - x[:, :1] / 255


def test_hed_sees_colours_from_0_to_255() -> None:
    network = Dark()
    made = values(hint("hed", scene(), here("hed", network), resolution=128))
    assert network.seen.shape == (1, 3, 128, 192)  # 112x160, both at multiples of 64
    assert network.seen[0, :, 5, 5].tolist() == [220, 215, 200]
    assert np.abs(made[5, 5] - 35).max() <= 1 and np.abs(made[50, 70] - 195).max() <= 1


def test_hed_is_the_mean_of_five_scales() -> None:
    """Constant maps at every scale: the sigmoid of their mean."""
    network = HED().eval()
    logits = [-2.0, -1.0, 0.0, 1.0, 4.0]
    for block, logit in zip((network.block1, network.block2, network.block3, network.block4, network.block5), logits, strict=True):
        nn.init.zeros_(block.projection.weight)
        nn.init.constant_(block.projection.bias, logit)
    with torch.no_grad():
        edges = network(torch.rand(1, 3, 40, 56) * 255)
    torch.testing.assert_close(edges, torch.full((1, 1, 40, 56), 0.4).sigmoid())
    assert sum(p.numel() for p in network.parameters()) == 14_714_688 + (64 + 128 + 256 + 512 + 512 + 5) + 3  # VGG-16's convolutions


class Nearer(DepthAnything):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return 3 + 2 * torch.linspace(0, 1, x.shape[3]).expand(1, 1, *x.shape[2:])


def test_depth_goes_from_black_to_white() -> None:
    network = Nearer(TINY_DEPTH)
    made = values(hint("depth", scene(), here("depth", network), resolution=140))
    assert network.seen.shape == (1, 3, 140, 196)
    expected = [(c / 255 - m) / s for c, m, s in zip((220, 215, 200), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    assert network.seen[0, :, 2, 2].tolist() == pytest.approx(expected, rel=1e-5)
    assert made[50, 0, 0] < 3 and made[50, -1, 0] > 252 and (np.diff(made[50, :, 0]) >= 0).all()


def test_an_even_depth_is_no_nan() -> None:
    class Flat(DepthAnything):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(1, 1, *x.shape[2:])

    assert values(hint("depth", scene(), here("depth", Flat(TINY_DEPTH)), resolution=140)).max() == 0
