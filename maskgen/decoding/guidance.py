"""Classifier-free guidance: how strong at which step."""

from __future__ import annotations

from collections.abc import Callable

from maskgen.parts import choose

# Share of the full guidance at step i of T (0 <= i < T).
GUIDANCE_SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda i, steps: 1.0,
    "linear": lambda i, steps: i / max(steps - 1, 1),
}


def guidance_scales(scale: float, schedule: str, steps: int) -> list[float]:
    """The guidance scale of each step, in the convention of diffusers: ``u + s (c - u)``, so 1 is no guidance.

    The schedules go from 1 to `scale`. A scale of at most 1 turns guidance off.

    Raises:
        ValueError: unknown schedule, or a negative scale.
    """
    share = choose(GUIDANCE_SCHEDULES, schedule, "guidance schedule")
    if scale < 0:
        raise ValueError(f"guidance_scale {scale} is negative; 1 is no guidance, 2 to 8 are usual")
    return [1 + max(scale - 1, 0) * share(i, steps) for i in range(steps)]
