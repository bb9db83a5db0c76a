"""Actions that bring a predicted video to a goal: model-predictive control by the cross-entropy method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

Cost = Callable[[Tensor], Tensor]


def cross_entropy_plan(
    cost: Cost,
    low: Float[Tensor, "h a"],
    high: Float[Tensor, "h a"],
    samples: int = 64,
    elites: int = 8,
    iterations: int = 3,
    generator: Generator | None = None,
) -> tuple[Float[Tensor, "h a"], float]:
    """The cheapest actions met, and their cost (visual foresight, Ebert et al. 2018, arXiv:1812.00568).

    The first round draws evenly from the box, each further one from a Gaussian with the mean and the deviation of the
    `elites` cheapest of the round before, clipped to the box. One iteration is random shooting.

    Args:
        cost: ``actions (samples, h, a) -> costs (samples,)``, of all candidates at once: a rollout of the model.
        low, high: of the actions, over the horizon h.

    Raises:
        ValueError: fewer than one iteration, or not 2 <= elites <= samples.
    """
    if iterations < 1 or not 2 <= elites <= samples:
        raise ValueError(
            f"iterations >= 1 and 2 <= elites <= samples are needed; got {iterations}, {elites} of {samples}"
        )
    actions = low + (high - low) * torch.rand(samples, *low.shape, generator=generator)
    best, least = actions[0], float("inf")
    for _ in range(iterations):
        costs = cost(actions).float().cpu()
        order = costs.argsort()
        if float(costs[order[0]]) < least:
            best, least = actions[order[0]], float(costs[order[0]])
        deviation, mean = torch.std_mean(actions[order[:elites]], 0)
        actions = torch.clamp(mean + deviation * torch.randn(samples, *low.shape, generator=generator), low, high)
    return best, least
