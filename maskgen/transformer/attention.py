"""The one door to attention: xformers on CUDA where installed, PyTorch elsewhere, or explicit with probabilities."""

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

PLAIN = 640  # 24 x 24 tokens, registers beside them
Backend = Literal["auto", "xformers", "sdpa", "explicit", "packed"]


@dataclass(frozen=True)
class Ragged:
    """Rows with different numbers of tokens, each row's at its front, padded to the longest.

    lengths: tokens of each row, known to Python, so that packing needs no synchronisation.
    valid: bool (b, m), which of the padded tokens are there; index: int64 (total,), their places among b * m.
    """

    lengths: tuple[int, ...]
    valid: Bool[Tensor, "b m"]
    index: Int[Tensor, "total"]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | None = None) -> Ragged:
        """From the number of tokens of each row."""
        counts = torch.tensor(lengths)
        valid = torch.arange(int(counts.max())) < counts[:, None]
        return cls(tuple(lengths), valid.to(device), valid.flatten().nonzero()[:, 0].to(device))

    def after(self, prefix: int) -> Ragged:
        """With `prefix` more tokens at the front of every row."""
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
    """softmax(q k^T / sqrt(d) + bias) v, every query to every key of its row; all backends agree up to rounding.

    Args:
        keys: where rows differ in the number of keys; what a padded query gives has no meaning.
        bias: of the scores. With one, ``xformers`` pads rows that differ in length, as its packing takes no bias.
        backend: ``packed`` does on any device what ``xformers`` does with such rows on CUDA: all tokens in one row,
            attending within blocks. It is quadratic in all of them, and here to be compared with.
        causal: query i sees keys 0 to i; as many queries as keys, rows of one length.

    Raises:
        ValueError: an unknown backend, or `causal` where rows differ in length or with a bias.
    """
    if causal:
        if keys is not None or bias is not None or backend == "packed":
            raise ValueError("causal attention takes rows of one length, no bias, and no backend 'packed'")
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
    """Each query's weights over the keys, rows summing to 1."""
    scores = q.transpose(1, 2) * q.shape[-1] ** -0.5 @ k.permute(0, 2, 3, 1)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return _barred(scores, keys).softmax(-1)


def _barred(scores: Float[Tensor, "b h n m"], keys: Ragged | None) -> Float[Tensor, "b2 h n m"]:
    """-inf where no key is."""
    return scores if keys is None else scores.masked_fill(~keys.valid[:, None, None], -torch.inf)


def _aligned(bias: Float[Tensor, "b h n m"], batch: int) -> Float[Tensor, "b2 h n m"]:
    """For every row, and cut from a tensor whose last axis is a multiple of 8 long, as xformers' kernels want it."""
    m = bias.shape[-1]
    return F.pad(bias, (0, -m % 8))[..., :m].expand(batch, -1, -1, -1)


def _packed(
    q: Tensor, k: Tensor, v: Tensor, keys: Ragged, xformers: bool, bias: Tensor | None = None
) -> Float[Tensor, "b n h d"]:
    """All rows' keys in one row, queries attending to their own block; all queries of a row are there."""
    k, v = (x.flatten(0, 1)[keys.index][None] for x in (k, v))
    packed, counts = q.flatten(0, 1)[None], [q.shape[1]] * len(q)
    if xformers:
        from xformers.ops import memory_efficient_attention
        from xformers.ops.fmha import BlockDiagonalMask

        made = memory_efficient_attention(packed, k, v, BlockDiagonalMask.from_seqlens(counts, list(keys.lengths)))
    else:
        rows = [torch.arange(len(q)).repeat_interleave(torch.tensor(n)) for n in (counts, keys.lengths)]
        mask = (rows[0][:, None] == rows[1]).to(q.device)
        if bias is not None:  # (b n, b m) of which the blocks count: a query's bias at all rows' keys alike
            of_query = bias.expand(len(q), -1, -1, -1).transpose(0, 1).flatten(1, 2)
            everywhere = of_query.repeat(1, 1, len(q))[..., keys.index]
            mask = everywhere.masked_fill(~mask, -torch.inf).to(q.dtype)
        heads_first = packed.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        made = F.scaled_dot_product_attention(heads_first[0], heads_first[1], heads_first[2], mask).transpose(1, 2)
    return made[0].unflatten(0, q.shape[:2])


def _best(q: Tensor) -> Backend:
    """PyTorch's fused CPU kernel takes 6 times as long as plain products for a bfloat16 training step of 64 tokens, 1.8
    to 3 times of 257; beyond `PLAIN` tokens the probabilities would take too much memory."""
    if q.is_cuda:
        return "xformers" if xformers_installed() else "sdpa"
    return "explicit" if q.dtype == torch.bfloat16 and q.shape[1] <= PLAIN else "sdpa"
