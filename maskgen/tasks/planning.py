"""Planning: find actions that bring a predicted video to a goal, by the cross-entropy method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

Cost = Callable[[Tensor], Tensor]
SCALES = (1, 2, 4, 8)  # images are averaged over squares of these sides, if they are large enough


def goal_distance(frames: Float[Tensor, "n c H W"], goal: Float[Tensor, "d H2 W2"]) -> Float[Tensor, "n"]:
    """The mean squared difference from the goal, summed over :data:`SCALES`. If thin objects do not overlap, only the
    coarse images distinguish near from far.

    Raises:
        ValueError: the goal and the frames differ in size.
    """
    if frames.shape[1:] != goal.shape:
        raise ValueError(f"the goal is {tuple(goal.shape)} (c, H, W), the frames are {tuple(frames.shape[1:])}")
    apart = frames - goal
    fitting = [scale for scale in SCALES if scale <= min(goal.shape[1:])]
    return torch.stack([F.avg_pool2d(apart, scale).square().mean((1, 2, 3)) for scale in fitting]).sum(0)


def rollout_cost(
    pipeline: Any,
    known: Float[Tensor, "c t H W"],
    past: Float[Tensor, "u a"],
    goal: Float[Tensor, "c H W"],
    seed: int = 0,
    **options: Any,
) -> Cost:
    """A function that predicts with a model how far from the goal actions lead.

    It predicts all candidates in one batch with the same noise. The first planned action follows the last known frame,
    and the last one leads to the last predicted frame.

    Args:
        pipeline: a :class:`maskgen.pipelines.video.MaskedVideoPipeline` of a model that reads actions.
        known: the frames so far, in [-1, 1].
        past: the t - 1 actions between the known frames.
        goal: the wanted last frame.
        options: of ``pipeline.predict``.

    Raises:
        ValueError: the number of past actions is not t - 1.
    """
    if len(past) != known.shape[1] - 1:
        raise ValueError(f"{len(past)} past actions for {known.shape[1]} known frames; give those between the frames")

    def cost(actions: Float[Tensor, "n h a"]) -> Float[Tensor, "n"]:
        n, horizon, _ = actions.shape
        last = torch.zeros_like(actions[:, :1])  # it has no effect within the video
        videos = known.expand(n, -1, -1, -1, -1)
        noise = [torch.Generator().manual_seed(seed) for _ in range(n)]
        given = {"actions": torch.cat([past.expand(n, -1, -1), actions, last], 1), "generator": noise}
        frames = pipeline.predict(videos, horizon, **given, output_type="pixels", **options).frames
        return goal_distance(frames[:, :, -1].cpu(), goal)

    return cost


def cross_entropy_plan(
    cost: Cost,
    low: Float[Tensor, "h a"],
    high: Float[Tensor, "h a"],
    samples: int = 64,
    elites: int = 8,
    iterations: int = 3,
    generator: Generator | None = None,
) -> tuple[Float[Tensor, "h a"], float]:
    """The actions of the lowest cost that were found, and their cost (visual foresight, Ebert et al. 2018,
    arXiv:1812.00568).

    The first iteration samples uniformly between `low` and `high`. Each further one samples from a Gaussian with the
    mean and the deviation of the `elites` best candidates of the iteration before, clipped to these bounds. One
    iteration is random shooting.

    Args:
        cost: ``actions (samples, h, a) -> costs (samples,)``, for all candidates at once.
        low, high: the bounds of the actions, over the horizon h.

    Raises:
        ValueError: there is no iteration, or not 2 <= elites <= samples.
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
