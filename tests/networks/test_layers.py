"""Attention's branches against its formula, sinusoids against published values, positions and patches against their definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unnoise.networks.attention import SHORT, attention
from unnoise.networks.layers import position_table, timestep_embedding, unpatchify


def formula(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt d + mask) v, a head and a query at a time, in float64."""
    out = torch.empty_like(q, dtype=torch.float64)
    d = q.shape[2] // heads
    for b in range(len(q)):
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            for i in range(q.shape[1]):
                seen = i + 1 if causal else k.shape[1]
                logits = k[b, :seen, part].double() @ q[b, i, part].double() / math.sqrt(d)
                logits = logits if mask is None else logits + mask[b % len(mask), h % mask.shape[1], i, :seen]
                out[b, i, part] = logits.softmax(0) @ v[b, :seen, part].double()
    return out


@pytest.mark.parametrize("trained", [False, True], ids=["fused", "plain"])
@pytest.mark.parametrize("case", ["self", "cross", "causal", "mask"])
def test_attention_is_its_formula(case: str, trained: bool) -> None:
    """Both branches: with gradients on a CPU the products are plain, otherwise the fused kernel runs."""
    m = 7 if case in ("cross", "mask") else 5
    q, k, v = (torch.randn(2, n, 12) for n in (5, m, m))
    mask = torch.randn(1, 3, 5, m) if case == "mask" else None
    out = attention(q.requires_grad_(trained), k, v, 3, causal=case == "causal", mask=mask)
    expected = formula(q.detach(), k, v, 3, case == "causal", mask)
    torch.testing.assert_close(out.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_branches_have_the_same_gradients(causal: bool) -> None:
    """Rows longer than SHORT take the fused kernel in training too: padding keys with rows of no weight crosses over."""
    q, k, v = (torch.randn(1, SHORT, 8, requires_grad=True) for _ in range(3))
    plain = torch.autograd.grad(attention(q, k, v, 2, causal=causal).square().sum(), (q, k, v))
    no_mask = torch.zeros(1, 1, SHORT, SHORT)
    if causal:
        no_mask = torch.full_like(no_mask, -torch.inf).triu(1)
    fused = torch.autograd.grad(attention(q, k, v, 2, mask=no_mask).square().sum(), (q, k, v))
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_sinusoids_of_stable_diffusion() -> None:
    """Width 320, cosines first, at t = 999."""
    waves = timestep_embedding(torch.tensor([999]), 320)[0]
    torch.testing.assert_close(waves[:3], torch.tensor([0.99964985, 0.80268102, -0.27811401]), rtol=0, atol=2e-4)
    torch.testing.assert_close(waves[160:162], torch.tensor([-0.02646075, 0.59640857]), rtol=0, atol=2e-4)


def test_sinusoids_of_ddpm() -> None:
    """Width 128, sines first, the last frequency exactly 1/10000, at t = 999."""
    waves = timestep_embedding(torch.tensor([999]), 128, shift=1.0, cos_first=False)[0]
    torch.testing.assert_close(waves[:3], torch.tensor([-0.02646075, 0.72670883, -0.92157018]), rtol=0, atol=2e-4)
    torch.testing.assert_close(waves[64:66], torch.tensor([0.99964985, -0.68694562]), rtol=0, atol=2e-4)
    assert waves[63].item() == pytest.approx(math.sin(999 / 10_000), rel=1e-5)


@pytest.mark.parametrize(("shift", "cos_first"), [(0.0, True), (1.0, False)])
def test_sinusoids_in_double(shift: float, cos_first: bool) -> None:
    """In float64 the same values to twelve digits, so that float32 is the only error above."""
    t, half = torch.tensor([0.0, 12.5, 999.0], dtype=torch.float64), 16
    waves = timestep_embedding(t, 2 * half, shift=shift, cos_first=cos_first)
    for row, time in zip(waves, t.tolist(), strict=True):
        angles = [time * 10_000 ** (-i / (half - shift)) for i in range(half)]
        cos, sin = [math.cos(a) for a in angles], [math.sin(a) for a in angles]
        expected = torch.tensor(cos + sin if cos_first else sin + cos, dtype=torch.float64)
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-12)


def test_sinusoids_of_half_precision_times_are_float32() -> None:
    """999 and 998 are one number in bfloat16, but 992 is itself: the angles must not be rounded again."""
    coarse, fine = timestep_embedding(torch.tensor([992.0]).bfloat16(), 64), timestep_embedding(torch.tensor([992.0]), 64)
    assert torch.equal(coarse, fine)


def test_positions_name_the_column_first() -> None:
    width, rows, cols = 16, 3, 5
    table = position_table(width, rows, cols)
    for r in range(rows):
        for c in range(cols):
            angles = [[n * 10_000 ** (-i / (width / 4)) for i in range(width // 4)] for n in (c, r)]
            expected = [wave(a) for axis in angles for wave in (math.sin, math.cos) for a in axis]
            torch.testing.assert_close(table[r * cols + c], torch.tensor(expected), rtol=0, atol=1e-6)


def test_unpatchify_inverts_the_cut() -> None:
    """A token lists its patch row by row, channels fastest."""
    x, patch = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6), 2
    corners = [(r, c) for r in range(0, 4, patch) for c in range(0, 6, patch)]
    cuts = [x[:, :, r : r + patch, c : c + patch].permute(0, 2, 3, 1).flatten(1) for r, c in corners]
    tokens = torch.stack(cuts, dim=1)
    assert torch.equal(unpatchify(tokens, patch, 2, 3), x)
