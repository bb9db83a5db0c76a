"""Continuous tokens instead of codes: the latents themselves, or the Gaussians of a variational autoencoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.tokenizer.quantizers.base import Quantized, first, last


class Identity(nn.Module):
    """No quantization: the tokens are the latents.

    Args:
        dim: dimension of a token.
    """

    codes_per_position = 1
    codebook_size = 0

    def __init__(self, dim: int = 16):
        super().__init__()
        self.dim = dim
        self.register_buffer("nothing", torch.zeros(1))  # diffusers saves no file without a tensor

    def forward(self, latents: Float[Tensor, "b d *grid"]) -> Quantized:
        return Quantized(latents, last(latents), latents.new_zeros(()))

    def embed(self, codes: Float[Tensor, "b *grid d"]) -> Float[Tensor, "b d *grid"]:
        """The tokens, channels first."""
        return first(codes)


class Gaussian(nn.Module):
    """The Gaussian tokens of a variational autoencoder (Kingma and Welling 2014, arXiv:1312.6114, appendix B).

    The encoder predicts a mean and a log-variance for each value. Tokens are samples in training and means in
    evaluation, as in GIVT (arXiv:2312.02116, section 3.1).

    Args:
        dim: dimension of a token; the encoder has twice as many channels.
        kl: weight of the KL divergence from a standard normal, averaged over all values. GIVT's beta weighs the sum
            over an image, so it is dim x tokens times smaller.

    Raises:
        ValueError: `kl` is negative.
    """

    codes_per_position = 1
    codebook_size = 0

    def __init__(self, dim: int = 16, kl: float = 1e-3):
        super().__init__()
        if kl < 0:
            raise ValueError(f"kl {kl} must be at least 0")
        self.dim, self.latent_dim, self.kl = dim, 2 * dim, kl
        self.register_buffer("nothing", torch.zeros(1))  # diffusers saves no file without a tensor

    def forward(self, latents: Float[Tensor, "b e *grid"]) -> Quantized:
        mean, log_variance = latents.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        tokens = mean + (log_variance / 2).exp() * torch.randn_like(mean) if self.training else mean
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return Quantized(tokens, last(tokens), self.kl * divergence, {"kl": divergence})

    def embed(self, codes: Float[Tensor, "b *grid d"]) -> Float[Tensor, "b d *grid"]:
        """The tokens, channels first."""
        return first(codes)
