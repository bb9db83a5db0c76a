"""Attention within windows of the token grid, by reshaping: spatial, spatio-temporal, or along single axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from maskgen.transformer.attention import Backend, attend
from maskgen.transformer.kept import kept_pairs
from maskgen.transformer.positions import coordinates
from maskgen.transformer.relative import biases


@dataclass(frozen=True)
class Windows:
    """A token grid cut into equal windows. A token attends to those of its window and to the `prefix` tokens without a
    place, which are seen by every window and attend to everything.

    Raises:
        ValueError: windows of another number of axes, or that do not tile the grid.
    """

    grid: tuple[int, ...]
    window: tuple[int, ...]
    prefix: int = 0

    def __post_init__(self) -> None:
        if len(self.grid) != len(self.window) or any(n % w for n, w in zip(self.grid, self.window)):
            raise ValueError(
                f"windows of {self.window} tokens do not tile a grid of {self.grid}: give a divisor of each axis, or 0 "
                "for the whole of it"
            )

    @classmethod
    def of(cls, grid: tuple[int, ...], window: Sequence[int], prefix: int = 0) -> Windows | None:
        """With 0 for a whole axis; None where the window is the whole grid."""
        sides = tuple(w or n for n, w in zip(grid, window)) if len(grid) == len(window) else tuple(window)
        return None if sides == tuple(grid) else cls(tuple(grid), sides, prefix)

    def attend(
        self,
        q: Float[Tensor, "b n h d"],
        k: Float[Tensor, "b n h d"],
        v: Float[Tensor, "b n h d"],
        backend: Backend = "auto",
    ) -> Float[Tensor, "b n h d"]:
        """:func:`maskgen.transformer.attention.attend` in every window."""
        n = self.prefix
        inside = attend(self._cut(q[:, n:]), self._seen(k), self._seen(v), backend)
        made = rearrange(inside, f"{self._windows} -> {self._places}", **self._sizes)
        return torch.cat([attend(q[:, :n], k, v, backend), made], 1) if n else made

    def barred(self, device: torch.device | None = None) -> Bool[Tensor, "n n"]:
        """Which key a query does not see: the same attention as a mask of full attention, prefix tokens first."""
        sides = torch.tensor(self.window, device=device)
        of = (coordinates(self.grid, device).long() // sides).float()
        apart = (of[:, None] != of).any(-1)
        return torch.nn.functional.pad(apart, (self.prefix, 0, self.prefix, 0), value=False)

    def _seen(self, x: Float[Tensor, "b n h d"]) -> Float[Tensor, "bw m h d"]:
        """What each window sees: the prefix tokens and its own."""
        own = self._cut(x[:, self.prefix :])
        if not self.prefix:
            return own
        front = x[:, : self.prefix].repeat_interleave(len(own) // len(x), 0)
        return torch.cat([front, own], 1)

    def _cut(self, x: Float[Tensor, "b n h d"]) -> Float[Tensor, "bw m h d"]:
        """Windows as rows of a batch."""
        return rearrange(x, f"{self._places} -> {self._windows}", **self._sizes)

    @property
    def _windows(self) -> str:
        """Windows, and places in them."""
        axes = range(len(self.grid))
        return f"(b {' '.join(f'n{i}' for i in axes)}) ({' '.join(f'w{i}' for i in axes)}) h d"

    @property
    def _places(self) -> str:
        """TokenLayout of the grid in row-major order."""
        return f"b ({' '.join(f'n{i} w{i}' for i in range(len(self.grid)))}) h d"

    @property
    def _sizes(self) -> dict[str, int]:
        counts = {f"n{i}": n // w for i, (n, w) in enumerate(zip(self.grid, self.window))}
        return {**counts, **{f"w{i}": w for i, w in enumerate(self.window)}}


def block_scores(
    windows: Sequence[Windows | None],
    relative: nn.ModuleList,
    grid: tuple[int, ...],
    prefix: int,
    heads: int,
    keep: Int[Tensor, "b m"] | None,
    like: Tensor,
    barred: bool = False,
) -> list[Tensor | None]:
    """What the scores of each block gain: its relative bias; and -inf outside its window where it cannot be cut into
    windows, having such a bias, only the tokens at `keep`, or tokens that are to be `barred`. `like`: a tensor of their
    dtype and device."""
    gains: list[Tensor | None] = list(biases(relative, len(windows), grid, prefix, keep))
    if keep is None and not relative and not barred:
        return gains
    bars: dict[Windows, Tensor] = {}
    for window in {w for w in windows if w is not None}:
        apart = window.barred(like.device)[None]
        apart = apart if keep is None else kept_pairs(apart[0], keep, prefix)
        bar = torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, -torch.inf)
        bars[window] = bar[:, None].expand(-1, heads, -1, -1)
    for i, within in enumerate(windows):
        if within is not None:
            bias = gains[i]
            gains[i] = bars[within] if bias is None else bias + bars[within]
    return gains
