"""Token samplers: predictions -> tokens and their confidence. Codes come from logits, vectors from Gaussian mixtures.

A token sampler is a function ``(predictions (b, k, e), temperature, noise, positions (b, k)) -> tokens (b, k) or
(b, k, d), confidence (b, k)``; :func:`functools.partial` binds its options. The decode loop knows tokens only through
this function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maskgen.decoding.noise import Noise
from maskgen.registry import choose

TokenSampler = Callable[[Tensor, float, Noise, Tensor], tuple[Tensor, Tensor]]
Confidence = Literal["probability", "logit"]
CONFIDENCES = {
    "probability": "log p of the sampled code in the distribution that it was sampled from (MaskGIT)",
    "logit": "the guided logit of the sampled code, unchanged (TiTok)",
}


def categorical(
    logits: Float[Tensor, "b k v"],
    temperature: float,
    noise: Noise,
    positions: Int[Tensor, "b k"],
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    confidence: Confidence = "probability",
) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Sample codes from softmax(logits / temperature), truncated by `top_k` and `top_p`, and give their confidence.

    Temperature 0 takes the most likely code and ranks it by its probability at temperature 1. TiTok's
    ``argmax(logits + temperature * Gumbel)`` samples from the same distribution.

    Args:
        top_k: keep the k most likely codes; 0 keeps all.
        top_p: keep the fewest most likely codes whose probabilities sum to at least this number; 1 keeps all.
        confidence: a name in :data:`CONFIDENCES`.

    Returns:
        int64 codes and float32 confidence, both (b, k).

    Raises:
        ValueError: see :func:`check_categorical`.
    """
    check_categorical(top_k, top_p, confidence)
    raw = logits.float()
    logits = raw if temperature in (0, 1) else raw / temperature
    if top_k or top_p < 1:
        logits = truncated(logits, top_k, top_p)
    p = logits.softmax(-1)
    codes = p.argmax(-1) if temperature == 0 else noise.choose(p, positions)
    if confidence == "logit":
        return codes, raw.gather(-1, codes[..., None])[..., 0]
    return codes, p.gather(-1, codes[..., None])[..., 0].log()


def check_categorical(top_k: int, top_p: float, confidence: str) -> None:
    """Raise ValueError if `top_k` is below 0, `top_p` is outside (0, 1], or the confidence is unknown."""
    choose(CONFIDENCES, confidence, "confidence")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0, got {top_k}; 0 keeps all codes")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}; 1 keeps all codes")


def truncated(logits: Float[Tensor, "*b v"], top_k: int, top_p: float) -> Float[Tensor, "*b v"]:
    """Set to -inf all logits but the `top_k` largest, and of these all but the nucleus of `top_p`.

    The softmax of the result is renormalised exactly. The most likely code always stays; of equal logits the first one
    stays.
    """
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered = ordered[..., :top_k]
    if top_p < 1:
        p = ordered.softmax(-1)
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    kept = torch.full_like(logits, -torch.inf)
    return kept.scatter(-1, index[..., : ordered.shape[-1]], ordered)


Split = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def gaussian_mixture(
    predictions: Float[Tensor, "b k e"],
    temperature: float,
    noise: Noise,
    positions: Int[Tensor, "b k"],
    *,
    split: Split,
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b k"]]:
    """Sample vectors from a mixture of diagonal Gaussians, and give the log-density of each vector, in nats
    (GIVT, Tschannen et al. 2024, arXiv:2312.02116, section 3.3).

    Args:
        temperature: multiplies the scales; 0 gives the mean of the sampled component. The density is that of
            temperature 1.
        split: predictions -> (log-probabilities (b, k, m), means (b, k, m, d), scales (b, k, m, d)), see
            :meth:`maskgen.mim.objective.GaussianMixture.split`.
    """
    weights, means, scales = split(predictions)
    component = noise.choose(weights.exp(), positions)[..., None, None].expand(-1, -1, 1, means.shape[-1])
    mean, scale = (x.gather(2, component)[:, :, 0] for x in (means, scales))
    tokens = mean + temperature * scale * noise.normal(positions, means.shape[-1])
    z = (tokens[:, :, None] - means) / scales
    log_density = -(0.5 * z.square() + scales.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
    return tokens, torch.logsumexp(weights + log_density, dim=-1)
