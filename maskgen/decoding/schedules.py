"""What Python knows before the loop: how many tokens stay hidden after each step, and each step's temperature."""

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


# Tokens of n that stay hidden after step i of T, before what `hidden_after` sees to. Progress r is (i + 1) / T.
COUNTS: dict[str, Callable[[str, int, int, int], int]] = {
    "maskgit": _maskgit,  # floor(n gamma(r)): MaskGIT, MAGE, aMUSEd, MaskBit, TiTok
    "halton": _halton,  # shown: max(i + 1, floor(n (1 - gamma(r)))): Halton-MaskGIT's own sampler
    "halton_confidence": _halton_confidence,  # the same at r = i / (T - 1): its confidence sampler
    "halton_v1": _halton_v1,  # shown in each step in proportion to gamma(1 - i / (T - 1)): its release 1.0
}


def hidden_after(schedule: str, count: int, steps: int, counting: str = "maskgit") -> list[int]:
    """Hidden tokens of one row after each of `steps` steps, from `count` at the start; the last is 0.

    By the rule `counting` of :data:`COUNTS`, but at least one fewer than before and at least one before the last
    step (MaskGIT's ``parallel_decode``). A row with nothing hidden stays so.

    Raises:
        ValueError: unknown schedule or rule.
    """
    rule = choose(COUNTS, counting, "counting")
    left, plan = count, []
    for i in range(steps):
        last = i == steps - 1 or left == 0
        left = 0 if last else max(1, min(left - 1, rule(schedule, count, i, steps)))
        plan.append(left)
    return plan


# Share of the way back from the end to the start at step i of T.
ANNEALS: dict[str, Callable[[int, int], float]] = {
    "constant": lambda i, steps: 1.0,
    "linear": lambda i, steps: 1 - (i + 1) / steps,  # the end at the last step: MaskGIT, MAGE, MaskBit, TiTok
    "linspace": lambda i, steps: 1 - i / max(steps - 1, 1),  # from the start itself: aMUSEd, Halton-MaskGIT 1.0
    "reciprocal": lambda i, steps: 1 - i / max(steps - 1, 1),  # the same of 1 / temperature: Halton-MaskGIT
}

Temperature = float | tuple[float, float] | list[float]


def annealed(temperature: Temperature, anneal: str, steps: int) -> list[float]:
    """The temperature of each step, always from the first value given: nothing compounds.

    Args:
        temperature: from a start to 0, or a pair (start, end); ``constant`` stays at the start.
        anneal: name in :data:`ANNEALS`.

    Raises:
        ValueError: a negative temperature, not one or two of them, an unknown name, or ``reciprocal`` with 0.
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
