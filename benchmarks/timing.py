"""Sides timed in turn, round after round, and how many times as fast one is: a ratio is taken within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

Times = dict[str, list[float]]  # `seconds` of the wall's clock and `cpu_seconds`, one a round


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds of it."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turn(sides: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 0) -> dict[str, Times]:
    """Every side's times, there and back; rounds of `warm_up` come first and do not count."""
    found: dict[str, Times] = {name: {"seconds": [], "cpu_seconds": []} for name in sides}
    for turn in range(warm_up + rounds):
        for name in list(sides) if turn % 2 else list(sides)[::-1]:
            wall, cpu = clocked(sides[name])
            if turn >= warm_up:
                found[name]["seconds"].append(round(wall, 4))
                found[name]["cpu_seconds"].append(round(cpu, 4))
    return found


def spread(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times as long they take, from the rounds' own ratios."""
    each = [b / a for a, b in zip(ours, theirs)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """The same as results keep it."""
    return {name: round(value, 3) for name, value in spread(ours, theirs).items()}


def as_text(spread: dict[str, float]) -> str:
    return "**{median:.2f}x** ({min:.2f} to {max:.2f})".format(**spread)
