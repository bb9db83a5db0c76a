"""`Conditioning`: the conditions of a network as plain tensors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def take_rows(value: Any, rows: Tensor | slice) -> Any:
    """The given rows of a dataclass of tensors with a batch axis, tuples with one entry per row, and None."""

    def some(field: Any) -> Any:
        if isinstance(field, Tensor):
            return field[rows]
        if isinstance(field, tuple):
            index = range(len(field))[rows] if isinstance(rows, slice) else rows.tolist()
            return tuple(field[i] for i in index)
        return field

    return replace(value, **{field.name: some(getattr(value, field.name)) for field in fields(value)})


@dataclass(frozen=True)
class Conditioning:
    """The conditions of a batch. Any field may be None.

    Args:
        pooled: float (b, w), one vector per row.
        tokens: float (b, m, w), a sequence per row.
        mask: bool (b, m), True at the `tokens` that exist; None means that all exist.
        features: float (b, n, w), one vector per position of the token grid in row-major order.
        shown: tokens (b, n) or (b, n, d) that replace the mask token at hidden positions (COMMIT of MAGVIT,
            arXiv:2212.05199, section 3.2).
        shown_at: bool (b, n), the positions where `shown` holds.
        keys: one hashable per row. Rows with equal keys have equal conditions, so a network computes them once. None
            means that nothing is known about equality.
    """

    pooled: Float[Tensor, "b w"] | None = None
    tokens: Float[Tensor, "b m w"] | None = None
    mask: Bool[Tensor, "b m"] | None = None
    features: Float[Tensor, "b n w"] | None = None
    shown: Shaped[Tensor, "b n *d"] | None = None
    shown_at: Bool[Tensor, "b n"] | None = None
    keys: tuple[Hashable, ...] | None = None

    def rows(self, index: Tensor | slice) -> Conditioning:
        """The rows at `index` (int64 positions or a slice)."""
        return take_rows(self, index)


def merge(parts: Sequence[Conditioning]) -> Conditioning:
    """The conditions of several conditioners for the same rows.

    Pooled vectors and features are added, in the given order; sequences are concatenated; keys become tuples.
    """
    if len(parts) == 1:
        return parts[0]

    def total(name: str) -> Tensor | None:
        there = [getattr(part, name) for part in parts if getattr(part, name) is not None]
        return sum(there[1:], there[0]) if there else None

    sequences = [part for part in parts if part.tokens is not None]
    mask = None
    if any(part.mask is not None for part in sequences):
        mask = torch.cat([_mask(part) for part in sequences], 1)
    keys = None
    if all(part.keys is not None for part in parts):
        keys = tuple(zip(*(part.keys or () for part in parts)))
    shown = next((part for part in parts if part.shown is not None), Conditioning())
    return Conditioning(
        total("pooled"),
        torch.cat([part.tokens for part in sequences if part.tokens is not None], 1) if sequences else None,
        mask,
        total("features"),
        shown.shown,
        shown.shown_at,
        keys,
    )


def stack(parts: Sequence[Conditioning]) -> Conditioning:
    """The rows of several conditionings, one after the other. All must have the same fields.

    Raises:
        ValueError: a field is missing in some of them.
    """

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        missing = [value is None for value in values]
        if all(missing):
            return None
        if name == "keys":
            return None if any(missing) else tuple(key for value in values for key in value)
        if any(missing):
            raise ValueError(f"some of the conditionings have no {name}: stack those that have the same fields")
        return torch.cat(values)

    return Conditioning(**{field.name: joined(field.name) for field in fields(Conditioning)})


def _mask(part: Conditioning) -> Tensor:
    assert part.tokens is not None
    return part.tokens.new_ones(part.tokens.shape[:2], dtype=torch.bool) if part.mask is None else part.mask
