"""The tokenizer's code vectors, for a transformer that would otherwise have to learn which codes are alike."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class CodeVectors(nn.Module):
    """Codes by what they mean: their vectors go into the embedding, and logits are products with them.

    Both come on top of the transformer's own table and head, through learned linear maps. Without them two codes that
    look alike are as foreign as any two, and a thousand of them take long to be learned one by one.

    Args:
        codebook_size, dim: of the codebook; zeros until :meth:`take` is called, then saved with the weights.
        width: of the embedding; last_width: of what the head sees.
    """

    vectors: Tensor

    def __init__(self, codebook_size: int, dim: int, width: int, last_width: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(codebook_size, dim))
        self.into, self.out = nn.Linear(dim, width), nn.Linear(last_width, dim)

    @torch.no_grad()
    def take(self, vectors: Float[Tensor, "k d"]) -> None:
        """Keep these, each number standardised over the codebook."""
        deviation, mean = torch.std_mean(vectors.float(), 0)
        self.vectors.copy_((vectors - mean) / deviation.clamp(min=1e-6))

    def embed(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b n w"]:
        return self.into(self.vectors[codes])

    def logits(self, features: Float[Tensor, "b n w"]) -> Float[Tensor, "b n k"]:
        return self.out(features) @ self.vectors.T / self.vectors.shape[1]
