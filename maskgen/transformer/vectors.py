"""The tokenizer's code vectors, which tell a transformer which codes are similar."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class CodeVectors(nn.Module):
    """Adds the tokenizer's code vectors to the embedding, and products with them to the logits.

    Both use learned linear maps and are added to the transformer's own embeddings and head. Without them the
    transformer has to learn for each code which other codes look similar.

    Args:
        codebook_size, dim: of the codebook. The vectors are zero until :meth:`take`, and are saved with the weights.
        width: width of the embedding.
        last_width: width of the input of the head.
    """

    vectors: Tensor

    def __init__(self, codebook_size: int, dim: int, width: int, last_width: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(codebook_size, dim))
        self.into, self.out = nn.Linear(dim, width), nn.Linear(last_width, dim)

    @torch.no_grad()
    def take(self, vectors: Float[Tensor, "k d"]) -> None:
        """Stores the vectors, with each dimension standardised over the codebook."""
        deviation, mean = torch.std_mean(vectors.float(), 0)
        self.vectors.copy_((vectors - mean) / deviation.clamp(min=1e-6))

    def embed(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b n w"]:
        return self.into(self.vectors[codes])

    def logits(self, features: Float[Tensor, "b n w"]) -> Float[Tensor, "b n k"]:
        return self.out(features) @ self.vectors.T / self.vectors.shape[1]
