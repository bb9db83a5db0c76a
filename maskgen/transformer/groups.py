"""Several codes a place: a code cut into groups of its bits (MaskBit), or the levels of a multichannel tokenizer."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, arange, nn, where, zeros

from maskgen.transformer.kept import take


def group_size(codebook_size: int, groups: int) -> int:
    """Codes of one of `groups` equal parts of a code's bits.

    Raises:
        ValueError: the codebook does not split so.
    """
    bits = codebook_size.bit_length() - 1
    if codebook_size != 1 << bits or bits % groups:
        raise ValueError(
            f"{codebook_size} codes do not split into {groups} groups of bits; the codebook must be 2^bits with bits a "
            f"multiple of groups (LFQ's are), or set groups: 1"
        )
    return 1 << (bits // groups)


def split_codes(codes: Int[Tensor, "b *grid"], size: int, groups: int) -> Int[Tensor, "b *grid g"]:
    """Codes as `groups` digits to the base `size`, the lowest first; the inverse is :func:`join_codes`."""
    return codes[..., None] // size ** arange(groups, device=codes.device) % size


def join_codes(parts: Int[Tensor, "b *grid g"], size: int) -> Int[Tensor, "b *grid"]:
    """The inverse of :func:`split_codes`."""
    return (parts * size ** arange(parts.shape[-1], device=parts.device)).sum(-1)


def asked_places(
    positions: Int[Tensor, "b k"], groups: int, count: int
) -> tuple[Int[Tensor, "b k"] | None, Int[Tensor, "b k"] | None]:
    """Of flat positions of codes, `groups` at each of `count` places: the places (None: all), and where the codes then
    stand among the predictions (None: as they come).

    Asked for more codes than there are places, it is cheaper to predict all.
    """
    if groups == 1:
        return positions, None
    if positions.shape[1] >= count:
        return None, positions
    return positions // groups, arange(positions.shape[1], device=positions.device) * groups + positions % groups


def by_code(
    predictions: Float[Tensor, "b k p"], groups: int, index: Int[Tensor, "b m"] | None
) -> Float[Tensor, "b n p2"]:
    """Predictions of places as those of their codes one after the other, those at `index` where it is given."""
    if groups > 1:
        predictions = predictions.unflatten(-1, (groups, -1)).flatten(1, 2)
    return predictions if index is None else take(predictions, index)


class CodeEmbedding(nn.Module):
    """The sum of one vector for each of a place's codes, from a table a group; a mask token a group stands for a hidden
    one."""

    def __init__(self, codebook_size: int, groups: int, width: int):
        super().__init__()
        self.codebook_size = codebook_size
        self.code_embedding = nn.Embedding(groups * codebook_size, width)
        self.mask_token = nn.Parameter(zeros(groups, width))

    def forward(self, codes: Int[Tensor, "b n g"], masked: Bool[Tensor, "b n g"] | None) -> Float[Tensor, "b n w"]:
        rows = codes + self.codebook_size * arange(codes.shape[-1], device=codes.device)
        x = self.code_embedding(rows)
        return (x if masked is None else where(masked[..., None], self.mask_token, x)).sum(-2)


class BitEmbedding(nn.Module):
    """No table: the bits of a place's codes as -1 and 1, those of hidden groups as 0, through one linear layer
    (MaskBit, Weber et al. 2024, arXiv:2409.16211, section 3.3)."""

    def __init__(self, codebook_size: int, groups: int, width: int):
        super().__init__()
        self.bits = group_size(codebook_size, 1).bit_length() - 1
        self.projection = nn.Linear(groups * self.bits, width)

    def forward(self, codes: Int[Tensor, "b n g"], masked: Bool[Tensor, "b n g"] | None) -> Float[Tensor, "b n w"]:
        bits = (codes[..., None] >> arange(self.bits, device=codes.device)) & 1
        x = (2 * bits - 1).to(self.projection.weight.dtype)
        x = x if masked is None else x.masked_fill(masked[..., None], 0)
        return self.projection(x.flatten(-2))
