"""ControlNets of Stable Diffusion 3: transformer blocks that read the latents of a picture, and add to the MMDiT's image tokens.

    image = tokens of x + patchify(hint)
    residual k = linear(what block k gives)          the linears start at zero

Three forms are published, the first in diffusers, the others in Stability's sd3.5:

| form  | tokens of x            | blocks                    | each reads     | pooled text                     | last block gets one |
|-------|------------------------|---------------------------|----------------|---------------------------------|---------------------|
| joint | its own, its positions | joint, over text of its own | the one before | its own embedding               | no                  |
| 2b    | its own, no positions  | of the image alone        | `image`        | the MMDiT's embedding, then its own | yes             |
| 8b    | the MMDiT's            | of the image alone        | the one before | its own embedding               | yes                 |

An MMDiT of L blocks takes the residuals of n evenly: block i takes int(i / (L / n)). Module names are those of the MMDiT, and the
authors' `transformer_blocks`, `controlnet_blocks` and `pos_embed_input`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError
from unnoise.networks.dit import Block, PatchEmbed
from unnoise.networks.layers import TimestepMLP, position_table, whole_patches
from unnoise.networks.mmdit import JointBlock, MMDiT, MMDiTConfig, PooledMLP, middle

Form = Literal["joint", "2b", "8b"]
# what a net reads of its own must have the sizes of what the MMDiT reads, beside the width and the patches
SHARED = {"joint": ("in_channels", "pooled_width", "context_width"), "2b": ("in_channels",), "8b": ("pooled_width",)}


@dataclass(frozen=True)
class MMDiTControlNetConfig:
    """`mmdit` has the sizes of this net's own blocks: its depth is the number of residuals. Stability's nets for 3.5 large: 19 blocks of
    the form 8b, width 64*38. Text width, table of positions, qk_norm and dual blocks concern joint blocks only."""

    kind: ClassVar[str] = "mmdit_controlnet"

    mmdit: MMDiTConfig = field(default_factory=MMDiTConfig)
    form: Form = "joint"
    hint_channels: int = 16  # of the hint's latents, and of a mask where there is one
    zero_pooled: bool = False  # it was trained with zeros for the pooled text (and hints whose latents are not shifted)

    def build(self) -> MMDiTControlNet:
        return MMDiTControlNet(self)

    @property
    def residuals(self) -> int:
        """How many the net gives."""
        return self.mmdit.depth

    def places(self, network: object) -> list[int | None]:
        """Return which residual each block of the controlled network takes, by the network's config.

        Raises ArgumentError for a network that this net does not fit.
        """
        if not isinstance(network, MMDiTConfig):
            kind = getattr(network, "kind", type(network).__name__)
            raise ArgumentError(f"got a ControlNet of MMDiTs for a network of kind {kind!r}: use one that was made for this family")
        for name in ("patch", "width", *SHARED[self.form]):
            one, other = getattr(self.mmdit, name), getattr(network, name)
            if one != other:
                raise ArgumentError(f"got a ControlNet of {name} {one} for an MMDiT of {other}: use one that was made for this family")
        n, depth = self.residuals, network.depth
        if n > depth:
            raise ArgumentError(f"got a ControlNet of {n} residuals for an MMDiT of {depth} blocks: expected at most one a block")
        last = None if self.form == "joint" else n - 1
        return [*(int(i / (depth / n)) for i in range(depth - 1)), last]


class MMDiTControlNet(nn.Module):
    """x (b, c, h, w), timestep (b,) of 0 to 1000, Cond, hint (b, hint_channels, h, w), the MMDiT that is controlled -> residuals, each
    (b, rows*cols, width)."""

    pos_embed: Tensor  # (1, positions², width), of joint nets

    def __init__(self, config: MMDiTControlNetConfig):
        super().__init__()
        self.config = config
        sizes, joint, width = config.mmdit, config.form == "joint", config.mmdit.width
        self.x_embedder = PatchEmbed(sizes.patch, sizes.in_channels, width) if config.form != "8b" else None
        self.pos_embed_input = PatchEmbed(sizes.patch, config.hint_channels, width)
        self.t_embedder = TimestepMLP(width)
        self.y_embedder = PooledMLP(width if config.form == "2b" else sizes.pooled_width, width)
        self.context_embedder = nn.Linear(sizes.context_width, width) if joint else None
        if joint:
            self.register_buffer("pos_embed", position_table(width, sizes.positions, sizes.positions)[None])
        self.transformer_blocks = nn.ModuleList(
            JointBlock(sizes, last=False, dual=i < sizes.dual_blocks) if joint else Block(width, sizes.heads) for i in range(sizes.depth)
        )
        self.controlnet_blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(sizes.depth))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Adds nothing before it is trained."""
        for p in nn.ModuleList([self.controlnet_blocks, self.pos_embed_input]).parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, hint: Tensor, network: MMDiT) -> list[Tensor]:
        """network: the one that is controlled; the forms 2b and 8b borrow embeddings of it. Raises ArgumentError for a hint of another
        size."""
        expected = (self.config.hint_channels, *x.shape[2:])
        if hint.shape[1:] != expected:
            raise ArgumentError(f"got a hint of {tuple(hint.shape[1:])}, expected latents of {expected} beside x of {tuple(x.shape[1:])}")
        image = self._tokens(x, network) + self.pos_embed_input(hint.to(x))
        c = self.t_embedder(t) + self._pooled(cond, network)
        if self.context_embedder is None:
            given = self._alone(image, c)
        else:
            given = self._joint(self.context_embedder(cond.need("tokens", "ControlNet")), image, c)
        return [zero(tokens) for zero, tokens in zip(self.controlnet_blocks, given, strict=True)]

    def _tokens(self, x: Tensor, network: MMDiT) -> Tensor:
        patch = self.config.mmdit.patch
        whole_patches(x, patch)
        if self.x_embedder is None:
            return network.embed(x)
        image = self.x_embedder(x)
        if self.config.form == "joint":
            image = image + middle(self.pos_embed, x.shape[2] // patch, x.shape[3] // patch, patch).to(image)
        return image

    def _pooled(self, cond: Cond, network: MMDiT) -> Tensor:
        pooled = cond.need("pooled", "ControlNet")
        pooled = network.y_embedder(pooled) if self.config.form == "2b" else pooled
        return self.y_embedder(torch.zeros_like(pooled) if self.config.zero_pooled else pooled)

    def _joint(self, text: Tensor, image: Tensor, c: Tensor) -> list[Tensor]:
        given = []
        for block in self.transformer_blocks:
            text, image = block(text, image, c)
            given.append(image)
        return given

    def _alone(self, image: Tensor, c: Tensor) -> list[Tensor]:
        given = []
        for block in self.transformer_blocks:
            given.append(block(given[-1] if given and self.config.form == "8b" else image, c))
        return given
