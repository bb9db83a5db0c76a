"""The MaskGIT loop (Chang et al. 2022, arXiv:2202.04200, section 3.3; ``parallel_decode`` of the authors' code)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from maskgen.decoding.guidance import guidance_scales
from maskgen.decoding.schedules import hidden_after

Generators = Generator | list[Generator] | None


@dataclass(frozen=True)
class Step:
    """What a model is asked at one step.

    tokens: int64 (b, n); what stands at `hidden` places means nothing.
    hidden: bool (b, n), True = still to be decided.
    positions: int64 (b, k), the hidden positions of each row; a row with fewer than k is filled up with others,
        whose logits are not used.
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


Predict = Callable[[Step], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]


@torch.no_grad()
def decode(
    predict: Predict,
    canvas: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    *,
    steps: int = 12,
    schedule: str = "cosine",
    temperature: float = 4.5,
    guidance_scale: float = 1.0,
    guidance_schedule: str = "constant",
    generator: Generators = None,
    callback: Callback | None = None,
) -> Int[Tensor, "b n"]:
    """Complete `canvas` where `mask` is True; the other tokens never change.

    Each step samples a code for every hidden token, keeps the most confident and hides the rest again. The
    confidence is ``log p(sampled) + temperature * (1 - r) * Gumbel`` with progress r = (i + 1) / steps. How many stay
    hidden after a step is the schedule's, row by row, from the number hidden at the start; Python knows it all before
    the loop, so no step waits for the device.

    Args:
        predict: logits (b, k, codes) at ``Step.positions``; any callable.
        canvas: int64 codes.
        mask: True = hidden, to be decided.
        steps: at least 1; one step decides everything at once.
        schedule: name in :data:`maskgen.mim.ratios.SCHEDULES`.
        temperature: of the choice of tokens to keep, tau; 0 keeps the most confident.
        guidance_scale, guidance_schedule: see :func:`maskgen.decoding.guidance.guidance_scales`; handed to `predict`.
        generator: one for the batch, or a list of one a row, which makes a row's result independent of its batch.
        callback: ``(step, tokens, hidden)`` after each step.

    Raises:
        ValueError: steps < 1, negative temperature, unknown schedule, shapes that differ.
    """
    if steps < 1 or temperature < 0:
        raise ValueError(f"steps must be at least 1 and temperature at least 0, got {steps} and {temperature}")
    if canvas.shape != mask.shape:
        raise ValueError(f"canvas {tuple(canvas.shape)} and mask {tuple(mask.shape)} must have one shape")
    n, device = canvas.shape[1], canvas.device
    scales = guidance_scales(guidance_scale, guidance_schedule, steps)
    counts = mask.sum(1).tolist()
    after = list(zip(*(hidden_after(schedule, count, steps) for count in counts)))  # [step][row]
    tokens, hidden = canvas.clone(), mask
    left = torch.tensor([counts, *after], device=device)  # all that goes to the device, before the loop
    positions = mask.long().argsort(dim=1, descending=True, stable=True)[:, : max(counts, default=0)]
    valid = _first(left[0], positions)
    for i in range(steps):
        if positions.shape[1] == 0:
            break
        blank = i == 0 and min(counts) == n
        logits = predict(Step(tokens, hidden, positions, i, steps, scales[i], blank)).float()
        chosen, log_p = sample(logits, uniform(canvas.shape, generator, device).gather(1, positions))
        tokens = _put(tokens, positions, valid, chosen)
        noise = gumbel(uniform(canvas.shape, generator, device).gather(1, positions))
        confidence = log_p + temperature * (1 - (i + 1) / steps) * noise
        confidence = confidence.masked_fill(~valid, torch.inf)
        positions = positions.gather(1, confidence.argsort(dim=1, stable=True)[:, : max(after[i])])
        valid = _first(left[i + 1], positions)
        hidden = _put(torch.zeros_like(hidden), positions, valid, torch.ones_like(valid))
        if callback is not None:
            callback(i, tokens, hidden)
    return tokens


def sample(logits: Float[Tensor, "b k v"], u: Float[Tensor, "b k"]) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Codes drawn from softmax(logits) by inverting its distribution function at `u`, and their log-probabilities.

    One uniform number a token, against one a token and code for Gumbel's method; the distribution is the same.
    """
    p = logits.softmax(-1)
    cdf = p.cumsum(-1)
    total = cdf[..., -1:]
    at = torch.minimum(u[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))  # a code with p > 0
    chosen = torch.searchsorted(cdf, at, right=True).clamp_(max=logits.shape[-1] - 1)
    return chosen[..., 0], p.gather(-1, chosen)[..., 0].log()


def uniform(shape: torch.Size, generator: Generators, device: torch.device) -> Float[Tensor, "b n"]:
    """Uniform numbers on [0, 1), drawn where the generator lives; with a list, row i from generator i.

    Drawn for all n tokens whatever is hidden, so that a row does not depend on the rest of its batch.
    """
    if isinstance(generator, list):
        if len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for {shape[0]} rows; give one, or one a row")
        return torch.stack([torch.rand(shape[1:], generator=g, device=g.device).to(device) for g in generator])
    where = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=where).to(device)


def gumbel(u: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Standard Gumbel noise from uniform numbers."""
    return -(-u.clamp(1e-20, 1 - 2**-24).log()).log()


def _first(counts: Int[Tensor, "b"], like: Int[Tensor, "b k"]) -> Bool[Tensor, "b k"]:
    """True at the first ``counts[i]`` entries of row i."""
    return torch.arange(like.shape[1], device=like.device) < counts[:, None]


def _put(x: Tensor, positions: Int[Tensor, "b k"], valid: Bool[Tensor, "b k"], values: Tensor) -> Tensor:
    """`x` (b, n) with `values` at the valid `positions`; the others fall into a column that is cut off."""
    n = x.shape[1]
    return torch.nn.functional.pad(x, (0, 1)).scatter(1, positions.masked_fill(~valid, n), values)[:, :n]
