"""ReMDM: tokens decided in earlier steps are hidden again and decided anew (Wang et al. 2025, arXiv:2503.00307)."""

from __future__ import annotations

import math
from collections.abc import Callable

from maskgen.registry import choose

# Expected number hidden again, of eta, sigma_max and the number decided so far.
REMASKS: dict[str, Callable[[float, float, int], float]] = {
    "none": lambda eta, sigma, decided: 0.0,
    "cap": lambda eta, sigma, decided: min(eta, sigma) * decided,
    "rescale": lambda eta, sigma, decided: eta * sigma * decided,
    "confidence": lambda eta, sigma, decided: eta * sigma,  # a token's share is softmax(-psi): together sigma
}


def remasked(variant: str, eta: float, plan: list[int], count: int) -> list[int]:
    """How many tokens of one row each step hides again, as many beyond the schedule's being decided in their stead.

    In the paper a decided token is hidden again with probability sigma <= sigma_max = min(1, (1 - alpha_s) / alpha_t),
    alpha_t and alpha_s being the shares decided before and after the step: ``cap`` min(eta, sigma_max), ``rescale``
    eta sigma_max, ``confidence`` eta sigma_max softmax(-psi) with psi the probability a token was drawn with. Here the
    expected numbers are run up and paid out in whole tokens, so that the schedule's counts hold and no shape depends
    on chance; which tokens they are is drawn, each with its probability.

    Args:
        plan: hidden after each step, of :func:`maskgen.decoding.schedules.hidden_after`; count: at the start.
        eta: in [0, 1]; 1 in ``rescale`` is all that may be, in ``confidence`` the paper's.

    Raises:
        ValueError: unknown variant, or eta outside [0, 1].
    """
    expected = choose(REMASKS, variant, "remasking")
    if not 0 <= eta <= 1:
        raise ValueError(f"remask_eta must lie in [0, 1], got {eta}")
    owed, paid, left, numbers = 0.0, 0, count, []
    for after in plan:
        decided = count - left
        if decided:
            owed += expected(eta, min(1.0, after / decided), decided)
        number = min(math.floor(owed + 1e-9) - paid, decided, after)
        paid, left = paid + number, after
        numbers.append(number)
    return numbers
