"""Samples of the autoregressive baseline, generated one token after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from maskgen.decoding.autoregressive import decode_raster
from maskgen.decoding.noise import Generators
from maskgen.pipelines.predictor import NextPredictor
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.autoregressive import CausalTransformer


@torch.no_grad()
def sample_raster(
    tokenizer: Tokenizer,
    transformer: CausalTransformer,
    labels: Sequence[int] | None,
    generator: Generators = None,
    guidance_scale: float = 1.0,
    guidance_schedule: Literal["constant", "linear", "cosine", "power"] = "constant",
    temperature: float = 1.0,
    count: int = 1,
) -> Float[Tensor, "n c *size"]:
    """Generate one image or clip per label, or `count` with an unconditional model.

    Args:
        generator: one generator, or a list with one per image.
        guidance_scale, guidance_schedule, temperature: see
            :func:`maskgen.decoding.autoregressive.decode_raster`.

    Returns:
        float32 pixels (n, c, *size) in about [-1, 1], not clipped.
    """
    rows = count if labels is None else len(labels)
    canvas = torch.zeros(rows, transformer.tokens, dtype=torch.long, device=next(transformer.parameters()).device)
    given = {} if labels is None else {"label": torch.tensor(list(labels))}
    predict = NextPredictor(transformer.eval(), given, rows, guided=guidance_scale != 1)
    codes = decode_raster(
        predict,
        canvas,
        torch.ones_like(canvas, dtype=torch.bool),
        temperature=temperature,
        guidance_scale=guidance_scale,
        guidance_schedule=guidance_schedule,
        generator=generator,
    )
    return tokenizer.eval().decode(codes.unflatten(1, transformer.grid)).float()
