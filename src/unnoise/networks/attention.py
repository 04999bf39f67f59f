"""The one place that names an attention kernel. Every network here calls `attention` and nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Training on a CPU: the fused kernel's backward pass is several times slower than plain matrix products while rows are this short.
SHORT = 512


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(q kᵀ / √d) v, head by head (Vaswani et al. 2017, eq. 1).

    q (b, n, heads*d), k and v (b, m, heads*d). mask (b or 1, heads or 1, n, m) is added to the logits. Gives (b, n, heads*d).
    scale: what stands in place of 1/√d; T5 has 1.
    """
    b, n, width = q.shape
    q, k, v = (x.view(b, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))  # (b, heads, n, d)
    plain = q.device.type == "cpu" and q.requires_grad and k.shape[2] <= SHORT and mask is None
    if plain:
        out = _plain(q, k, v, causal, scale)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return out.transpose(1, 2).reshape(b, n, width)


def _plain(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    logits = q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.transpose(-1, -2)
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    return torch.softmax(logits, dim=-1) @ v
