"""Attention: xformers on CUDA if it is installed, PyTorch elsewhere, or an explicit path with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

PLAIN = 640  # 24 x 24 tokens and a few registers
Backend = Literal["auto", "xformers", "sdpa", "explicit", "packed"]


@dataclass(frozen=True)
class Ragged:
    """Rows with different numbers of tokens, padded at the end to the longest row.

    Args:
        lengths: number of tokens of each row, as Python integers, so that packing needs no synchronisation.
        valid: bool (b, m), True at tokens, False at padding.
        index: int64 (total,), the indices of the tokens in the flat (b * m).
    """

    lengths: tuple[int, ...]
    valid: Bool[Tensor, "b m"]
    index: Int[Tensor, "total"]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | None = None) -> Ragged:
        """The padding for rows with these numbers of tokens."""
        counts = torch.tensor(lengths)
        valid = torch.arange(int(counts.max())) < counts[:, None]
        return cls(tuple(lengths), valid.to(device), valid.flatten().nonzero()[:, 0].to(device))

    def after(self, prefix: int) -> Ragged:
        """The padding if every row has `prefix` more tokens at its front."""
        return Ragged.of([n + prefix for n in self.lengths], self.valid.device) if prefix else self


@cache
def xformers_installed() -> bool:
    return find_spec("xformers") is not None


def attend(
    q: Float[Tensor, "b n h d"],
    k: Float[Tensor, "b m h d"],
    v: Float[Tensor, "b m h d"],
    backend: Backend = "auto",
    keys: Ragged | None = None,
    causal: bool = False,
    bias: Float[Tensor, "#b h n m"] | None = None,
) -> Float[Tensor, "b n h d"]:
    """softmax(q k^T / sqrt(d) + bias) v. All backends agree up to rounding.

    Args:
        q, k, v: queries, keys and values, float (b, tokens, heads, d).
        backend: ``auto``, ``xformers``, ``sdpa`` (PyTorch), ``explicit`` (two matrix products), or ``packed``, a
            reference for tests: it packs all rows into one row with block-diagonal attention, as ``xformers`` does on
            CUDA, and is quadratic in the number of all tokens.
        keys: needed if rows differ in their number of keys. The outputs of padded queries have no meaning.
        bias: added to the scores. With a bias ``xformers`` pads rows of different lengths, as its packing takes none.
        causal: query i attends to the keys 0 to i. It needs as many queries as keys and rows of one length.

    Raises:
        ValueError: the backend is unknown; or `causal` with `keys`, `bias` or the backend ``packed``.
    """
    if causal:
        if keys is not None or bias is not None or backend == "packed":
            raise ValueError("causal attention needs rows of one length; leave out keys, bias and backend 'packed'")
        return _causal(q, k, v, _best(q) if backend == "auto" else backend)
    if backend == "auto":
        backend = _best(q)
    if backend == "xformers":
        from xformers.ops import memory_efficient_attention

        if bias is not None:
            return memory_efficient_attention(q, k, v, _aligned(_barred(bias, keys).to(q.dtype), len(q)))
        return memory_efficient_attention(q, k, v) if keys is None else _packed(q, k, v, keys, xformers=True)
    if backend == "sdpa":
        mask = None if keys is None else keys.valid[:, None, None]
        if bias is not None:
            mask = _barred(bias, keys).to(q.dtype)
        heads_first = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return heads_first.transpose(1, 2)
    if backend == "explicit":
        return (attention_probabilities(q, k, keys, bias).to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
    if backend == "packed":
        keys = keys or Ragged.of([k.shape[1]] * len(k), k.device)
        return _packed(q, k, v, keys, xformers=False, bias=bias)
    raise ValueError(f"unknown attention backend {backend!r}: choose one of auto, xformers, sdpa, explicit, packed")


def _causal(q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> Float[Tensor, "b n h d"]:
    if backend == "xformers":
        from xformers.ops import LowerTriangularMask, memory_efficient_attention

        return memory_efficient_attention(q, k, v, LowerTriangularMask())
    heads_first = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)


def attention_probabilities(
    q: Float[Tensor, "b n h d"],
    k: Float[Tensor, "b m h d"],
    keys: Ragged | None = None,
    bias: Float[Tensor, "#b h n m"] | None = None,
) -> Float[Tensor, "b h n m"]:
    """The attention weights of each query over the keys; they sum to 1."""
    scores = q.transpose(1, 2) * q.shape[-1] ** -0.5 @ k.permute(0, 2, 3, 1)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return _barred(scores, keys).softmax(-1)


def _barred(scores: Float[Tensor, "b h n m"], keys: Ragged | None) -> Float[Tensor, "b2 h n m"]:
    """The scores with -inf at padded keys."""
    return scores if keys is None else scores.masked_fill(~keys.valid[:, None, None], -torch.inf)


def _aligned(bias: Float[Tensor, "b h n m"], batch: int) -> Float[Tensor, "b2 h n m"]:
    """The bias of every row, as a slice of a tensor whose last axis is a multiple of 8, which xformers requires."""
    m = bias.shape[-1]
    return F.pad(bias, (0, -m % 8))[..., :m].expand(batch, -1, -1, -1)


def _packed(
    q: Tensor, k: Tensor, v: Tensor, keys: Ragged, xformers: bool, bias: Tensor | None = None
) -> Float[Tensor, "b n h d"]:
    """Attention with the keys of all rows packed into one row; queries attend within their block and are not padded."""
    k, v = (x.flatten(0, 1)[keys.index][None] for x in (k, v))
    packed, counts = q.flatten(0, 1)[None], [q.shape[1]] * len(q)
    if xformers:
        from xformers.ops import memory_efficient_attention
        from xformers.ops.fmha import BlockDiagonalMask

        made = memory_efficient_attention(packed, k, v, BlockDiagonalMask.from_seqlens(counts, list(keys.lengths)))
    else:
        rows = [torch.arange(len(q)).repeat_interleave(torch.tensor(n)) for n in (counts, keys.lengths)]
        mask = (rows[0][:, None] == rows[1]).to(q.device)
        if bias is not None:  # (b n, b m): the bias of a query is repeated for the keys of all rows
            of_query = bias.expand(len(q), -1, -1, -1).transpose(0, 1).flatten(1, 2)
            everywhere = of_query.repeat(1, 1, len(q))[..., keys.index]
            mask = everywhere.masked_fill(~mask, -torch.inf).to(q.dtype)
        heads_first = packed.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        made = F.scaled_dot_product_attention(heads_first[0], heads_first[1], heads_first[2], mask).transpose(1, 2)
    return made[0].unflatten(0, q.shape[:2])


def _best(q: Tensor) -> Backend:
    """The fastest backend. In a bfloat16 training step on a CPU, PyTorch's fused kernel takes 6 times as long as plain
    products with 64 tokens and 1.8 to 3 times as long with 257; beyond `PLAIN` tokens the probabilities would take too
    much memory."""
    if q.is_cuda:
        return "xformers" if xformers_installed() else "sdpa"
    return "explicit" if q.dtype == torch.bfloat16 and q.shape[1] <= PLAIN else "sdpa"
