"""Networks that see some of the tokens: theirs out of what belongs to all."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from maskgen.transformer.attention import Ragged


def take(x: Shaped[Tensor, "b n *d"], index: Int[Tensor, "b k"]) -> Shaped[Tensor, "b k *d"]:
    """``x[i, index[i]]`` for every row i."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def with_prefix(keep: Int[Tensor, "b m"], prefix: int) -> Int[Tensor, "b k"]:
    """The positions of the `prefix` tokens without a place and of the places at `keep`, the prefix standing first."""
    return torch.cat([torch.arange(prefix, device=keep.device).expand(len(keep), -1), keep + prefix], 1)


def kept_pairs(pairs: Shaped[Tensor, "n n"], keep: Int[Tensor, "b m"], prefix: int) -> Shaped[Tensor, "b k k"]:
    """Of values of all pairs of tokens those among the prefix and the places that each row keeps."""
    there = with_prefix(keep, prefix)
    return pairs[there[:, :, None], there[:, None]]


def kept_table(table: Float[Tensor, "1 n d"], keep: Int[Tensor, "b m"], prefix: int) -> Float[Tensor, "b k d"]:
    """Of a table of all tokens the rows of the prefix and of the places that each row keeps."""
    return take(table.expand(len(keep), -1, -1), with_prefix(keep, prefix))


def among_kept(
    positions: Int[Tensor, "b k"], keep: Int[Tensor, "b m"], kept: Ragged | None, count: int
) -> Int[Tensor, "b k"]:
    """Where positions of a grid of `count` places stand in `keep`; they must be among these."""
    places = keep if kept is None else keep.masked_fill(~kept.valid, count)  # padding: behind the last
    order = keep.new_full((len(keep), count + 1), -1)
    order = order.scatter(1, places, torch.arange(keep.shape[1], device=keep.device).expand_as(keep))
    return order.gather(1, positions)
