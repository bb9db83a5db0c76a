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
        backend = "xformers" if q.is_cuda and xformers_installed() else "sdpa"
    if backend == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(q, k, v)
    if backend == "sdpa":
        heads_first = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return heads_first.transpose(1, 2)
    if backend == "explicit":
        return torch.einsum("bhnm,bmhd->bnhd", attention_probabilities(q, k).to(v.dtype), v)
    raise ValueError(f"unknown attention backend {backend!r}: choose one of auto, xformers, sdpa, explicit")


def attention_probabilities(q: Float[Tensor, "b n h d"], k: Float[Tensor, "b m h d"]) -> Float[Tensor, "b h n m"]:
    """Each query's weights over the keys, float32, rows summing to 1."""
    scores = torch.einsum("bnhd,bmhd->bhnm", q.float(), k.float()) * q.shape[-1] ** -0.5
    return scores.softmax(-1)
