"""Indexing for networks that see a subset of the tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from maskgen.transformer.attention import Ragged


def take(x: Shaped[Tensor, "b n *d"], index: Int[Tensor, "b k"]) -> Shaped[Tensor, "b k *d"]:
    """``x[i, index[i]]`` for every row i."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def with_prefix(keep: Int[Tensor, "b m"], prefix: int) -> Int[Tensor, "b k"]:
    """Indices of the `prefix` tokens without a position, followed by those of the positions at `keep`."""
    return torch.cat([torch.arange(prefix, device=keep.device).expand(len(keep), -1), keep + prefix], 1)


def kept_pairs(pairs: Shaped[Tensor, "n n"], keep: Int[Tensor, "b m"], prefix: int) -> Shaped[Tensor, "b k k"]:
    """The values of those pairs of tokens that are in the prefix or among the kept positions of each row."""
    there = with_prefix(keep, prefix)
    return pairs[there[:, :, None], there[:, None]]


def kept_table(table: Float[Tensor, "1 n d"], keep: Int[Tensor, "b m"], prefix: int) -> Float[Tensor, "b k d"]:
    """The rows of a table of all tokens that belong to the prefix or to the kept positions of each row."""
    return take(table.expand(len(keep), -1, -1), with_prefix(keep, prefix))


def among_kept(
    positions: Int[Tensor, "b k"], keep: Int[Tensor, "b m"], kept: Ragged | None, count: int
) -> Int[Tensor, "b k"]:
    """The indices in `keep` of `positions` of a grid of `count`. All of them must be kept."""
    own = keep if kept is None else keep.masked_fill(~kept.valid, count)  # padding goes behind the last position
    order = keep.new_full((len(keep), count + 1), -1)
    order = order.scatter(1, own, torch.arange(keep.shape[1], device=keep.device).expand_as(keep))
    return order.gather(1, positions)
