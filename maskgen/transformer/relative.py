"""Learned biases of attention scores by the offset between query and key."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskgen.transformer.kept import kept_pairs
from maskgen.transformer.positions import coordinates, stretched


def offsets(grid: tuple[int, ...], prefix: int, device: torch.device | None = None) -> Int[Tensor, "n n"]:
    """Which entry of a table belongs to query i (row) and key j (column), `prefix` tokens without a place first.

    Entries are the offsets, query minus key, row-major from the most negative; then one each for a prefix token that
    looks at a place, a place that looks at a prefix token, and prefix tokens among themselves (BEiT's order).
    """
    places = coordinates(grid, device).long()
    index, count = torch.zeros(len(places), len(places), dtype=torch.long, device=device), 1
    for axis, size in enumerate(grid):
        along = places[:, axis]
        index = index * (2 * size - 1) + along[:, None] - along + size - 1
        count *= 2 * size - 1
    index = F.pad(index, (prefix, 0, prefix, 0), value=count + 1)
    index[:prefix] = count
    index[:prefix, :prefix] = count + 2
    return index


class RelativeBias(nn.Module):
    """What the scores of each head gain by the offset of its two tokens (Swin, arXiv:2103.14030, section 3.2, eq. 4;
    with a class token: BEiT, arXiv:2106.08254).

    Args:
        grid: of the tokens in training; the offsets' entries are resized linearly for another.
        heads: of the attention.
    """

    def __init__(self, grid: tuple[int, ...], heads: int):
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.zeros(math.prod(2 * s - 1 for s in grid) + 3, heads))

    def forward(
        self, grid: tuple[int, ...], prefix: int, keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b h n n"]:
        """The bias of all prefix and grid tokens (b is 1), or of the prefix and the places that each row keeps."""
        index = offsets(grid, prefix, self.table.device)[None]
        if keep is not None:
            index = kept_pairs(index[0], keep, prefix)
        return self._table_for(grid)[index].permute(0, 3, 1, 2).contiguous()

    def _table_for(self, grid: tuple[int, ...]) -> Float[Tensor, "e h"]:
        if grid == self.grid:
            return self.table
        places, rest = self.table[:-3].T, self.table[-3:]
        there = places.unflatten(1, [2 * s - 1 for s in self.grid])
        return torch.cat([stretched(there, tuple(2 * s - 1 for s in grid)), rest])


def biases(
    tables: nn.ModuleList,
    depth: int,
    grid: tuple[int, ...],
    prefix: int,
    keep: Int[Tensor, "b m"] | None = None,
) -> list[Float[Tensor, "b h n n"]] | list[None]:
    """The bias of each of `depth` blocks: its own table's, the one table's, or none."""
    if not tables:
        return [None] * depth
    made = [table(grid, prefix, keep) for table in tables]
    return made if len(made) == depth else made * depth


def of_queries(bias: Float[Tensor, "b h n m"], queries: Int[Tensor, "b2 k"]) -> Float[Tensor, "b2 h k m"]:
    """The rows of the queries asked for; a bias of all rows alike (b is 1) becomes each row's own."""
    rows = torch.arange(len(queries), device=queries.device)[:, None]
    return bias.expand(len(queries), -1, -1, -1).transpose(1, 2)[rows, queries].transpose(1, 2)
