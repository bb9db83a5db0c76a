"""How well a tokenizer reconstructs, and how much of its codebook it uses."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def psnr(made: Float[Tensor, "n c h w"], original: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Peak signal-to-noise ratio of each picture in dB; pixels in [-1, 1] are clipped, so the peak is 2."""
    error = (made.float().clamp(-1, 1) - original.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def codebook_use(codes: Int[Tensor, "n"], codebook_size: int) -> dict[str, float]:
    """``use``: share of codes that occur; ``perplexity``: exp of the entropy of their frequencies."""
    p = torch.bincount(codes, minlength=codebook_size).double() / codes.numel()
    entropy = -(p * p.clamp(min=1e-30).log()).sum()
    return {"use": float((p > 0).double().mean()), "perplexity": float(entropy.exp())}
