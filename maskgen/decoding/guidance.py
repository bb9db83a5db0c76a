"""Classifier-free guidance: how strong at which step.

One convention: ``u + s (c - u)`` with the logits c with and u without the condition, so s = 1 is no guidance
(diffusers, aMUSEd). Others write ``c + s (c - u)`` (TiTok, MaskBit) or ``(1 + w) c - w u`` (Halton-MaskGIT), which are
the same thing, one less: :func:`from_extra` and :func:`to_extra` translate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from maskgen.registry import choose

# Share of the full guidance at step i of T (0 <= i < T), given the power p.
GUIDANCE_SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "constant": lambda i, steps, p: 1.0,
    "linear": lambda i, steps, p: i / max(steps - 1, 1),
    "power": lambda i, steps, p: (i / steps) ** p,  # p = 1: TiTok's and MaskBit's "linear"
    "cosine": lambda i, steps, p: (1 - math.cos((i / steps) ** p * math.pi)) / 2,  # their "(power-)cosine", and MDT's
}


def guidance_scales(scale: float, schedule: str, steps: int, power: float = 1.0) -> list[float]:
    """The guidance scale of each step, in the convention of diffusers: ``u + s (c - u)``, so 1 is no guidance.

    The schedules go from 1 towards `scale`, which ``constant`` and ``linear`` reach. A scale of at most 1 turns
    guidance off.

    Args:
        power: of ``power`` and ``cosine``; above 1 guidance comes later.

    Raises:
        ValueError: unknown schedule, a negative scale, or a power that is not above 0.
    """
    share = choose(GUIDANCE_SCHEDULES, schedule, "guidance schedule")
    if scale < 0:
        raise ValueError(f"guidance_scale {scale} is negative; 1 is no guidance, 2 to 8 are usual")
    if not power > 0:
        raise ValueError(f"guidance_power must be above 0, got {power}; 1 is the plain schedule")
    return [1 + max(scale - 1, 0) * share(i, steps, power) for i in range(steps)]


def from_extra(weight: float) -> float:
    """Our scale for a number w of ``c + w (c - u)`` = ``(1 + w) c - w u``, where 0 is no guidance."""
    return 1 + weight


def to_extra(scale: float) -> float:
    """The number w of ``c + w (c - u)`` for our scale."""
    return scale - 1
