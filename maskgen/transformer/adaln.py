"""AdaLN: scales, shifts and gates of the blocks, computed from the pooled condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class AdaLN(nn.Module):
    """Six modulations per block (scale, shift and gate of the attention and of the MLP), and two before the head.

    Args:
        width: width of the network and of the pooled condition.
        blocks: number of blocks, including those of the decoder.
        shared: one modulation for all blocks plus a learned offset per block (PixArt-alpha, arXiv:2310.00426, section
            2.3) instead of one modulation per block (adaLN-zero, arXiv:2212.09748, section 3.2).
    """

    def __init__(self, width: int, blocks: int, shared: bool):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(1 if shared else blocks))
        self.offsets = nn.Parameter(torch.zeros(blocks, 6, width)) if shared else None
        self.final = nn.Linear(width, 2 * width)

    def forward(self, pooled: Float[Tensor, "b w"]) -> Float[Tensor, "b c w"]:
        """The modulations of all blocks in order, then the two of the head: c = 6 * blocks + 2."""
        h = nn.functional.silu(pooled)
        each = [linear(h).unflatten(-1, (6, -1)) for linear in self.blocks]
        if self.offsets is not None:
            each = [each[0] + offset for offset in self.offsets]
        return torch.cat([*each, self.final(h).unflatten(-1, (2, -1))], 1)

    @property
    def linears(self) -> Sequence[Any]:
        """The linear layers, which are initialised to zero."""
        return [*self.blocks, self.final]
