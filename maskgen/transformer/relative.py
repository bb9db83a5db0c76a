"""Learned biases of attention scores that depend on the offset between query and key."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskgen.transformer.kept import kept_pairs
from maskgen.transformer.positions import coordinates, stretched


def offsets(grid: tuple[int, ...], prefix: int, device: torch.device | None = None) -> Int[Tensor, "n n"]:
    """The table entry for query i (row) and key j (column). The `prefix` tokens without a position come first.

    The entries are the offsets, query minus key, in row-major order from the most negative one; then one entry each for
    a prefix token that attends to a position, a position that attends to a prefix token, and two prefix tokens (the
    order of BEiT).
    """
    positions = coordinates(grid, device).long()
    index, count = torch.zeros(len(positions), len(positions), dtype=torch.long, device=device), 1
    for axis, size in enumerate(grid):
        along = positions[:, axis]
        index = index * (2 * size - 1) + along[:, None] - along + size - 1
        count *= 2 * size - 1
    index = F.pad(index, (prefix, 0, prefix, 0), value=count + 1)
    index[:prefix] = count
    index[:prefix, :prefix] = count + 2
    return index


class RelativeBias(nn.Module):
    """A learned bias of the attention scores per head and offset of query and key (Swin, arXiv:2103.14030, section 3.2,
    eq. 4; BEiT, arXiv:2106.08254, adds a class token).

    Args:
        grid: of the tokens in training; the entries are resized linearly for other grids.
        heads: number of attention heads.
    """

    def __init__(self, grid: tuple[int, ...], heads: int):
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.zeros(math.prod(2 * s - 1 for s in grid) + 3, heads))

    def forward(
        self, grid: tuple[int, ...], prefix: int, keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b h n n"]:
        """The bias of all prefix and grid tokens (b is 1), or of the prefix and the kept positions of each row."""
        index = offsets(grid, prefix, self.table.device)[None]
        if keep is not None:
            index = kept_pairs(index[0], keep, prefix)
        return self._table_for(grid)[index].permute(0, 3, 1, 2).contiguous()

    def _table_for(self, grid: tuple[int, ...]) -> Float[Tensor, "e h"]:
        if grid == self.grid:
            return self.table
        entries, rest = self.table[:-3].T, self.table[-3:]
        there = entries.unflatten(1, [2 * s - 1 for s in self.grid])
        return torch.cat([stretched(there, tuple(2 * s - 1 for s in grid)), rest])


def biases(
    tables: nn.ModuleList,
    depth: int,
    grid: tuple[int, ...],
    prefix: int,
    keep: Int[Tensor, "b m"] | None = None,
) -> list[Float[Tensor, "b h n n"]] | list[None]:
    """The bias of each of `depth` blocks, from its own table or from a shared table; None without tables."""
    if not tables:
        return [None] * depth
    made = [table(grid, prefix, keep) for table in tables]
    return made if len(made) == depth else made * depth


def of_queries(bias: Float[Tensor, "b h n m"], queries: Int[Tensor, "b2 k"]) -> Float[Tensor, "b2 h k m"]:
    """The bias of the given queries. A bias that all rows share (b is 1) becomes one bias per row."""
    rows = torch.arange(len(queries), device=queries.device)[:, None]
    return bias.expand(len(queries), -1, -1, -1).transpose(1, 2)[rows, queries].transpose(1, 2)
