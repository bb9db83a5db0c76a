"""Attention within windows of the token grid: spatial, spatio-temporal, or along single axes."""

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
    """A token grid cut into equal windows. Tokens attend to their window and to the `prefix` tokens without a position,
    which attend to all tokens.

    Args:
        grid: of the tokens.
        window: tokens of a window along each axis.
        prefix: number of tokens without a position, which come first.

    Raises:
        ValueError: the window has another number of axes than the grid, or does not tile it.
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
        """The windows, where a side of 0 is the whole axis; None if the window is the whole grid."""
        sides = tuple(w or n for n, w in zip(grid, window)) if len(grid) == len(window) else tuple(window)
        return None if sides == tuple(grid) else cls(tuple(grid), sides, prefix)

    def attend(
        self,
        q: Float[Tensor, "b n h d"],
        k: Float[Tensor, "b n h d"],
        v: Float[Tensor, "b n h d"],
        backend: Backend = "auto",
    ) -> Float[Tensor, "b n h d"]:
        """:func:`maskgen.transformer.attention.attend` within each window."""
        n = self.prefix
        inside = attend(self._cut(q[:, n:]), self._seen(k), self._seen(v), backend)
        made = rearrange(inside, f"{self._windows} -> {self._row_major}", **self._sizes)
        return torch.cat([attend(q[:, :n], k, v, backend), made], 1) if n else made

    def barred(self, device: torch.device | None = None) -> Bool[Tensor, "n n"]:
        """The mask with which full attention equals :meth:`attend`: True where a query must not see a key."""
        sides = torch.tensor(self.window, device=device)
        of = (coordinates(self.grid, device).long() // sides).float()
        apart = (of[:, None] != of).any(-1)
        return torch.nn.functional.pad(apart, (self.prefix, 0, self.prefix, 0), value=False)

    def _seen(self, x: Float[Tensor, "b n h d"]) -> Float[Tensor, "bw m h d"]:
        """The keys or values of each window: those of the prefix, then its own."""
        own = self._cut(x[:, self.prefix :])
        if not self.prefix:
            return own
        front = x[:, : self.prefix].repeat_interleave(len(own) // len(x), 0)
        return torch.cat([front, own], 1)

    def _cut(self, x: Float[Tensor, "b n h d"]) -> Float[Tensor, "bw m h d"]:
        """The windows as rows of a batch."""
        return rearrange(x, f"{self._row_major} -> {self._windows}", **self._sizes)

    @property
    def _windows(self) -> str:
        """The einops pattern of tokens by window."""
        axes = range(len(self.grid))
        return f"(b {' '.join(f'n{i}' for i in axes)}) ({' '.join(f'w{i}' for i in axes)}) h d"

    @property
    def _row_major(self) -> str:
        """The einops pattern of tokens in row-major order."""
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
    """What is added to the attention scores of each block, or None.

    It is the relative bias of the block. In a block with windows it is also -inf outside the window, if attention
    cannot be computed per window because there is a bias, a subset of the tokens, or a barred token.

    Args:
        windows: of each block.
        relative: the tables of relative biases.
        grid, prefix, heads: of the tokens and of the attention.
        keep: positions of the tokens, or None for all.
        like: a tensor with the dtype and device of the scores.
        barred: whether other -inf will be added, for tokens that do not exist.
    """
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
