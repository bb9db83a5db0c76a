"""What every quantizer gives, and the entropy term that several share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class Quantized:
    """What a quantizer makes of latents.

    latents: float32 (b, d, *grid), the code vectors, with gradients passed straight through to the encoder.
    codes: int64 (b, *grid), or (b, *grid, levels) where a place has several; continuous tokens float (b, *grid, d).
    loss: scalar, the quantizer's own terms, weighted and summed.
    terms: the terms by name, unweighted, for the metrics.
    """

    latents: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


def entropies(
    logits: Float[Tensor, "n k"], temperature: float, clamped: bool = False
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean entropy of the assignments, and entropy of the mean assignment, in nats.

    ``softmax(logits / temperature)`` assigns each of n latents to k codes. A quantizer minimises the first (each latent
    is sure of its code) minus the second (all codes are used): MaskGIT's published VQGAN and MAGVIT-v2
    (arXiv:2310.05737, eq. 5). So that its logarithm is finite, 1e-5 is added to a mean assignment, as MaskGIT's code
    does; with `clamped` it is the least value instead, as in MaskBit's.
    """
    logits = logits / temperature
    p = logits.softmax(-1)
    sample = -(p * (logits + 1e-5).log_softmax(-1)).sum(-1).mean()
    mean = p.mean(0)
    return sample, -(mean * (mean.clamp(min=1e-5) if clamped else mean + 1e-5).log()).sum()


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of `z`."""
    return z + (quantized - z).detach()


def last(latents: Float[Tensor, "b d *grid"]) -> Float[Tensor, "b *grid d"]:
    """Channels last."""
    return torch.movedim(latents, 1, -1)


def first(latents: Float[Tensor, "b *grid d"]) -> Float[Tensor, "b d *grid"]:
    """Channels first."""
    return torch.movedim(latents, -1, 1)
