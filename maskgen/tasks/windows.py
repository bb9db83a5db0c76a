"""Canvases larger than the trained grid are completed window by window, from the known tokens outwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from jaxtyping import Bool, Shaped
from torch import Tensor

from maskgen.tokenizer.tiling import spans

Window = tuple[slice, ...]


def windows(grid: tuple[int, ...], size: tuple[int, ...], overlap: int | tuple[int, ...]) -> list[Window]:
    """Windows of `size` tokens that cover `grid`; neighbours share at least `overlap` tokens along each axis.

    Args:
        overlap: one number for all axes, or one per axis.

    Raises:
        ValueError: the grid is smaller than a window, or the overlap is not below the size of a window.
    """
    if len(grid) != len(size) or any(n < side for n, side in zip(grid, size)):
        raise ValueError(f"a canvas of {grid} tokens is smaller than the trained grid of {size}")
    shares = (overlap,) * len(size) if isinstance(overlap, int) else overlap
    for share, side in zip(shares, size):
        if not 0 <= share < side:
            raise ValueError(f"overlap {share} must be at least 0 and below the {side} tokens of a window")
    axes = [spans(n, side, share) for n, side, share in zip(grid, size, shares)]
    return [tuple(slice(s.start, s.stop) for s in window) for window in product(*axes)]


def complete_by_windows(
    complete: Callable[[Tensor, Tensor, Window], Tensor],
    canvas: Shaped[Tensor, "b *tokens"],
    mask: Bool[Tensor, "b *grid"],
    size: tuple[int, ...],
    overlap: int | tuple[int, ...],
) -> Shaped[Tensor, "b *tokens"]:
    """Complete the window with the fewest hidden tokens first; its tokens are known to the windows after it.

    Args:
        complete: ``(tokens, mask, window) -> tokens`` completes the canvas at one window.
        size: the trained grid, which is the size of a window.
        overlap: tokens that neighbouring windows share, see :func:`windows`.

    Raises:
        ValueError: see :func:`windows`.
    """
    if tuple(mask.shape[1:]) == tuple(size):
        return complete(canvas, mask, (slice(None),) * len(size))
    left = [(slice(None), *window) for window in windows(tuple(mask.shape[1:]), size, overlap)]
    tokens, hidden = canvas.clone(), mask.clone()
    while left := [window for window in left if hidden[window].any()]:
        window = min(left, key=lambda w: int(hidden[w].sum()))
        tokens[window] = complete(tokens[window], hidden[window], window[1:])
        hidden[window] = False
    return tokens
