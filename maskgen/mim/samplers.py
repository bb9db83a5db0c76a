"""Which tokens to hide. Most samplers are *score, then rank*: the lowest scores are hidden."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor


def hide_lowest(scores: Float[Tensor, "b n"], counts: Int[Tensor, "b"]) -> Bool[Tensor, "b n"]:
    """Exactly ``counts[i]`` True in row i, at the lowest scores; ties go to the earlier token."""
    ranks = scores.argsort(dim=-1, stable=True).argsort(dim=-1)
    return ranks < counts[:, None]


def hidden_counts(ratio: Float[Tensor, "b"], n: int) -> Int[Tensor, "b"]:
    """ceil(ratio * n), at least 1 (MAGE, MaskGIT: a row that hides nothing teaches nothing)."""
    return (ratio * n).ceil().clamp(1, n).long()


class RandomSampler:
    """Every set of the right size equally likely."""

    def __call__(
        self,
        ratio: Float[Tensor, "b"],
        grid: tuple[int, ...],
        scores: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Bool[Tensor, "b *grid"]:
        """True = hidden; on the CPU, where `ratio` is. `scores` is for samplers that look at the picture."""
        n = math.prod(grid)
        mask = hide_lowest(torch.rand(len(ratio), n, generator=generator), hidden_counts(ratio, n))
        return mask.view(-1, *grid)


SAMPLERS = {"random": RandomSampler}
