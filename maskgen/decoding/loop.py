"""The decode loop of MaskGIT (Chang et al. 2022, arXiv:2202.04200, section 3.3) with the options of later systems."""

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
from maskgen.decoding.slices import SlicedPredictions
from maskgen.decoding.token_samplers import TokenSampler, categorical
from maskgen.registry import choose


@dataclass(frozen=True)
class Step:
    """The input of the model at one step.

    tokens: int64 (b, n) or float (b, n, d); values at `hidden` positions have no meaning.
    hidden: bool (b, n), True = not decided yet.
    positions: int64 (b, k), the positions at which predictions are needed: all hidden ones if the order ranks sampled
        tokens, else those that this step decides. A row with fewer than k is padded with other positions, whose
        predictions are not used.
    number, total: the index of this step from 0, and the number of steps.
    guidance_scale: the scale of this step; at 1 no unconditional pass is needed.
    blank: True if all tokens of all rows are hidden, so that rows with the same condition are equal.
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
    """The result of one step.

    step: the index of the step from 0.
    tokens: (b, n) or (b, n, d); values at `hidden` positions have no meaning.
    hidden: bool (b, n), after the step.
    confidence: float (b, n), the confidence of the tokens sampled at this step, or the scores of the critic, without
        noise; NaN where the step computed none.
    """

    step: int
    tokens: Tensor
    hidden: Tensor
    confidence: Tensor


Predict = Callable[[Step], Tensor | SlicedPredictions]
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
    choice_temperature: Temperature = 4.5,
    choice_anneal: str = "linear",
    sample_tokens: TokenSampler = categorical,
    temperature: Temperature = 1.0,
    temperature_anneal: str = "constant",
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

    Each step samples a token for every hidden position, keeps the best tokens by `order` and hides the rest again. If
    the order is known before the model runs, the step samples only the tokens that it keeps. The schedule gives the
    number of hidden tokens after each step, for each row from its number of hidden tokens at the start. All numbers are
    known before the loop, so no step waits for the device.

    Order ``confidence`` keeps the tokens with the highest ``confidence + choice_temperature * Gumbel`` (MaskGIT).
    ``critic`` keeps those with the highest ``critic(tokens, sampled) + choice_temperature * Gumbel`` of *all* tokens
    under `mask`, so that tokens of earlier steps may be hidden again (Token-Critic, Lezama et al. 2022,
    arXiv:2209.04439). ``random`` keeps random tokens; ``halton`` and ``raster`` go by position.

    Args:
        predict: any callable that gives predictions (b, k, e) at ``Step.positions``, logits of codes by default, as one
            tensor or in slices of positions (:class:`maskgen.decoding.slices.SlicedPredictions`).
        canvas: int64 codes (b, n), or float vectors (b, n, d). With several codes per position, n is the number of
            positions times the codes per position, and the codes of a position are adjacent.
        mask: True = hidden, to be decided.
        steps: at least 1; one step decides all tokens at once.
        schedule: a name in :data:`maskgen.mim.ratios.SCHEDULES`.
        counting: how the schedule becomes numbers of tokens, a name in :data:`maskgen.decoding.schedules.COUNTS`.
        order: a name in :data:`maskgen.decoding.orders.ORDERS`.
        grid: the grid of positions; ``halton`` needs it. In ``halton`` and ``raster`` the codes of a position are
            decided together, and the schedule counts positions.
        roll: start ``halton`` at a random point of its sequence, another one for each row.
        critic: ``(tokens, bool sampled (b, n)) -> scores (b, n)``, higher is better; order ``critic`` needs it.
        choice_temperature, choice_anneal: of the Gumbel noise on the confidence, see
            :func:`maskgen.decoding.schedules.annealed`.
        sample_tokens: predictions -> tokens and confidence, see :mod:`maskgen.decoding.token_samplers`.
        temperature, temperature_anneal: of `sample_tokens`.
        remask, remask_eta: hide decided tokens again, see :mod:`maskgen.decoding.remasking`; tokens that the canvas
            gives stay.
        guidance_scale, guidance_schedule, guidance_power: see :func:`maskgen.decoding.guidance.guidance_scales`;
            `predict` applies the scale.
        generator: one generator for the batch, or a list with one per row; with a list, a row's result does not depend
            on its batch.
        noise: the source of random numbers, instead of `generator`.
        callback: ``(step, tokens, hidden) -> None``, called after each step.
        trace: called after each step with a :class:`Trace`.

    Returns:
        The completed canvas, of its shape and dtype.

    Raises:
        ValueError: steps are below 1, a name is unknown, a temperature is negative, shapes differ, or options do not
            go together.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if canvas.shape[:2] != mask.shape:
        raise ValueError(f"canvas {tuple(canvas.shape)} and mask {tuple(mask.shape)} must have one shape")
    _check_order(order, critic, grid, roll, remask, canvas.shape[1])
    scales = guidance_scales(guidance_scale, guidance_schedule, steps, guidance_power)
    temperatures = annealed(temperature, temperature_anneal, steps)
    choice_temperatures = annealed(choice_temperature, choice_anneal, steps)
    (b, n), device = mask.shape, canvas.device
    noise = noise or Noise(generator, b, n, device)
    everywhere = torch.arange(n, device=device).expand(b, n)
    ranks = _ranks(order, grid, roll, noise, everywhere)
    ahead = ranks is not None or order == "random"
    counts = mask.sum(1).tolist()
    if ranks is not None and grid is not None and prod(grid) < n:
        plans = _plans_of_positions(mask, ranks, prod(grid), schedule, steps, counting)
    else:
        plans = [hidden_after(schedule, count, steps, counting) for count in counts]
    left, decide, stay, again = (_Counts(c, device) for c in _counts(counts, plans, remask, remask_eta))

    tokens, hidden = canvas.clone(), mask
    positions = start = _hidden_positions(mask, left.most(0))
    valid = first = left.first(0, positions)
    sampled_with = torch.zeros(b, n, device=device)  # log-probability with which a token was sampled
    for i in range(steps):
        if left.most(i) == 0:
            break
        if ahead:  # the tokens of this step are known before the model runs
            turn = noise.uniform(everywhere) if ranks is None else ranks
            positions = turn.masked_fill(~hidden, torch.inf).argsort(dim=1, stable=True)[:, : decide.most(i)]
            valid = decide.first(i, positions)
        before, blank = hidden, i == 0 and left.least(0) == n
        predictions = predict(Step(tokens, hidden, positions, i, steps, scales[i], blank))
        if isinstance(predictions, SlicedPredictions):
            sampled, confidence = predictions.sample(sample_tokens, temperatures[i], noise, positions)
        else:
            sampled, confidence = sample_tokens(predictions, temperatures[i], noise, positions)
        if sampled.shape[2:] != canvas.shape[2:]:
            raise ValueError(
                f"sample_tokens gives tokens {tuple(sampled.shape)}, which do not fit the canvas {tuple(canvas.shape)}"
            )
        tokens = _put(tokens, positions, valid, sampled.to(tokens.dtype))
        sampled_with = _put(sampled_with, positions, valid, confidence) if remask == "confidence" else sampled_with
        asked = positions, valid
        if ahead:
            hidden = _put(hidden, positions, valid, torch.zeros_like(valid))
        else:
            if critic is not None:
                asked = positions, valid = start, first
                confidence = critic(tokens, before).float().gather(1, positions)
            score = confidence + choice_temperatures[i] * noise.gumbel(positions)
            score = score.masked_fill(~valid, torch.inf)
            positions = positions.gather(1, score.argsort(dim=1, stable=True)[:, : stay.most(i)])
            valid = stay.first(i, positions)
            hidden = _put(torch.zeros_like(hidden), positions, valid, torch.ones_like(valid))
        if remask != "none":
            race = -sampled_with.clamp(max=0).exp() + noise.gumbel(
                everywhere
            )  # the largest are a sample of softmax(-psi)
            race = race.masked_fill(~mask | before, -torch.inf)  # only tokens of earlier steps
            chosen = race.argsort(dim=1, descending=True, stable=True)[:, : again.most(i)]
            hidden = _put(hidden, chosen, again.first(i, chosen), torch.ones_like(chosen, dtype=torch.bool))
            positions = _hidden_positions(hidden, left.most(i + 1))
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
        raise ValueError(f"order 'critic' and a critic go together; got order {order!r} and critic {critic}")
    if order == "critic" and remask != "none":
        raise ValueError(f"order 'critic' already hides decided tokens again; set remask 'none' instead of {remask!r}")
    if order == "halton" and grid is None:
        raise ValueError("order 'halton' needs the grid of the tokens; give grid=(h, w)")
    if roll and order != "halton":
        raise ValueError(f"roll is an option of order 'halton', not of {order!r}")
    if grid is not None and ORDERS[order] is not None and n % prod(grid):
        raise ValueError(f"{n} tokens per row are not a multiple of the {prod(grid)} positions of the grid {grid}")


def _ranks(
    order: str, grid: tuple[int, ...] | None, roll: bool, noise: Noise, everywhere: Int[Tensor, "b n"]
) -> Float[Tensor, "b n"] | None:
    """The rank of each token in an order that is known before the loop, else None; codes of a position are adjacent."""
    rule, (b, n) = ORDERS[order], everywhere.shape
    if rule is None:
        return None
    sequence = rule(grid or (n,))
    rank = torch.tensor(sequence, device=everywhere.device).argsort().expand(b, -1)
    if roll:
        rank = (rank + (noise.uniform(everywhere[:, :1]) * len(sequence)).long()) % len(sequence)
    codes_per_position = n // len(sequence)
    return (rank[..., None] * codes_per_position + everywhere[0, :codes_per_position]).flatten(1).float()


def _plans_of_positions(
    mask: Bool[Tensor, "b n"], ranks: Float[Tensor, "b n"], positions: int, schedule: str, steps: int, counting: str
) -> list[list[int]]:
    """Hidden tokens of each row after each step, where the schedule counts positions of several tokens."""
    plans = []
    for row in mask.gather(1, ranks.argsort(1)).unflatten(1, (positions, -1)).sum(-1).tolist():
        each = [count for count in row if count]
        left = hidden_after(schedule, len(each), steps, counting)
        plans.append([sum(each[len(each) - after :]) for after in left])
    return plans


def _counts(counts: list[int], plans: list[list[int]], remask: str, eta: float) -> list[list[list[int]]]:
    """Numbers by step and row: tokens hidden before the step, decided in it, not decided in it, hidden again in it."""
    again = [list(row) for row in zip(*(remasked(remask, eta, plan, count) for plan, count in zip(plans, counts)))]
    left = [counts, *([*row] for row in zip(*plans))]
    stay = [[after - more for after, more in zip(*rows)] for rows in zip(left[1:], again)]
    decide = [[before - after for before, after in zip(*rows)] for rows in zip(left, stay)]
    return [left, decide, stay, again]


class _Counts:
    """Numbers by step and row: in Python for the shapes, and on the device, where they are moved before the loop."""

    def __init__(self, counts: list[list[int]], device: torch.device):
        self.python, self.device = counts, torch.tensor(counts, device=device)

    def most(self, i: int) -> int:
        return max(self.python[i], default=0)

    def least(self, i: int) -> int:
        return min(self.python[i])

    def first(self, i: int, like: Int[Tensor, "b k"]) -> Bool[Tensor, "b k"]:
        """True at the first entries of each row, as many as the number of step `i`."""
        return torch.arange(like.shape[1], device=like.device) < self.device[i][:, None]


def _hidden_positions(hidden: Bool[Tensor, "b n"], most: int) -> Int[Tensor, "b k"]:
    """The hidden positions of each row in ascending order, padded with other positions to `most`."""
    return hidden.long().argsort(dim=1, descending=True, stable=True)[:, :most]


def _put(
    x: Shaped[Tensor, "b n *d"],
    positions: Int[Tensor, "b k"],
    valid: Bool[Tensor, "b k"],
    values: Shaped[Tensor, "b k *d"],
) -> Shaped[Tensor, "b n *d"]:
    """`x` with `values` at the valid `positions`; other values go to an extra position at the end, which is cut off."""
    n = x.shape[1]
    at = positions.masked_fill(~valid, n)
    if x.dim() == 3:
        at = at[..., None].expand_as(values)
    return torch.cat([x, x[:, :1]], 1).scatter(1, at, values)[:, :n]
