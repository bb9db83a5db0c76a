"""Times several sides in turn, and compares them by ratios of times from the same round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Times = dict[str, list[float]]  # `seconds` of the wall's clock and `cpu_seconds`, one a round


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """The wall and processor seconds of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turn(sides: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 0) -> dict[str, Times]:
    """The times of every side, in alternating order; the first `warm_up` rounds do not count."""
    found: dict[str, Times] = {name: {"seconds": [], "cpu_seconds": []} for name in sides}
    for turn in range(warm_up + rounds):
        for name in list(sides) if turn % 2 else list(sides)[::-1]:
            wall, cpu = clocked(sides[name])
            if turn >= warm_up:
                found[name]["seconds"].append(round(wall, 4))
                found[name]["cpu_seconds"].append(round(cpu, 4))
    return found


def spread(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times as long `theirs` takes as `ours`: the median, smallest and largest ratio of the rounds."""
    each = [b / a for a, b in zip(ours, theirs)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """:func:`spread`, rounded for the results."""
    return {name: round(value, 3) for name, value in spread(ours, theirs).items()}


def as_text(spread: dict[str, float]) -> str:
    return "**{median:.2f}x** ({min:.2f} to {max:.2f})".format(**spread)
