"""ADM's classifier of noisy pictures (Dhariwal & Nichol 2021, section 4): its U-Net's way down, and a token that attends to all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import golden
from unnoise.conditioning import Cond
from unnoise.networks.attention import attention
from unnoise.networks.blocks import to_tokens
from unnoise.networks.unet import UNet, UNetConfig


class Classifier(nn.Module):
    """x (b, 3, h, w), timestep (b,) -> logits (b, classes); of one picture size, which the table of positions has."""

    def __init__(self, config: UNetConfig, classes: int, position: Tensor):
        super().__init__()
        self.unet, width = UNet(config), config.widths[-1]
        del self.unet.up_blocks, self.unet.conv_out
        self.heads, self.position = width // config.head_width, position
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, classes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, emb = self.unet.conv_in(x), self.unet.embed(t, Cond())
        for down in self.unet.down_blocks:
            h = down(h, emb, None)[-1]
        h = to_tokens(F.silu(self.unet.conv_norm_out(self.unet.mid_block(h, emb, None))))  # (b, hw, c)
        h = torch.cat([h.mean(1, keepdim=True), h], dim=1) + self.position
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        return self.projection(attention(q, k, v, self.heads)[:, 0])

    def slope(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The gradient of log p(label | x) in x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            likely = torch.log_softmax(self(x, t), dim=-1).gather(1, labels[:, None])
            return torch.autograd.grad(likely.sum(), x)[0]


def adm(weights: golden.Tensors, *, legacy: bool = True) -> Classifier:
    """The one that stands beside adm/unet. legacy: the order of q, k and v in the blocks; the pooling always has the new one."""
    mine = {key.removeprefix("classifier."): value for key, value in weights.items() if key.startswith("classifier.")}
    position, config = mine.pop("out.2.positional_embedding").T, UNetConfig(**golden.ADM)
    mine = golden.new_order(mine, config) if legacy else mine
    model = Classifier(config, len(mine["out.2.c_proj.bias"]), position).eval()
    names = {f"unet.{ours}": theirs for ours, theirs in golden.unet_ldm(config).items()}
    golden.translate(model, mine, names | {"qkv": "out.2.qkv_proj", "projection": "out.2.c_proj"}, golden.INSIDE_LDM)
    return model.requires_grad_(False)
