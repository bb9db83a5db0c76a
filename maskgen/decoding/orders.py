"""Which tokens are decided first: by what the model says of them, or by their place."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

BASES = (2, 3, 5)


@cache
def halton_order(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Flat places of `grid` in the order of the Halton sequence (Besnier et al. 2025, arXiv:2503.17076, section 3.2).

    Point k = 1, 2, ... has the digits of k, mirrored at the point, in base 2, 3 and 5 as its coordinates in [0, 1)
    along the first, second and third axis; floored to the grid, places met before left out. In whole numbers, so exact.

    Raises:
        ValueError: more than three axes.
    """
    if not 1 <= len(grid) <= len(BASES):
        raise ValueError(f"order 'halton' knows grids of 1 to {len(BASES)} axes, got {grid}")
    seen: dict[int, None] = {}
    k = 0
    while len(seen) < math.prod(grid):
        k, place = k + 1, 0
        for size, base in zip(grid, BASES):
            numerator, denominator, rest = 0, 1, k
            while rest:
                rest, digit = divmod(rest, base)
                numerator, denominator = numerator * base + digit, denominator * base
            place = place * size + numerator * size // denominator
        seen.setdefault(place)
    return tuple(seen)


def raster_order(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Flat places row by row."""
    return tuple(range(math.prod(grid)))


# None: not known before the loop. ``confidence`` ranks what was drawn, ``critic`` asks another model, ``random`` draws.
ORDERS: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]] | None] = {
    "confidence": None,
    "critic": None,
    "random": None,
    "halton": halton_order,
    "raster": raster_order,
}
