"""The output of every quantizer, and the entropy term that several of them share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class Quantized:
    """The output of a quantizer.

    latents: float32 (b, d, *grid), the code vectors, with gradients passed straight through to the encoder.
    codes: int64 (b, *grid), or (b, *grid, codes_per_position) where there are several per position. Continuous tokens
        are float (b, *grid, d).
    loss: scalar, the weighted sum of the quantizer's own terms.
    terms: the terms by name, unweighted, for the metrics.
    """

    latents: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


def entropies(
    logits: Float[Tensor, "n k"], temperature: float, clamped: bool = False
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean entropy of the assignments and the entropy of the mean assignment, in nats.

    ``softmax(logits / temperature)`` assigns each of n latents to k codes. A quantizer minimises the first entropy, so
    that each latent is sure of its code, minus the second, so that all codes are used: MaskGIT's published VQGAN and
    MAGVIT-v2 (arXiv:2310.05737, eq. 5). To keep the logarithm of the mean assignment finite, MaskGIT's code adds 1e-5;
    with `clamped` the minimum is 1e-5 instead, as in MaskBit's code.
    """
    logits = logits / temperature
    p = logits.softmax(-1)
    sample = -(p * (logits + 1e-5).log_softmax(-1)).sum(-1).mean()
    mean = p.mean(0)
    return sample, -(mean * (mean.clamp(min=1e-5) if clamped else mean + 1e-5).log()).sum()


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """Return the value of `quantized` with the gradient of `z`."""
    return z + (quantized - z).detach()


def last(latents: Float[Tensor, "b d *grid"]) -> Float[Tensor, "b *grid d"]:
    """Move the channels to the last axis."""
    return torch.movedim(latents, 1, -1)


def first(latents: Float[Tensor, "b *grid d"]) -> Float[Tensor, "b d *grid"]:
    """Move the channels to the first axis after the batch."""
    return torch.movedim(latents, -1, 1)
