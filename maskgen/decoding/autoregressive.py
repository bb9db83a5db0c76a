"""Autoregressive decoding in raster order, the baseline of parallel decoding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from maskgen.decoding.guidance import guidance_scales
from maskgen.decoding.noise import Generators, Noise
from maskgen.decoding.schedules import Temperature, annealed
from maskgen.decoding.token_samplers import TokenSampler, categorical

PredictNext = Callable[[Tensor | None, float], Tensor]


@torch.no_grad()
def decode_raster(
    predict: PredictNext,
    canvas: Int[Tensor, "b n"],
    mask: Bool[Tensor, "b n"],
    *,
    sample_tokens: TokenSampler = categorical,
    temperature: Temperature = 1.0,
    temperature_anneal: str = "constant",
    guidance_scale: float = 1.0,
    guidance_schedule: str = "constant",
    guidance_power: float = 1.0,
    generator: Generators = None,
    noise: Noise | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Int[Tensor, "b n"]:
    """Complete `canvas` where `mask` is True in n steps of one token; a token sees only the tokens before it.

    Args:
        predict: ``(codes, guidance scale) -> logits (b, v)`` of the next token. The codes (b,) are those of the token
            before it; they are None for the first token. :class:`maskgen.pipelines.predictor.NextPredictor` is one,
            with a cache of keys and values.
        sample_tokens, temperature, temperature_anneal, guidance_scale, guidance_schedule, guidance_power, generator,
            noise: see :func:`maskgen.decoding.loop.decode`; a step is one token.
        callback: ``(step, tokens, hidden) -> None``, called after each token.

    Returns:
        int64 codes (b, n).

    Raises:
        ValueError: a name is unknown, a number is out of range, or the shapes differ.
    """
    if canvas.shape != mask.shape:
        raise ValueError(f"canvas {tuple(canvas.shape)} and mask {tuple(mask.shape)} must have one shape")
    (b, n), device = canvas.shape, canvas.device
    scales = guidance_scales(guidance_scale, guidance_schedule, n, guidance_power)
    temperatures = annealed(temperature, temperature_anneal, n)
    noise = noise or Noise(generator, b, n, device)
    positions = torch.arange(n, device=device).expand(b, n)
    tokens, hidden, codes = canvas.clone(), mask.clone(), None
    for i in range(n):
        logits = predict(codes, scales[i])[:, None]
        sampled, _ = sample_tokens(logits, temperatures[i], noise, positions[:, i : i + 1])
        codes = torch.where(mask[:, i], sampled[:, 0], canvas[:, i])
        tokens[:, i], hidden[:, i] = codes, False
        if callback is not None:
            callback(i, tokens.clone(), hidden.clone())
    return tokens
