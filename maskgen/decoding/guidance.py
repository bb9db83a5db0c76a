"""Classifier-free guidance: its scale at each step.

The convention is ``u + s (c - u)``, where c are the logits with and u the logits without the condition, so that s = 1
is no guidance (diffusers, aMUSEd). TiTok and MaskBit write ``c + w (c - u)``, and Halton-MaskGIT writes
``(1 + w) c - w u``; both mean w = s - 1. :func:`from_extra` and :func:`to_extra` translate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from maskgen.registry import choose

# The share of the full guidance at step i of T (0 <= i < T), with the power p.
GUIDANCE_SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "constant": lambda i, steps, p: 1.0,
    "linear": lambda i, steps, p: i / max(steps - 1, 1),
    "power": lambda i, steps, p: (i / steps) ** p,  # p = 1: TiTok's and MaskBit's "linear"
    "cosine": lambda i, steps, p: (1 - math.cos((i / steps) ** p * math.pi)) / 2,  # their "(power-)cosine", and MDT's
}


def guidance_scales(scale: float, schedule: str, steps: int, power: float = 1.0) -> list[float]:
    """The guidance scale s of each step, in ``u + s (c - u)``; 1 is no guidance.

    A schedule rises from 1 towards `scale`; ``constant`` and ``linear`` reach it. A scale of at most 1 turns guidance
    off.

    Args:
        power: exponent of the schedules ``power`` and ``cosine``; above 1, guidance comes later.

    Raises:
        ValueError: the schedule is unknown, the scale is negative, or the power is not above 0.
    """
    share = choose(GUIDANCE_SCHEDULES, schedule, "guidance schedule")
    if scale < 0:
        raise ValueError(f"guidance_scale {scale} is negative; 1 is no guidance, 2 to 8 are usual")
    if not power > 0:
        raise ValueError(f"guidance_power must be above 0, got {power}; 1 is the plain schedule")
    return [1 + max(scale - 1, 0) * share(i, steps, power) for i in range(steps)]


def from_extra(weight: float) -> float:
    """The scale s = 1 + w for a weight w of ``c + w (c - u)``, where 0 is no guidance."""
    return 1 + weight


def to_extra(scale: float) -> float:
    """The weight w = s - 1 of ``c + w (c - u)`` for a scale s."""
    return scale - 1
