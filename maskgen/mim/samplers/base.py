"""What all mask samplers share: counts, ranking, and the checks of what they are given."""

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
    """Exactly ``counts[i]`` True in row i, at the lowest scores; ties go to the earlier token."""
    ranks = scores.argsort(dim=-1, stable=True).argsort(dim=-1)
    return ranks < counts[:, None]


def hidden_counts(ratio: Ratio, n: int, rounding: Rounding = "ceil", least: int = 1) -> Int[Tensor, "b"]:
    """ratio * n as a whole number in [least, n].

    ``ceil`` is MAE (which keeps int(n (1 - ratio)), by float64's error 9 instead of 10 of 100 at 0.9), SimMIM, MaskGIT
    and MAGE; ``floor`` is VideoMAE, iBOT, AttMask; ``round`` is SparK. At least 1 by default: a row that hides nothing
    teaches nothing.
    """
    exact = ratio.double() * n
    whole = exact.round()
    # 0.6 of 25 is 15, as in the peers' float64; float32 makes it 15.000001 and would hide 16.
    exact = torch.where((exact - whole).abs() <= 1e-7 * n, whole, exact)
    return choose(ROUNDINGS, rounding, "rounding")(exact).clamp(least, n).long()


def guide(scores: Tensor | None, rows: int, n: int, what: str) -> Float[Tensor, "b n"]:
    """`scores` as float32 (rows, n) on the CPU, or what is wrong with them; `what` says what they should be.

    Raises:
        ValueError: no scores, of another size, or not all finite.
    """
    if scores is None:
        raise ValueError(f"this sampler needs scores: {what}, ({rows}, {n})")
    found = scores.detach().flatten(1).to("cpu", torch.float32)
    if found.shape != (rows, n):
        raise ValueError(f"scores ({what}) must be ({rows}, {n}), got {tuple(scores.shape)}; leave the class token out")
    if not found.isfinite().all():
        raise ValueError(f"scores ({what}) hold NaN or infinity; compute them in float32")
    return found


class Sampler:
    """One way to choose the tokens to hide; a subclass gives `draw`, the numbers of `axes` it can work on, and its
    `guide`: what its scores are, a teacher's ``attention`` or predicted ``losses``."""

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
        """Bool (b, *grid), True = hidden; on the CPU, where `ratio` is.

        Args:
            ratio: the share to hide, a row each, in [0, 1].
            grid: (n,), (h, w) or (t, h, w), for some also with the codes of a place as a last axis.
            scores: (b, n) or (b, *grid), for the samplers that look at the image; the others ignore them.
            generator: CPU generator of all random choices; None uses torch's default.
            progress: the share of the training that is done, in [0, 1]; only `loss` changes with it.

        Raises:
            ValueError: a grid, ratio, score or progress that this sampler cannot work with.
        """
        if len(grid) not in self.axes or not all(grid):
            kinds = " or ".join(("(n,)", "(h, w)", "(t, h, w)", "(t, h, w, groups)")[k - 1] for k in self.axes)
            raise ValueError(f"{type(self).__name__} takes grids {kinds}, got {grid}")
        if not ((ratio >= 0) & (ratio <= 1)).all():
            raise ValueError(f"mask ratios must lie in [0, 1], got {ratio.tolist()}")
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1] (steps done / steps in all), got {progress}")
        return self.draw(ratio, grid, scores, generator, progress).reshape(len(ratio), *grid)

    def draw(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        """The mask as (b, *grid) or (b, n); all arguments have been checked."""
        raise NotImplementedError


class RandomSampler(Sampler):
    """Every set of the right size equally likely (MAE, MaskGIT).

    Args:
        rounding: how the number of hidden tokens is rounded, see :func:`hidden_counts`.
        least: 0 lets a row of ratio 0 hide nothing (iBOT).
    """

    axes = (1, 2, 3, 4)

    def __init__(self, rounding: Rounding = "ceil", least: Least = 1):
        choose(ROUNDINGS, rounding, "rounding")
        self.rounding, self.least = rounding, least

    def draw(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        n = math.prod(grid)
        counts = hidden_counts(ratio, n, self.rounding, self.least)
        return hide_lowest(torch.rand(len(ratio), n, generator=generator), counts)
