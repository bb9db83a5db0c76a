"""Masks that hide neighbouring tokens together: units of fixed size, and the rectangles of BEiT."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from jaxtyping import Bool
from torch import Generator, Tensor

from maskgen.mim.samplers.base import Grid, Least, RandomSampler, Ratio, Rounding, Sampler, hidden_counts


class UnitSampler(Sampler):
    """Random mask units of several tokens each, so that a mask can be coarser than the patches.

    SimMIM (arXiv:2111.09886, section 3.2) and SparK hide units of 32 pixels; the units of ConvMAE and Hiera are one
    token at their last stage. The number of hidden *units* is exact.

    Args:
        unit: tokens of a unit along all axes, or one number per axis (``[1, 2, 2]`` for Hiera's video units).
        rounding: ``ceil`` in SimMIM, ConvMAE and Hiera, ``round`` in SparK.
        least: 0 allows rows without hidden tokens.

    Raises:
        ValueError: a side is below 1; or, when called, the units do not tile the grid.
    """

    def __init__(self, unit: int | tuple[int, ...] = 2, rounding: Rounding = "ceil", least: Least = 1):
        if any(side < 1 for side in ([unit] if isinstance(unit, int) else unit)):
            raise ValueError(f"unit is {unit}; give 1 token or more along each axis")
        self.unit, self.random = unit, RandomSampler(rounding, least)

    def select(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        unit = (self.unit,) * len(grid) if isinstance(self.unit, int) else tuple(self.unit)
        if len(unit) != len(grid) or any(size % side for size, side in zip(grid, unit)):
            raise ValueError(f"units of {unit} tokens do not tile the grid {grid}; each must divide its axis")
        coarse = tuple(size // side for size, side in zip(grid, unit))
        mask = self.random(ratio, coarse, generator=generator)
        for axis, side in enumerate(unit, start=1):
            mask = mask.repeat_interleave(side, dim=axis)
        return mask


class BlockSampler(Sampler):
    """Random rectangles are hidden until the count is reached (BEiT, arXiv:2106.08254, section 2.3, algorithm 1).

    A row never hides more than its count, and hides fewer tokens if ten tries in a row find no rectangle that fits.

    Args:
        min_block: smallest sampled area in tokens; None is (min(h, w) // 3)^2, the rule of iBOT, which gives BEiT's 16
            on a 14 x 14 grid. Smaller blocks occur if fewer tokens are left to hide.
        aspect: the ratio of height to width is log-uniform on [aspect, 1 / aspect].
        exact: hide random tokens if the rectangles do not reach the count, so that all rows hide equally many (DINOv2).
        rounding: with ``floor`` a row never hides more than its ratio (BEiT with 75 / 196, iBOT).
        least: 0 allows rows without hidden tokens (iBOT).

    Raises:
        ValueError: `min_block` or `aspect` is out of range; or, when called, an axis has fewer than 2 tokens.
    """

    axes = (2,)

    def __init__(
        self,
        min_block: int | None = None,
        aspect: float = 0.3,
        exact: bool = False,
        rounding: Rounding = "floor",
        least: Least = 1,
    ):
        if min_block is not None and min_block < 1:
            raise ValueError(f"min_block is {min_block}; give 1 or more tokens")
        if not 0 < aspect <= 1:
            raise ValueError(
                f"aspect is {aspect}; it must lie in (0, 1], as blocks have ratios from aspect to 1 / aspect"
            )
        self.min_block, self.aspect, self.exact, self.rounding, self.least = min_block, aspect, exact, rounding, least

    def select(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        height, width = grid
        if min(grid) < 2:
            raise ValueError(f"sampler block needs 2 tokens or more along each axis, got the grid {grid}")
        smallest = self.min_block or max(1, (min(grid) // 3) ** 2)
        # Python's generator, seeded from torch's: it samples single numbers 10 times as fast.
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        masks = []
        for count in hidden_counts(ratio, math.prod(grid), self.rounding, self.least).tolist():
            mask = block_mask(count, height, width, rng, smallest, self.aspect)
            missing = (count if self.exact else min(count, self.least)) - int(mask.sum())
            if missing > 0:
                mask.flat[rng.sample(np.flatnonzero(~mask).tolist(), missing)] = True
            masks.append(mask)
        return torch.from_numpy(np.stack(masks))


def block_mask(count: int, height: int, width: int, rng: random.Random, smallest: int, aspect: float) -> np.ndarray:
    """A union of rectangles as bool (height, width), with at most `count` True.

    Random numbers are used in the order of BEiT's code, so a generator in the same state gives the same mask.
    """
    mask = np.zeros((height, width), dtype=bool)
    while count > 0:
        added = _add_block(mask, count, rng, smallest, aspect)
        if not added:
            break
        count -= added
    return mask


def _add_block(mask: np.ndarray, most: int, rng: random.Random, smallest: int, aspect: float) -> int:
    """Hides a rectangle with 1 to `most` newly hidden tokens. Returns their number, or 0 if ten tries fail."""
    height, width = mask.shape
    for _ in range(10):
        area = rng.uniform(smallest, most)
        stretch = math.exp(rng.uniform(math.log(aspect), -math.log(aspect)))
        h, w = round(math.sqrt(area * stretch)), round(math.sqrt(area / stretch))
        if h >= height or w >= width:  # as in BEiT, no block spans a whole axis
            continue
        top, left = rng.randint(0, height - h), rng.randint(0, width - w)
        block = mask[top : top + h, left : left + w]
        new = h * w - int(block.sum())
        if 0 < new <= most:
            block[:] = True
            return new
    return 0
