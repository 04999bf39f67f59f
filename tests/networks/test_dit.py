"""The diffusion transformer against its authors' outputs, and what it promises beyond them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from networks import golden, golden_pixels
from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.networks.dit import DiT, DiTConfig
from unnoise.networks.layers import position_table


@pytest.mark.parametrize("case", ["dit_patch2", "dit_patch4"])
@torch.no_grad()
def test_authors_outputs(shared: Path, case: str) -> None:
    """Class-conditional with the null label among the labels, learned variance, both halves of a guided batch."""
    io, record = (file := golden_pixels.read(shared / "golden/dit" / case)).io, file.record
    dit = file.network()
    config, side = dit.config, record["hyperparameters"]["input_size"] // dit.config.patch
    torch.testing.assert_close(position_table(config.width, side, side), file.part.weights.read("pos_embed")[0], rtol=0, atol=1e-6)
    floor = record["tensors"]["out.eps_sigma"]["max_abs_float32_minus_float64"]
    assert config.num_classes in io["in.y"], "the null label should be among them"
    golden.assert_close(dit(io["in.x"], io["in.t"], Cond(labels=io["in.y"])), io["out.eps_sigma"], floor)

    half = io["in.x_cfg"][: len(io["in.x_cfg"]) // 2]
    guided = dit(torch.cat([half, half]), io["in.t_cfg"], Cond(labels=io["in.y_cfg"]))
    # the authors guide the first three channels only: the fourth and the variances are the network's own
    golden.assert_close(guided[:, 3:], io["out.cfg"][:, 3:], floor)
    given, null = guided[:, :3].chunk(2)
    joined = null + io["in.cfg_scale"] * (given - null)
    golden.assert_close(torch.cat([joined, joined]), io["out.cfg"][:, :3], 10 * floor)


def lively(config: DiTConfig) -> DiT:
    dit = DiT(config).eval()
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return dit


TEXT = DiTConfig(width=32, depth=2, heads=2, learn_sigma=False, context_width=12, pooled_width=10)


def test_starts_at_zero() -> None:
    x, cond = torch.randn(2, 4, 8, 8), Cond(tokens=torch.randn(2, 3, 12), pooled=torch.randn(2, 10))
    assert torch.equal(DiT(TEXT)(x, torch.zeros(2), cond), torch.zeros_like(x))


@torch.no_grad()
def test_rows_are_independent_and_conditions_are_heard() -> None:
    dit, x, t = lively(TEXT), torch.randn(3, 4, 8, 8), torch.tensor([1.0, 500.5, 999.0])
    cond = Cond(tokens=torch.randn(3, 5, 12), pooled=torch.randn(3, 10))
    together = dit(x, t, cond)
    alone = torch.cat([dit(x[i : i + 1], t[i : i + 1], cond.rows(i, i + 1)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    for other in (Cond(cond.tokens + 1, cond.pooled), Cond(cond.tokens, cond.pooled + 1)):
        assert (dit(x, t, other) - together).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 6)])
@torch.no_grad()
def test_any_size_of_whole_patches(size: tuple[int, int]) -> None:
    dit, cond = lively(TEXT), Cond(tokens=torch.randn(1, 5, 12), pooled=torch.randn(1, 10))
    assert dit(torch.randn(1, 4, *size), torch.zeros(1), cond).shape == (1, 4, *size)


@pytest.mark.parametrize(
    ("config", "field", "given"),
    [
        (DiTConfig(width=32, depth=1, heads=2, num_classes=3), "labels", None),
        (TEXT, "tokens", Cond(pooled=torch.zeros(1, 10))),
        (TEXT, "pooled", Cond(tokens=torch.zeros(1, 3, 12))),
    ],
)
def test_missing_conditions_are_named(config: DiTConfig, field: str, given: Cond | None) -> None:
    with pytest.raises(ArgumentError, match=rf"this DiT is conditioned on {field}, got none: set Cond\({field}="):
        DiT(config)(torch.zeros(1, 4, 8, 8), torch.zeros(1), given)


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (1, 1)])
def test_sides_of_broken_patches_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ArgumentError, match=f"got x of {size[0]}x{size[1]}, expected multiples of 2"):
        DiT(TEXT)(torch.zeros(1, 4, *size), torch.zeros(1), Cond(tokens=torch.zeros(1, 3, 12), pooled=torch.zeros(1, 10)))


def test_sketching_one_leaves_the_next_whole() -> None:
    """A network built and run without memory must not leave its empty tables to a real one."""
    config = DiTConfig(width=48, depth=1, heads=2)
    with torch.device("meta"):
        DiT(config)(torch.zeros(1, 4, 12, 12), torch.zeros(1))
    with torch.no_grad():
        assert lively(config)(torch.randn(1, 4, 12, 12), torch.zeros(1)).isfinite().all()
