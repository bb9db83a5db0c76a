"""The MaskGIT loop (Chang et al. 2022, arXiv:2202.04200, section 3.3), with what later systems changed as options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from maskgen.decoding.guidance import guidance_scales
from maskgen.decoding.noise import Generators, Noise
from maskgen.decoding.orders import ORDERS
from maskgen.decoding.remasking import REMASKS, remasked
from maskgen.decoding.schedules import Temperature, annealed, hidden_after
from maskgen.decoding.token_samplers import Draw, categorical
from maskgen.registry import choose


@dataclass(frozen=True)
class Step:
    """What a model is asked at one step.

    tokens: int64 (b, n) or float (b, n, d); what stands at `hidden` places means nothing.
    hidden: bool (b, n), True = still to be decided.
    positions: int64 (b, k), hidden positions of each row: all of them in orders that rank what was drawn, those to be
        decided now in the others. A row with fewer than k is filled up with others, whose predictions are not used.
    number, total: this step's number from 0, and how many there are.
    guidance_scale: of this step; 1 means that the unconditional pass is not needed.
    blank: True where all rows hide all tokens, so that rows with the same condition are the same.
    """

    tokens: Tensor
    hidden: Tensor
    positions: Tensor
    number: int
    total: int
    guidance_scale: float
    blank: bool


@dataclass(frozen=True)
class Trace:
    """What a step did.

    tokens: as in the result, (b, n) or (b, n, d); what stands at `hidden` places means nothing.
    hidden: bool (b, n) after the step.
    confidence: float (b, n), of the tokens drawn at this step, or the critic's scores, without the order's noise; NaN
        where none was computed.
    """

    step: int
    tokens: Tensor
    hidden: Tensor
    confidence: Tensor


Predict = Callable[[Step], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]
Critic = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def decode(
    predict: Predict,
    canvas: Shaped[Tensor, "b n *d"],
    mask: Bool[Tensor, "b n"],
    *,
    steps: int = 12,
    schedule: str = "cosine",
    counting: str = "maskgit",
    order: str = "confidence",
    grid: tuple[int, ...] | None = None,
    roll: bool = False,
    critic: Critic | None = None,
    temperature: Temperature = 4.5,
    anneal: str = "linear",
    draw: Draw = categorical,
    draw_temperature: Temperature = 1.0,
    draw_anneal: str = "constant",
    remask: str = "none",
    remask_eta: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_schedule: str = "constant",
    guidance_power: float = 1.0,
    generator: Generators = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
    trace: Callable[[Trace], None] | None = None,
) -> Shaped[Tensor, "b n *d"]:
    """Complete `canvas` where `mask` is True; the other tokens never change.

    Each step draws a token for every hidden place, keeps the best by `order` and hides the rest again; orders known
    before the model is asked draw only what is kept. How many stay hidden after a step is the schedule's, row by row,
    from the number hidden at the start; Python knows it all before the loop, so no step waits for the device.

    ``order``: ``confidence`` keeps the highest ``confidence + temperature * Gumbel`` (MaskGIT); ``critic`` the highest
    ``critic(tokens, drawn) + temperature * Gumbel`` of *all* tokens under `mask`, so that earlier ones may be hidden
    again (Token-Critic, Lezama et al. 2022, arXiv:2209.04439); ``random`` any; ``halton`` and ``raster`` go by place.

    Args:
        predict: predictions (b, k, e) at ``Step.positions``, logits of codes by default; any callable.
        canvas: int64 codes (b, n), or vectors (b, n, d). A token of g codes at each of p places is n = p g, place by
            place.
        mask: True = hidden, to be decided.
        steps: at least 1; one step decides everything at once.
        schedule: name in :data:`maskgen.mim.ratios.SCHEDULES`.
        counting: how the schedule becomes numbers, :data:`maskgen.decoding.schedules.COUNTS`.
        order: name in :data:`maskgen.decoding.orders.ORDERS`.
        grid: of the places; ``halton`` needs it. In ``halton`` and ``raster`` all codes of a place go together, and the
            schedule counts places.
        roll: start ``halton`` at a random point of its sequence, each row its own.
        critic: ``(tokens, drawn bool (b, n)) -> scores (b, n)``, higher is better; for order ``critic``.
        temperature, anneal: of the order's noise, see :func:`maskgen.decoding.schedules.annealed`.
        draw: predictions to tokens and confidence, see :mod:`maskgen.decoding.token_samplers`.
        draw_temperature, draw_anneal: what `draw` is given.
        remask, remask_eta: hide decided tokens again, see :mod:`maskgen.decoding.remasking`; never those of the canvas.
        guidance_scale, guidance_schedule, guidance_power: see :func:`maskgen.decoding.guidance.guidance_scales`; handed
            to `predict`.
        generator: one for the batch, or a list of one a row, which makes a row's result independent of its batch.
        noise: where random numbers come from, in the generator's stead.
        callback: ``(step, tokens, hidden)`` after each step; trace: the same with the confidence, in a :class:`Trace`.

    Raises:
        ValueError: steps < 1, an unknown name, a negative temperature, shapes that differ, options that do not go
            together.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if canvas.shape[:2] != mask.shape:
        raise ValueError(f"canvas {tuple(canvas.shape)} and mask {tuple(mask.shape)} must have one shape")
    _check_order(order, critic, grid, roll, remask, canvas.shape[1])
    scales = guidance_scales(guidance_scale, guidance_schedule, steps, guidance_power)
    spreads, heats = annealed(temperature, anneal, steps), annealed(draw_temperature, draw_anneal, steps)
    (b, n), device = mask.shape, canvas.device
    noise = noise or Noise(generator, b, n, device)
    everywhere = torch.arange(n, device=device).expand(b, n)
    ranks = _ranks(order, grid, roll, noise, everywhere)
    ahead = ranks is not None or order == "random"
    counts = mask.sum(1).tolist()
    if ranks is not None and grid is not None and prod(grid) < n:
        plans = _plans_of_places(mask, ranks, prod(grid), schedule, steps, counting)
    else:
        plans = [hidden_after(schedule, count, steps, counting) for count in counts]
    left, shown, stay, again = (_Counts(c, device) for c in _counts(counts, plans, remask, remask_eta))

    tokens, hidden = canvas.clone(), mask
    positions = start = _places(mask, left.most(0))
    valid = first = left.first(0, positions)
    drawn_with = torch.zeros(b, n, device=device)  # log-probability that a token was drawn with
    for i in range(steps):
        if left.most(i) == 0:
            break
        if ahead:  # whose turn it is, before the model is asked
            turn = noise.uniform(everywhere) if ranks is None else ranks
            positions = turn.masked_fill(~hidden, torch.inf).argsort(dim=1, stable=True)[:, : shown.most(i)]
            valid = shown.first(i, positions)
        before, blank = hidden, i == 0 and left.least(0) == n
        predictions = predict(Step(tokens, hidden, positions, i, steps, scales[i], blank))
        drawn, confidence = draw(predictions, heats[i], noise, positions)
        if drawn.shape[2:] != canvas.shape[2:]:
            raise ValueError(f"the draw gives tokens {tuple(drawn.shape)}, which is no canvas {tuple(canvas.shape)}")
        tokens = _put(tokens, positions, valid, drawn.to(tokens.dtype))
        drawn_with = _put(drawn_with, positions, valid, confidence) if remask == "confidence" else drawn_with
        asked = positions, valid
        if ahead:
            hidden = _put(hidden, positions, valid, torch.zeros_like(valid))
        else:
            if critic is not None:
                asked = positions, valid = start, first
                confidence = critic(tokens, before).float().gather(1, positions)
            score = confidence + spreads[i] * noise.gumbel(positions)
            score = score.masked_fill(~valid, torch.inf)
            positions = positions.gather(1, score.argsort(dim=1, stable=True)[:, : stay.most(i)])
            valid = stay.first(i, positions)
            hidden = _put(torch.zeros_like(hidden), positions, valid, torch.ones_like(valid))
        if remask != "none":
            race = -drawn_with.clamp(max=0).exp() + noise.gumbel(everywhere)  # the largest: drawn by softmax(-psi)
            race = race.masked_fill(~mask | before, -torch.inf)  # among those decided in earlier steps
            chosen = race.argsort(dim=1, descending=True, stable=True)[:, : again.most(i)]
            hidden = _put(hidden, chosen, again.first(i, chosen), torch.ones_like(chosen, dtype=torch.bool))
            positions = _places(hidden, left.most(i + 1))
            valid = left.first(i + 1, positions)
        if callback is not None:
            callback(i, tokens, hidden)
        if trace is not None:
            trace(Trace(i, tokens, hidden, _put(torch.full((b, n), torch.nan, device=device), *asked, confidence)))
    return tokens


def _check_order(
    order: str, critic: Critic | None, grid: tuple[int, ...] | None, roll: bool, remask: str, n: int
) -> None:
    choose(ORDERS, order, "order")
    choose(REMASKS, remask, "remasking")
    if (order == "critic") != (critic is not None):
        raise ValueError(f"order 'critic' and a critic go together, got order {order!r} and critic {critic}")
    if order == "critic" and remask != "none":
        raise ValueError(f"order 'critic' hides decided tokens again by itself; take remask 'none', not {remask!r}")
    if order == "halton" and grid is None:
        raise ValueError("order 'halton' needs the grid of the tokens; give grid=(h, w)")
    if roll and order != "halton":
        raise ValueError(f"roll goes with order 'halton', not {order!r}")
    if grid is not None and ORDERS[order] is not None and n % prod(grid):
        raise ValueError(f"{n} tokens a row do not fill the grid {grid} of {prod(grid)} places evenly")


def _ranks(
    order: str, grid: tuple[int, ...] | None, roll: bool, noise: Noise, everywhere: Int[Tensor, "b n"]
) -> Float[Tensor, "b n"] | None:
    """When each token's turn comes, where that is known before the loop; the codes of a place follow each other."""
    rule, (b, n) = ORDERS[order], everywhere.shape
    if rule is None:
        return None
    places = rule(grid or (n,))
    rank = torch.tensor(places, device=everywhere.device).argsort().expand(b, -1)
    if roll:
        rank = (rank + (noise.uniform(everywhere[:, :1]) * len(places)).long()) % len(places)
    groups = n // len(places)
    return (rank[..., None] * groups + everywhere[0, :groups]).flatten(1).float()


def _plans_of_places(
    mask: Bool[Tensor, "b n"], ranks: Float[Tensor, "b n"], places: int, schedule: str, steps: int, counting: str
) -> list[list[int]]:
    """Hidden tokens of each row after each step, where the schedule's numbers are places of several tokens."""
    plans = []
    for row in mask.gather(1, ranks.argsort(1)).unflatten(1, (places, -1)).sum(-1).tolist():
        each = [count for count in row if count]
        left = hidden_after(schedule, len(each), steps, counting)
        plans.append([sum(each[len(each) - after :]) for after in left])
    return plans


def _counts(counts: list[int], plans: list[list[int]], remask: str, eta: float) -> list[list[list[int]]]:
    """By step and row: hidden before it, then decided in it, not decided in it, hidden again in it."""
    again = [list(row) for row in zip(*(remasked(remask, eta, plan, count) for plan, count in zip(plans, counts)))]
    left = [counts, *([*row] for row in zip(*plans))]
    stay = [[after - more for after, more in zip(*rows)] for rows in zip(left[1:], again)]
    shown = [[before - after for before, after in zip(*rows)] for rows in zip(left, stay)]
    return [left, shown, stay, again]


class _Counts:
    """Numbers by step and row, in Python for shapes, and moved to the device before the loop."""

    def __init__(self, counts: list[list[int]], device: torch.device):
        self.python, self.device = counts, torch.tensor(counts, device=device)

    def most(self, i: int) -> int:
        return max(self.python[i], default=0)

    def least(self, i: int) -> int:
        return min(self.python[i])

    def first(self, i: int, like: Int[Tensor, "b k"]) -> Bool[Tensor, "b k"]:
        """True at as many first entries of each row."""
        return torch.arange(like.shape[1], device=like.device) < self.device[i][:, None]


def _places(hidden: Bool[Tensor, "b n"], most: int) -> Int[Tensor, "b k"]:
    """The hidden places of each row in ascending order, filled up with others to `most`."""
    return hidden.long().argsort(dim=1, descending=True, stable=True)[:, :most]


def _put(
    x: Shaped[Tensor, "b n *d"],
    positions: Int[Tensor, "b k"],
    valid: Bool[Tensor, "b k"],
    values: Shaped[Tensor, "b k *d"],
) -> Shaped[Tensor, "b n *d"]:
    """`x` with `values` at the valid `positions`; the others fall into a place behind the last, which is cut off."""
    n = x.shape[1]
    at = positions.masked_fill(~valid, n)
    if x.dim() == 3:
        at = at[..., None].expand_as(values)
    return torch.cat([x, x[:, :1]], 1).scatter(1, at, values)[:, :n]
