"""The decoder of an asymmetric transformer (MAE, arXiv:2111.06377; MAGE, arXiv:2211.09117)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from maskgen.transformer.attention import Ragged
from maskgen.transformer.layers import Block
from maskgen.transformer.positions import Positions, add_positions, rotary, with_positions


class Decoder(nn.Module):
    """Maps the tokens that the encoder saw to features at all positions, or at some of them.

    Args:
        encoder_width: width of the encoder.
        width, heads: of the decoder.
        blocks: its blocks.
        grid: of the tokens in training.
        positions, rope: see :class:`maskgen.transformer.specs.PositionSpec`.
        pad: see :class:`maskgen.transformer.specs.DecoderSpec`.
    """

    def __init__(
        self,
        encoder_width: int,
        width: int,
        heads: int,
        blocks: list[Block],
        grid: tuple[int, ...],
        positions: Positions,
        rope: bool,
        pad: Literal["mask_token", "class_token"],
    ):
        super().__init__()
        self.heads, self.positions, self.rope, self.pad = heads, positions, rope, pad
        self.embed = nn.Linear(encoder_width, width)
        if pad == "mask_token":
            self.mask_token = nn.Parameter(torch.zeros(width))
        add_positions(self, width, grid)
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self,
        prefix: Float[Tensor, "b p w"],
        features: Float[Tensor, "b m w"],
        masked: Bool[Tensor, "b *grid"],
        keep: Int[Tensor, "b m"] | None,
        kept: Ragged | None,
        modulations: Sequence[Float[Tensor, "b 6 d"] | None],
        queries: Int[Tensor, "b k"] | None,
        bar: Float[Tensor, "b n n"] | None = None,
    ) -> Float[Tensor, "b k d"]:
        """The features at `queries`, or at all positions.

        Args:
            prefix: the encoder's tokens without a position.
            features: the encoder's tokens. They go to their positions; padding stands at masked and dropped positions.
            masked: True where a mask token replaced the token.
            keep, kept: the positions of `features`, see :meth:`MaskTransformer.forward`; None is all in order.
            modulations: of each block.
            queries: positions at which the last block runs, counted with the prefix; None is all of the grid.
            bar: added to the attention scores of all heads.
        """
        grid, n = tuple(masked.shape[1:]), masked[0].numel()
        prefix, x = self.embed(prefix), self.embed(features)
        pad = (prefix[:, :1] if self.pad == "class_token" else self.mask_token.to(x.dtype)).expand(len(x), n, -1)
        if keep is not None:
            if kept is not None:  # padded tokens go to one more position, which is cut off
                keep = keep.masked_fill(~kept.valid, n)
            room = torch.cat([pad, pad[:, :1]], 1)
            x = room.scatter(1, keep[..., None].expand_as(x), x)[:, :n]
            seen = torch.zeros(len(x), n + 1, dtype=torch.bool, device=x.device).scatter(1, keep, True)[:, :n]
            x = torch.where((seen & ~masked.flatten(1))[..., None], x, pad)
        else:
            x = torch.where(masked.flatten(1)[..., None], pad, x)
        skipped = prefix.shape[1]
        x = torch.cat([prefix, with_positions(self, x, grid)], 1)
        table = rotary(grid, skipped, x.shape[-1] // self.heads, x.device)[None] if self.rope else None
        bias = None if bar is None else bar[:, None].expand(-1, self.heads, -1, -1)
        for block, modulation in zip(self.blocks[:-1], modulations):
            x = block(x, modulation, table, bias=bias)
        x = self.blocks[-1](x, modulations[-1], table, queries, bias=bias)
        return x[:, skipped:] if queries is None else x
