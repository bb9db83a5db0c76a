"""Canvases larger than the trained grid, a window at a time, growing from what is known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from jaxtyping import Bool, Shaped
from torch import Tensor

from maskgen.tokenizer.tiling import spans

Place = tuple[slice, ...]


def windows(grid: tuple[int, ...], window: tuple[int, ...], overlap: int) -> list[Place]:
    """Windows that cover `grid`, neighbours sharing at least `overlap` tokens along each axis.

    Raises:
        ValueError: the grid is smaller than the window, or the overlap as large as it.
    """
    if len(grid) != len(window) or any(n < w for n, w in zip(grid, window)):
        raise ValueError(f"a canvas of {grid} tokens is smaller than the trained grid of {window}")
    if not 0 <= overlap < min(window):
        raise ValueError(f"overlap {overlap} must be at least 0 and below the {min(window)} tokens of a window")
    axes = [spans(n, w, overlap) for n, w in zip(grid, window)]
    return [tuple(slice(s.start, s.stop) for s in place) for place in product(*axes)]


def complete_by_windows(
    complete: Callable[[Tensor, Tensor, Place], Tensor],
    canvas: Shaped[Tensor, "b *tokens"],
    mask: Bool[Tensor, "b *grid"],
    window: tuple[int, ...],
    overlap: int,
) -> Shaped[Tensor, "b *tokens"]:
    """Complete the window with the fewest hidden tokens first; what it got is known to the next.

    Args:
        complete: (tokens, mask, place) of a window -> its tokens.
        window: the trained grid.
        overlap: tokens that neighbouring windows share.

    Raises:
        ValueError: see :func:`windows`.
    """
    if tuple(mask.shape[1:]) == tuple(window):
        return complete(canvas, mask, (slice(None),) * len(window))
    left = [(slice(None), *place) for place in windows(tuple(mask.shape[1:]), window, overlap)]
    tokens, hidden = canvas.clone(), mask.clone()
    while left := [place for place in left if hidden[place].any()]:
        place = min(left, key=lambda p: int(hidden[p].sum()))
        tokens[place] = complete(tokens[place], hidden[place], place[1:])
        hidden[place] = False
    return tokens
