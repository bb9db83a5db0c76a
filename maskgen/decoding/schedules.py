"""Numbers that are known before the loop: the hidden tokens after each step, and the temperature of each step."""

from __future__ import annotations

import math
from collections.abc import Callable

from maskgen.mim.ratios import gamma
from maskgen.registry import choose


def _maskgit(schedule: str, n: int, i: int, steps: int) -> int:
    return math.floor(n * gamma(schedule, (i + 1) / steps, n))


def _halton(schedule: str, n: int, i: int, steps: int) -> int:
    return n - max(i + 1, int((1 - gamma(schedule, (i + 1) / steps, n)) * n))


def _halton_confidence(schedule: str, n: int, i: int, steps: int) -> int:
    return n - max(i + 1, int((1 - gamma(schedule, i / max(steps - 1, 1), n)) * n))


def _halton_v1(schedule: str, n: int, i: int, steps: int) -> int:
    share = [gamma(schedule, 1 - k / max(steps - 1, 1), n) for k in range(steps)]
    return n - sum(max(1, round(x / sum(share) * n)) for x in share[: i + 1])


# How many of n tokens stay hidden after step i of T, before the bounds of `hidden_after`. Progress r is (i + 1) / T.
COUNTS: dict[str, Callable[[str, int, int, int], int]] = {
    "maskgit": _maskgit,  # floor(n gamma(r)): MaskGIT, MAGE, aMUSEd, MaskBit, TiTok
    "halton": _halton,  # max(i + 1, floor(n (1 - gamma(r)))) are decided: Halton-MaskGIT's Halton sampler
    "halton_confidence": _halton_confidence,  # the same at r = i / (T - 1): Halton-MaskGIT's confidence sampler
    "halton_v1": _halton_v1,  # each step decides a share proportional to gamma(1 - i / (T - 1)): Halton-MaskGIT 1.0
}


def hidden_after(schedule: str, count: int, steps: int, counting: str = "maskgit") -> list[int]:
    """The number of hidden tokens of one row after each of `steps` steps; the last number is 0.

    The rule `counting` of :data:`COUNTS` gives the number. It is bounded so that each step decides at least one token,
    and at least one token is left for the last step (MaskGIT's ``parallel_decode``).

    Args:
        schedule: a name in :data:`maskgen.mim.ratios.SCHEDULES`.
        count: number of hidden tokens at the start; 0 gives zeros.

    Raises:
        ValueError: the schedule or the rule is unknown.
    """
    rule = choose(COUNTS, counting, "counting")
    left, plan = count, []
    for i in range(steps):
        last = i == steps - 1 or left == 0
        left = 0 if last else max(1, min(left - 1, rule(schedule, count, i, steps)))
        plan.append(left)
    return plan


# The weight of the start at step i of T; the end has the rest.
ANNEALS: dict[str, Callable[[int, int], float]] = {
    "constant": lambda i, steps: 1.0,
    "linear": lambda i, steps: 1 - (i + 1) / steps,  # the last step is at the end: MaskGIT, MAGE, MaskBit, TiTok
    "linspace": lambda i, steps: (
        1 - i / max(steps - 1, 1)
    ),  # the first step is at the start: aMUSEd, Halton-MaskGIT 1.0
    "reciprocal": lambda i, steps: 1 - i / max(steps - 1, 1),  # linspace of 1 / temperature: Halton-MaskGIT
}

Temperature = float | tuple[float, float] | list[float]


def annealed(temperature: Temperature, anneal: str, steps: int) -> list[float]:
    """The temperature of each step. Each one is computed from the given values, so annealing does not compound.

    Args:
        temperature: the start, with end 0; or a pair (start, end). ``constant`` stays at the start.
        anneal: a name in :data:`ANNEALS`.

    Raises:
        ValueError: a temperature is negative, there are not one or two of them, the name is unknown, or ``reciprocal``
            is given 0.
    """
    share = choose(ANNEALS, anneal, "annealing")
    pair = [float(temperature), 0.0] if isinstance(temperature, (int, float)) else [float(t) for t in temperature]
    if len(pair) != 2 or not all(math.isfinite(t) and t >= 0 for t in pair):
        raise ValueError(f"give a temperature at least 0, or a pair (start, end) of them, got {temperature}")
    start, end = pair
    if anneal == "reciprocal":
        if not (start and end):
            raise ValueError(f"annealing 'reciprocal' needs a pair of temperatures above 0, got {temperature}")
        return [1 / (1 / end + (1 / start - 1 / end) * share(i, steps)) for i in range(steps)]
    return [end + (start - end) * share(i, steps) for i in range(steps)]
