"""Several codes a place: a code cut into groups of its bits (MaskBit), or the levels of a multichannel tokenizer."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, arange

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
            f"multiple of groups (LFQ's are), or set tokens.codes_per_position: 1"
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
