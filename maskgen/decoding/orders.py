"""Orders: which tokens are decided first, by their confidence or by their position."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

BASES = (2, 3, 5)


@cache
def halton_order(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Flat positions of `grid` in Halton order (Besnier et al. 2025, arXiv:2503.17076, section 3.2).

    The coordinates of point k = 1, 2, ... in [0, 1) are the digits of k in base 2, 3 and 5, mirrored at the point, for
    the first, second and third axis. They are floored to the grid, and repeated positions are dropped. The arithmetic
    is in integers, so it is exact.

    Raises:
        ValueError: the grid has more than three axes.
    """
    if not 1 <= len(grid) <= len(BASES):
        raise ValueError(f"order 'halton' knows grids of 1 to {len(BASES)} axes, got {grid}")
    seen: dict[int, None] = {}
    k = 0
    while len(seen) < math.prod(grid):
        k, position = k + 1, 0
        for size, base in zip(grid, BASES):
            numerator, denominator, rest = 0, 1, k
            while rest:
                rest, digit = divmod(rest, base)
                numerator, denominator = numerator * base + digit, denominator * base
            position = position * size + numerator * size // denominator
        seen.setdefault(position)
    return tuple(seen)


def raster_order(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Flat positions row by row."""
    return tuple(range(math.prod(grid)))


# None: the order is not known before the loop. ``confidence`` ranks sampled tokens, ``critic`` asks another model,
# ``random`` is random.
ORDERS: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]] | None] = {
    "confidence": None,
    "critic": None,
    "random": None,
    "halton": halton_order,
    "raster": raster_order,
}
