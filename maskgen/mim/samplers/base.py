"""What all mask samplers share: counts, ranking, and checks of their arguments."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from maskgen.registry import choose

Ratio = Float[Tensor, "b"]
Grid = tuple[int, ...]
Mask = Bool[Tensor, "b *grid"]
Rounding = Literal["ceil", "floor", "round"]
Least = Literal[0, 1]

ROUNDINGS = {"ceil": torch.ceil, "floor": torch.floor, "round": torch.round}


def hide_lowest(scores: Float[Tensor, "b n"], counts: Int[Tensor, "b"]) -> Bool[Tensor, "b n"]:
    """Exactly ``counts[i]`` entries of row i are True, at the lowest scores; of equal scores the earlier one wins."""
    ranks = scores.argsort(dim=-1, stable=True).argsort(dim=-1)
    return ranks < counts[:, None]


def hidden_counts(ratio: Ratio, n: int, rounding: Rounding = "ceil", least: int = 1) -> Int[Tensor, "b"]:
    """ratio * n, rounded to an integer in [least, n].

    ``ceil`` is the rounding of SimMIM, MaskGIT, MAGE and MAE (which keeps int(n (1 - ratio)); at 0.9 of 100 tokens the
    float64 error makes it keep 9 instead of 10), ``floor`` that of VideoMAE, iBOT and AttMask, ``round`` that of SparK.
    At least 1 token is hidden by default, because a row without hidden tokens has no loss.
    """
    exact = ratio.double() * n
    whole = exact.round()
    # 0.6 of 25 is 15, as in the float64 of the published code; in float32 it is 15.000001, which would hide 16.
    exact = torch.where((exact - whole).abs() <= 1e-7 * n, whole, exact)
    return choose(ROUNDINGS, rounding, "rounding")(exact).clamp(least, n).long()


def guide(scores: Tensor | None, rows: int, n: int, what: str) -> Float[Tensor, "b n"]:
    """`scores` as float32 (rows, n) on the CPU. `what` describes them in error messages.

    Raises:
        ValueError: the scores are None, of another size, or not finite.
    """
    if scores is None:
        raise ValueError(f"this sampler needs scores: give the {what}, ({rows}, {n})")
    found = scores.detach().flatten(1).to("cpu", torch.float32)
    if found.shape != (rows, n):
        raise ValueError(f"scores ({what}) must be ({rows}, {n}), got {tuple(scores.shape)}; leave the class token out")
    if not found.isfinite().all():
        raise ValueError(f"scores ({what}) hold NaN or infinity; compute them in float32")
    return found


class Sampler:
    """Base class of samplers, which choose the tokens to hide.

    A subclass defines :meth:`select` and the allowed numbers of grid `axes`. A sampler that needs scores sets `guide`:
    ``attention`` of a teacher, or predicted ``losses``.
    """

    axes: tuple[int, ...] = (1, 2, 3)
    guide: str | None = None

    def __call__(
        self,
        ratio: Ratio,
        grid: Grid,
        scores: Tensor | None = None,
        generator: Generator | None = None,
        progress: float = 0.0,
    ) -> Mask:
        """The mask, bool (b, *grid) on the CPU, True = hidden.

        Args:
            ratio: float (b,) in [0, 1] on the CPU, the share to hide in each row.
            grid: (n,), (h, w) or (t, h, w); some samplers also take the codes of a position as the last axis.
            scores: (b, n) or (b, *grid), for samplers with a `guide`; the others ignore them.
            generator: CPU generator of all random choices; None uses torch's default.
            progress: of the training, in [0, 1]; only `loss` depends on it.

        Raises:
            ValueError: the sampler cannot use this grid, ratio, score or progress.
        """
        if len(grid) not in self.axes or not all(grid):
            kinds = " or ".join(("(n,)", "(h, w)", "(t, h, w)", "(t, h, w, codes)")[k - 1] for k in self.axes)
            raise ValueError(f"{type(self).__name__} takes grids {kinds}, got {grid}")
        if not ((ratio >= 0) & (ratio <= 1)).all():
            raise ValueError(f"mask ratios must lie in [0, 1], got {ratio.tolist()}")
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1] (steps done / all steps), got {progress}")
        return self.select(ratio, grid, scores, generator, progress).reshape(len(ratio), *grid)

    def select(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        """The mask as (b, *grid) or (b, n). The arguments have been checked."""
        raise NotImplementedError


class RandomSampler(Sampler):
    """Uniformly random tokens (MAE, MaskGIT).

    Args:
        rounding: how the number of hidden tokens is rounded, see :func:`hidden_counts`.
        least: 0 allows rows without hidden tokens (iBOT).
    """

    axes = (1, 2, 3, 4)

    def __init__(self, rounding: Rounding = "ceil", least: Least = 1):
        choose(ROUNDINGS, rounding, "rounding")
        self.rounding, self.least = rounding, least

    def select(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        n = math.prod(grid)
        counts = hidden_counts(ratio, n, self.rounding, self.least)
        return hide_lowest(torch.rand(len(ratio), n, generator=generator), counts)
