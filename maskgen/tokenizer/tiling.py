"""Pictures too large for memory, a tile at a time.

Tiles overlap. Decoded tiles are blended linearly over the overlap; of encoded tiles each keeps the codes nearest to its
middle. The result is not the whole picture's: a GroupNorm takes the statistics of what it sees, and attention sees a
tile only. docs/tokenizers.md says how much that matters.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from maskgen.tokenizer.model import Tokenizer


@torch.no_grad()
def tiled_encode(
    tokenizer: Tokenizer, pixels: Float[Tensor, "b c H W"], tile: int = 512, overlap: int = 128
) -> Shaped[Tensor, "b *grid"]:
    """Codes of large pictures.

    Args:
        pixels: in [-1, 1].
        tile, overlap: in pixels; rounded up to whole tokens.

    Raises:
        ValueError: what :meth:`Tokenizer.encode` raises; 1-D tokens; an overlap of half a tile or more.
    """
    size = (pixels.shape[2], pixels.shape[3])
    grid = _grid(tokenizer, size)
    factor = size[0] // grid[0]
    tile, overlap = -(-tile // factor), -(-overlap // factor)  # now in tokens
    columns = _kept(_spans(grid[1], tile, overlap))
    rows = []
    for y, keep_y in _kept(_spans(grid[0], tile, overlap)):
        row = []
        for x, keep_x in columns:
            part = pixels[:, :, y.start * factor : y.stop * factor, x.start * factor : x.stop * factor]
            row.append(tokenizer.encode(part)[:, keep_y, keep_x])
        rows.append(torch.cat(row, 2))
    return torch.cat(rows, 1)


@torch.no_grad()
def tiled_decode(
    tokenizer: Tokenizer, codes: Shaped[Tensor, "b *grid"], tile: int = 64, overlap: int = 16
) -> Float[Tensor, "b c H W"]:
    """Pixels of large grids of codes, on the codes' device, in float32.

    Args:
        codes: (b, h, w), or (b, h, w, d) with several codes a place or continuous tokens.
        tile, overlap: in tokens.

    Raises:
        ValueError: what :meth:`Tokenizer.decode` raises; 1-D tokens; an overlap of half a tile or more.
    """
    if codes.ndim < 3:
        raise ValueError("1-D tokens have no place in the picture; decode them without tiles")
    height, width = codes.shape[1:3]
    canvas = weights = torch.empty(0)
    for y in _spans(height, tile, overlap):
        for x in _spans(width, tile, overlap):
            made = tokenizer.decode(codes[:, y.start : y.stop, x.start : x.stop]).float()
            factor = made.shape[2] // len(y)
            if canvas.numel() == 0:
                canvas = made.new_zeros(*made.shape[:2], height * factor, width * factor)
                weights = made.new_zeros(height * factor, width * factor)
            share = _ramp(y, height, overlap, factor, made)[:, None] * _ramp(x, width, overlap, factor, made)
            place = (slice(y.start * factor, y.stop * factor), slice(x.start * factor, x.stop * factor))
            canvas[(..., *place)] += made * share
            weights[place] += share
    return canvas / weights


def _grid(tokenizer: Tokenizer, size: tuple[int, int]) -> tuple[int, int]:
    grid = tokenizer.grid(size)
    if len(grid) != 2:
        raise ValueError("1-D tokens have no place in the picture; encode it whole, at the trained size")
    return grid[0], grid[1]


def _spans(length: int, tile: int, overlap: int) -> list[range]:
    """Tiles that cover `length`, all of one size, neighbours sharing at least `overlap`."""
    if not 0 <= overlap < tile / 2:
        raise ValueError(f"overlap {overlap} must be at least 0 and below half the tile of {tile}")
    if length <= tile:
        return [range(length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [range(start, start + tile) for start in starts]


def _kept(spans: list[range]) -> list[tuple[range, slice]]:
    """Each tile with the part of it that is kept: up to the middle of what it shares with each neighbour."""
    cuts = [(a.stop + b.start) // 2 for a, b in pairwise(spans)]
    edges = [spans[0].start, *cuts, spans[-1].stop]
    return [(s, slice(edges[i] - s.start, edges[i + 1] - s.start)) for i, s in enumerate(spans)]


def _ramp(span: range, length: int, overlap: int, factor: int, like: Tensor) -> Float[Tensor, "n"]:
    """A tile's weight along one side: rising over the overlap from a neighbour, 1 in the middle and at the border."""
    n, ramp = len(span) * factor, overlap * factor
    place = torch.arange(n, device=like.device, dtype=torch.float32) + 0.5
    left = (place / ramp).clamp(max=1) if span.start > 0 and ramp else torch.ones_like(place)
    right = ((n - place) / ramp).clamp(max=1) if span.stop < length and ramp else torch.ones_like(place)
    return left * right
