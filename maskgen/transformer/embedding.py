"""Tokens, some of them masked, to vectors: codes from a table, several codes per position, bits, continuous tokens."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, arange, nn, where, zeros

from maskgen.transformer.several_codes import group_size
from maskgen.transformer.specs import TokenSpec


class CodeEmbedding(nn.Module):
    """One vector per code."""

    def __init__(self, codebook_size: int, width: int):
        super().__init__()
        self.codes = nn.Embedding(codebook_size, width)

    def forward(self, codes: Int[Tensor, "b n 1"]) -> Float[Tensor, "b n w"]:
        return self.codes(codes[..., 0])


class SeveralCodesEmbedding(nn.Module):
    """The sum of one vector per code of a position, with a table for each; a mask token stands for a hidden code.

    Args:
        codebook_size, codes_per_position, width: see :class:`maskgen.transformer.specs.TokenSpec`.
    """

    def __init__(self, codebook_size: int, codes_per_position: int, width: int):
        super().__init__()
        self.codebook_size = codebook_size
        self.mask_token = nn.Parameter(zeros(codes_per_position, width))
        self.codes = nn.Embedding(codes_per_position * codebook_size, width)

    def forward(self, codes: Int[Tensor, "b n g"], masked: Bool[Tensor, "b n g"] | None) -> Float[Tensor, "b n w"]:
        rows = codes + self.codebook_size * arange(codes.shape[-1], device=codes.device)
        x = self.codes(rows)
        return (x if masked is None else where(masked[..., None], self.mask_token, x)).sum(-2)


class BitEmbedding(nn.Module):
    """The bits of a position's codes as -1 and 1, those of hidden codes as 0, through one linear layer (MaskBit,
    Weber et al. 2024, arXiv:2409.16211, section 3.3)."""

    def __init__(self, codebook_size: int, codes_per_position: int, width: int):
        super().__init__()
        self.bits = group_size(codebook_size, 1).bit_length() - 1
        self.projection = nn.Linear(codes_per_position * self.bits, width)

    def forward(self, codes: Int[Tensor, "b n g"], masked: Bool[Tensor, "b n g"] | None) -> Float[Tensor, "b n w"]:
        bits = (codes[..., None] >> arange(self.bits, device=codes.device)) & 1
        x = (2 * bits - 1).to(self.projection.weight.dtype)
        x = x if masked is None else x.masked_fill(masked[..., None], 0)
        return self.projection(x.flatten(-2))


class ContinuousEmbedding(nn.Module):
    """Continuous tokens through a linear layer."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.projection = nn.Linear(dim, width)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n w"]:
        return self.projection(tokens.to(self.projection.weight.dtype))


def token_embedding(spec: TokenSpec, width: int) -> nn.Module:
    """The embedding that a spec asks for. It takes tokens (b, n, codes or numbers). Several codes per position and bits
    are hidden one by one, so their embeddings also take the mask (b, n, codes)."""
    if spec.dim:
        return ContinuousEmbedding(spec.dim, width)
    if spec.embedding == "bits":
        return BitEmbedding(spec.codebook_size, spec.codes_per_position, width)
    if spec.codes_per_position > 1:
        return SeveralCodesEmbedding(spec.codebook_size, spec.codes_per_position, width)
    return CodeEmbedding(spec.codebook_size, width)
