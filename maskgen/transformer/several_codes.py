"""Several codes per position: groups of the bits of one code (MaskBit), or the codes of a multichannel tokenizer."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, arange

from maskgen.transformer.kept import take


def group_size(codebook_size: int, codes_per_position: int) -> int:
    """The number of codes of a group, if the bits of a code are split into `codes_per_position` equal groups.

    Raises:
        ValueError: the bits cannot be split in this way.
    """
    bits = codebook_size.bit_length() - 1
    if codebook_size != 1 << bits or bits % codes_per_position:
        raise ValueError(
            f"{codebook_size} codes do not split into {codes_per_position} groups of bits; set "
            "codes_per_position: 1, or take a codebook of 2^bits codes (LFQ) whose bits are a multiple of codes_per_position"
        )
    return 1 << (bits // codes_per_position)


def split_codes(codes: Int[Tensor, "b *grid"], size: int, codes_per_position: int) -> Int[Tensor, "b *grid g"]:
    """The digits of each code to the base `size`, the lowest first. The inverse is :func:`join_codes`."""
    return codes[..., None] // size ** arange(codes_per_position, device=codes.device) % size


def join_codes(parts: Int[Tensor, "b *grid g"], size: int) -> Int[Tensor, "b *grid"]:
    """The inverse of :func:`split_codes`."""
    return (parts * size ** arange(parts.shape[-1], device=parts.device)).sum(-1)


def asked_positions(
    predict_at: Int[Tensor, "b k"], codes_per_position: int, count: int
) -> tuple[Int[Tensor, "b k"] | None, Int[Tensor, "b k"] | None]:
    """The positions at which the network must predict the codes at `predict_at`.

    Args:
        predict_at: flat indices of codes, int64 (b, k).
        codes_per_position: codes at each position.
        count: number of positions.

    Returns:
        The positions, or None for all of them, which is cheaper if there are more codes than positions; and the indices
        of the codes among the predictions, or None if the predictions are already in order.
    """
    if codes_per_position == 1:
        return predict_at, None
    if predict_at.shape[1] >= count:
        return None, predict_at
    order = arange(predict_at.shape[1], device=predict_at.device)
    return predict_at // codes_per_position, order * codes_per_position + predict_at % codes_per_position


def by_code(
    predictions: Float[Tensor, "b k p"], codes_per_position: int, index: Int[Tensor, "b m"] | None
) -> Float[Tensor, "b n p2"]:
    """Predictions per position -> predictions per code, those at `index` if it is given."""
    if codes_per_position > 1:
        predictions = predictions.unflatten(-1, (codes_per_position, -1)).flatten(1, 2)
    return predictions if index is None else take(predictions, index)
