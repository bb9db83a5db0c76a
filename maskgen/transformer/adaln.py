"""AdaLN: a pooled condition as scales, shifts and gates of the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class AdaLN(nn.Module):
    """Six modulations per block, (scale, shift, gate) of attention and of the MLP, and two before the head.

    Args:
        width: of the network and of the pooled condition.
        blocks: how many, the decoder's too.
        shared: one modulation for all blocks with a learned offset per block (PixArt-alpha, arXiv:2310.00426, section
            2.3), instead of one per block (adaLN-zero, arXiv:2212.09748, section 3.2).
    """

    def __init__(self, width: int, blocks: int, shared: bool):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(1 if shared else blocks))
        self.offsets = nn.Parameter(torch.zeros(blocks, 6, width)) if shared else None
        self.final = nn.Linear(width, 2 * width)

    def forward(self, pooled: Float[Tensor, "b w"]) -> Float[Tensor, "b c w"]:
        """All modulations, one block after the other, the final two last: c is 6 x blocks + 2."""
        h = nn.functional.silu(pooled)
        each = [linear(h).unflatten(-1, (6, -1)) for linear in self.blocks]
        if self.offsets is not None:
            each = [each[0] + offset for offset in self.offsets]
        return torch.cat([*each, self.final(h).unflatten(-1, (2, -1))], 1)

    @property
    def linears(self) -> Sequence[Any]:
        """Its layers, which start at zero."""
        return [*self.blocks, self.final]
