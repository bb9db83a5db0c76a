"""How many tokens stay hidden after each step."""

from __future__ import annotations

import math

from maskgen.mim.ratios import gamma


def hidden_after(schedule: str, count: int, steps: int) -> list[int]:
    """Hidden tokens of one row after each of `steps` steps, from `count` at the start; the last is 0.

    ``floor(count * gamma((i + 1) / steps))``, but at least one fewer than before and at least one before the last
    step (MaskGIT's ``parallel_decode``). A row with nothing hidden stays so.
    """
    left, plan = count, []
    for i in range(steps):
        if i == steps - 1 or left == 0:
            left = 0
        else:
            left = max(1, min(left - 1, math.floor(count * gamma(schedule, (i + 1) / steps))))
        plan.append(left)
    return plan
