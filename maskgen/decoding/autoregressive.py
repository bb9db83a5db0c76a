"""One token after the other in raster order: the baseline of parallel decoding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from maskgen.decoding.guidance import guidance_scales
from maskgen.decoding.noise import Generators, Noise
from maskgen.decoding.schedules import Temperature, annealed
from maskgen.decoding.token_samplers import Draw, categorical

PredictNext = Callable[[Tensor | None, float], Tensor]


@torch.no_grad()
def decode_raster(
    predict: PredictNext,
    canvas: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    *,
    draw: Draw = categorical,
    draw_temperature: Temperature = 1.0,
    draw_anneal: str = "constant",
    guidance_scale: float = 1.0,
    guidance_schedule: str = "constant",
    guidance_power: float = 1.0,
    generator: Generators = None,
    noise: Noise | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Int[Tensor, "b n"]:
    """Complete `canvas` where `mask` is True, n steps of one token; a token sees those before it only.

    Args:
        predict: ``(codes (b,) of the place before, None at first; guidance scale) -> logits (b, v)`` of the next place,
            e.g. :class:`maskgen.pipelines.predictor.NextPredictor`, which keeps keys and values.
        draw, draw_temperature, draw_anneal, guidance_scale, guidance_schedule, guidance_power, generator, noise: as in
            :func:`maskgen.decoding.loop.decode`, a step being a token.
        callback: ``(step, tokens, hidden)`` after each token.

    Raises:
        ValueError: an unknown name, a number outside its range, or shapes that differ.
    """
    if canvas.shape != mask.shape:
        raise ValueError(f"canvas {tuple(canvas.shape)} and mask {tuple(mask.shape)} must have one shape")
    (b, n), device = canvas.shape, canvas.device
    scales = guidance_scales(guidance_scale, guidance_schedule, n, guidance_power)
    heats = annealed(draw_temperature, draw_anneal, n)
    noise = noise or Noise(generator, b, n, device)
    places = torch.arange(n, device=device).expand(b, n)
    tokens, hidden, codes = canvas.clone(), mask.clone(), None
    for i in range(n):
        logits = predict(codes, scales[i])[:, None]
        drawn, _ = draw(logits, heats[i], noise, places[:, i : i + 1])
        codes = torch.where(mask[:, i], drawn[:, 0], canvas[:, i])
        tokens[:, i], hidden[:, i] = codes, False
        if callback is not None:
            callback(i, tokens.clone(), hidden.clone())
    return tokens
