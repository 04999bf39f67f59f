"""The transformer of Stable Diffusion 3 and 3.5 against its authors' outputs, and what it promises beyond them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from networks import golden_sd3
from networks.controlled import skipping
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions, schedules
from unnoise.errors import ArgumentError
from unnoise.networks.layers import position_table
from unnoise.networks.mmdit import MMDiT, MMDiTConfig
from unnoise.runtime.denoise import NetworkDenoiser

CASES = ["mmdit_medium", "mmdit_large35", "mmdit_medium35"]  # plain; normalised queries and keys; and dual attention


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_authors_outputs(shared: Path, case: str) -> None:
    """Square and not, with and without its first block, and as the estimate of x_0."""
    found, mmdit = golden_sd3.read(shared / "golden/sd3" / case)
    cond, assert_close = Cond(tokens=found["in.context"], pooled=found["in.y"]), found.assert_close
    assert_close(mmdit(found["in.x"], found["in.t"], cond), "out.velocity")
    wide = found["in.x_nonsquare"]
    assert_close(mmdit(wide, found["in.t"], cond), "out.velocity_nonsquare")
    assert_close(mmdit.positions(wide.shape[2] // 2, wide.shape[3] // 2), "out.pos_embed_crop_nonsquare")
    weak = skipping(cond, found.record["skip_layers"], mmdit.config.depth)
    assert_close(mmdit(found["in.x"], found["in.t"], weak), "out.velocity_skip")

    schedule = schedules.flow(shift=3.0)
    times = schedule.time(2 * ((1 - found["in.sigma"]) / found["in.sigma"]).log())
    denoiser = NetworkDenoiser(mmdit, schedule, predictions.flow)
    estimate = denoiser(found["in.x"], times, cond)
    assert isinstance(estimate, Tensor)  # no learned variance
    assert_close(estimate, "out.denoised_apply_model")


SMALL = MMDiTConfig(in_channels=4, width=32, depth=3, heads=2, context_width=12, pooled_width=10, positions=8)
DUAL = MMDiTConfig(in_channels=4, width=32, depth=3, heads=2, context_width=12, pooled_width=10, positions=8, qk_norm=True, dual_blocks=2)


def lively(config: MMDiTConfig) -> MMDiT:
    mmdit = MMDiT(config).eval()
    for p in mmdit.parameters():
        nn.init.normal_(p, std=0.15)
    return mmdit


def asked(rows: int = 2, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Cond]:
    cond = Cond(tokens=torch.randn(rows, 5, 12), pooled=torch.randn(rows, 10))
    return torch.randn(rows, 4, height, width), torch.linspace(1, 999, rows), cond


@pytest.mark.parametrize("config", [SMALL, DUAL], ids=["plain", "dual"])
def test_starts_at_zero_and_learns_everywhere(config: MMDiTConfig) -> None:
    """Fresh, its answer is zero; then every parameter has a gradient, but for what only the last block's text would use."""
    fresh, (x, t, cond) = MMDiT(config), asked()
    assert torch.equal(fresh(x, t, cond), torch.zeros_like(x))
    mmdit = lively(config)
    mmdit(x, t, cond).square().mean().backward()
    idle = {name for name, p in mmdit.named_parameters() if p.grad is None or not bool(p.grad.any())}
    unread = {"joint_blocks.2.context_block.attn.ln_q.weight"} if config.qk_norm else set()  # nothing reads what its text attended to
    assert idle == unread


@pytest.mark.parametrize("config", [SMALL, DUAL], ids=["plain", "dual"])
@torch.no_grad()
def test_rows_are_independent_and_conditions_are_heard(config: MMDiTConfig) -> None:
    mmdit, (x, t, cond) = lively(config), asked(3)
    together = mmdit(x, t, cond)
    alone = torch.cat([mmdit(x[i : i + 1], t[i : i + 1], cond.rows(i, i + 1)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    for other in (Cond(torch.randn(3, 5, 12), cond.pooled), Cond(cond.tokens, torch.randn(3, 10))):
        assert (mmdit(x, t, other) - together).abs().max() > 1e-3
    assert (mmdit(x, t + 1, cond) - together).abs().max() > 1e-3


@torch.no_grad()
def test_the_order_of_the_text_is_all_the_same_to_it() -> None:
    """Tokens bring their own positions from the text encoder; joint attention gives them none."""
    mmdit, (x, t, cond) = lively(DUAL), asked()
    shuffled = Cond(cond.need("tokens", "test").flip(1), cond.pooled)
    torch.testing.assert_close(mmdit(x, t, shuffled), mmdit(x, t, cond), rtol=1e-5, atol=1e-5)


def test_positions_are_the_middle_of_the_table() -> None:
    mmdit, table = MMDiT(SMALL), position_table(32, 8, 8)
    assert torch.equal(mmdit.positions(8, 8)[0], table)
    middle = table.unflatten(0, (8, 8))[3:5, 1:7].flatten(0, 1)
    assert torch.equal(mmdit.positions(2, 6)[0], middle)
    assert torch.equal(mmdit.positions(1, 1)[0, 0], table[3 * 8 + 3])  # an odd rest is cut off below and on the right


@torch.no_grad()
def test_skipping_every_block_leaves_patches_and_modulation() -> None:
    mmdit, (x, t, cond) = lively(SMALL), asked()
    bare = mmdit(x, t, skipping(cond, range(3), 3))
    other = Cond(torch.randn(2, 5, 12), cond.pooled)
    assert torch.equal(bare, mmdit(x, t, skipping(other, range(3), 3)))  # the text comes in by blocks alone
    assert not torch.equal(bare, mmdit(x, t, skipping(cond, [0, 1], 3)))
    assert torch.equal(mmdit(x, t, skipping(cond, [], 3)), mmdit(x, t, cond))


@torch.no_grad()
def test_each_row_leaves_out_its_own_blocks() -> None:
    mmdit, (x, t, cond) = lively(DUAL), asked(3)
    rows = [[0, 1], [], [1]]
    together = mmdit(x, t, Cond.stack([skipping(cond.rows(i, i + 1), skip, 3) for i, skip in enumerate(rows)]))
    alone = [mmdit(x[i : i + 1], t[i : i + 1], skipping(cond.rows(i, i + 1), skip, 3)) for i, skip in enumerate(rows)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [2, 4])
def test_columns_for_blocks_that_do_not_exist_are_refused(depth: int) -> None:
    x, t, cond = asked()
    with pytest.raises(ArgumentError, match=f"got skip for {depth} blocks: this network has 3, expected one column for each"):
        MMDiT(SMALL)(x, t, skipping(cond, [0], depth))


@pytest.mark.parametrize("size", [(18, 8), (8, 18)])
def test_pictures_beyond_the_table_are_refused(size: tuple[int, int]) -> None:
    x, t, cond = asked(1, *size)
    with pytest.raises(ArgumentError, match=f"got x of {size[0]}x{size[1]}, expected at most 16 a side"):
        MMDiT(SMALL)(x, t, cond)


@pytest.mark.parametrize("size", [(7, 8), (8, 7)])
def test_sides_of_broken_patches_are_refused(size: tuple[int, int]) -> None:
    x, t, cond = asked(1, *size)
    with pytest.raises(ArgumentError, match=f"got x of {size[0]}x{size[1]}, expected multiples of 2"):
        MMDiT(SMALL)(x, t, cond)


@pytest.mark.parametrize(("field", "given"), [("tokens", Cond(pooled=torch.zeros(1, 10))), ("pooled", Cond(tokens=torch.zeros(1, 3, 12)))])
def test_missing_conditions_are_named(field: str, given: Cond) -> None:
    with pytest.raises(ArgumentError, match=rf"this MMDiT is conditioned on {field}, got none: set Cond\({field}="):
        MMDiT(SMALL)(torch.zeros(1, 4, 8, 8), torch.zeros(1), given)
