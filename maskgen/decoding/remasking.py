"""ReMDM: tokens of earlier steps are hidden again and sampled again (Wang et al. 2025, arXiv:2503.00307)."""

from __future__ import annotations

import math
from collections.abc import Callable

from maskgen.registry import choose

# The expected number of tokens hidden again, from eta, sigma_max and the number of decided tokens.
REMASKS: dict[str, Callable[[float, float, int], float]] = {
    "none": lambda eta, sigma, decided: 0.0,
    "cap": lambda eta, sigma, decided: min(eta, sigma) * decided,
    "rescale": lambda eta, sigma, decided: eta * sigma * decided,
    "confidence": lambda eta, sigma, decided: (
        eta * sigma
    ),  # each token has probability sigma softmax(-psi); they sum to sigma
}


def remasked(variant: str, eta: float, plan: list[int], count: int) -> list[int]:
    """How many decided tokens of one row are hidden again at each step. The step decides as many more in exchange.

    In the paper a decided token is hidden again with probability sigma <= sigma_max = min(1, (1 - alpha_s) / alpha_t),
    where alpha_t and alpha_s are the shares of decided tokens before and after the step. The variants are ``cap``
    min(eta, sigma_max), ``rescale`` eta sigma_max, and ``confidence`` eta sigma_max softmax(-psi), where psi is the
    probability with which the token was sampled. Here the expected numbers are accumulated and used in whole tokens, so
    that the counts of the schedule hold and no shape is random. Which tokens are hidden is random, by their
    probabilities.

    Args:
        plan: number of hidden tokens after each step, from :func:`maskgen.decoding.schedules.hidden_after`.
        count: number of hidden tokens at the start.
        eta: in [0, 1]; 1 is the most that ``rescale`` allows, and the paper's value for ``confidence``.

    Raises:
        ValueError: the variant is unknown, or eta is outside [0, 1].
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
