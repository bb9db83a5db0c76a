"""The one door to attention: xformers on CUDA where installed, PyTorch elsewhere, or explicit with probabilities."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Backend = Literal["auto", "xformers", "sdpa", "explicit"]


@cache
def xformers_installed() -> bool:
    return find_spec("xformers") is not None


def attend(
    q: Float[Tensor, "b n h d"],
    k: Float[Tensor, "b m h d"],
    v: Float[Tensor, "b m h d"],
    backend: Backend = "auto",
) -> Float[Tensor, "b n h d"]:
    """softmax(q k^T / sqrt(d)) v, every query to every key; all backends agree up to rounding.

    Raises:
        ValueError: an unknown backend.
    """
    if backend == "auto":
        backend = _best(q)
    if backend == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(q, k, v)
    if backend == "sdpa":
        heads_first = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return heads_first.transpose(1, 2)
    if backend == "explicit":
        return (attention_probabilities(q, k).to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
    raise ValueError(f"unknown attention backend {backend!r}: choose one of auto, xformers, sdpa, explicit")


def attention_probabilities(q: Float[Tensor, "b n h d"], k: Float[Tensor, "b m h d"]) -> Float[Tensor, "b h n m"]:
    """Each query's weights over the keys, rows summing to 1."""
    return (q.transpose(1, 2) * q.shape[-1] ** -0.5 @ k.permute(0, 2, 3, 1)).softmax(-1)


def _best(q: Tensor) -> Backend:
    """PyTorch's fused CPU kernel takes 5 times as long as plain products for a bfloat16 training step of 64 tokens."""
    if q.is_cuda:
        return "xformers" if xformers_installed() else "sdpa"
    return "explicit" if q.dtype == torch.bfloat16 and q.shape[1] <= 256 else "sdpa"
