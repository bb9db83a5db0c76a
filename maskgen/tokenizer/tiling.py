"""Images that are too large for memory are encoded and decoded in tiles.

Tiles overlap. Decoded tiles are blended linearly over the overlap; each encoded tile keeps the codes nearest to its
middle. GroupNorm depends on the whole tile, so independent tiles would differ in brightness and colour. To avoid this,
the norms first measure their statistics over a sample of crops, and all tiles use these statistics. Attention still
sees only one tile. docs/tokenizers.md has measurements of the remaining differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from maskgen.tokenizer.model import Tokenizer

SAMPLE = (
    4  # crops along each side for the statistics of the norms; each has half a tile's side, so all have 4 tiles' area
)


@torch.no_grad()
def tiled_encode(
    tokenizer: Tokenizer, pixels: Float[Tensor, "b c H W"], tile: int = 512, overlap: int = 128
) -> Shaped[Tensor, "b *grid"]:
    """Encode large images in tiles, one image after the other.

    Args:
        pixels: values in [-1, 1].
        tile, overlap: sides in pixels, rounded up to whole tokens.

    Raises:
        ValueError: as :meth:`Tokenizer.encode`; the tokenizer has 1-D tokens; the overlap is half a tile or more.
    """
    size = (pixels.shape[2], pixels.shape[3])
    grid = _grid(tokenizer, size)
    factor = size[0] // grid[0]
    tile, overlap = -(-tile // factor), -(-overlap // factor)  # now in tokens
    rows, columns = _kept(_spans(grid[0], tile, overlap)), _kept(_spans(grid[1], tile, overlap))

    def crop(image: Tensor, y: range, x: range) -> Tensor:
        return image[:, :, y.start * factor : y.stop * factor, x.start * factor : x.stop * factor]

    made = []
    for image in pixels.split(1):
        with shared_norms(tokenizer.encoder) as measure:
            if len(rows) * len(columns) > 1:
                sample = [crop(image, y, x) for y, x in _sample(grid, tile // 2)]
                measure(tokenizer.encode, torch.cat(sample))
            parts = [[tokenizer.encode(crop(image, y, x))[:, i, j] for x, j in columns] for y, i in rows]
        made.append(torch.cat([torch.cat(row, 2) for row in parts], 1))
    return torch.cat(made)


@torch.no_grad()
def tiled_decode(
    tokenizer: Tokenizer, codes: Shaped[Tensor, "b *grid"], tile: int = 64, overlap: int = 16
) -> Float[Tensor, "b c H W"]:
    """Decode large grids of codes in tiles, one image after the other.

    Args:
        codes: (b, h, w), or (b, h, w, d) with several codes per position or continuous tokens.
        tile, overlap: sides in tokens.

    Returns:
        The pixels in float32, on the device of the codes.

    Raises:
        ValueError: as :meth:`Tokenizer.decode`; the tokenizer has 1-D tokens; the overlap is half a tile or more.
    """
    if codes.ndim < 3:
        raise ValueError("1-D tokens have no position in the image; decode them without tiles")
    height, width = codes.shape[1:3]
    tiles = [(y, x) for y in _spans(height, tile, overlap) for x in _spans(width, tile, overlap)]
    made = []
    for image in codes.split(1):
        canvas = weights = torch.empty(0)
        with shared_norms(tokenizer.decoder) as measure:
            if len(tiles) > 1:
                sample = [_crop(image, y, x) for y, x in _sample((height, width), tile // 2)]
                measure(tokenizer.decode, torch.cat(sample))
            for y, x in tiles:
                part = tokenizer.decode(_crop(image, y, x)).float()
                factor = part.shape[2] // len(y)
                if canvas.numel() == 0:
                    canvas = part.new_zeros(*part.shape[:2], height * factor, width * factor)
                    weights = part.new_zeros(height * factor, width * factor)
                share = _ramp(y, height, overlap, factor, part)[:, None] * _ramp(x, width, overlap, factor, part)
                window = (slice(y.start * factor, y.stop * factor), slice(x.start * factor, x.stop * factor))
                canvas[(..., *window)] += part * share
                weights[window] += share
        made.append(canvas / weights)
    return torch.cat(made)


@contextmanager
def shared_norms(module: nn.Module) -> Iterator[Any]:
    """A context that gives ``measure(function, batch)``, which fixes the statistics of every GroupNorm of `module`.

    ``measure`` calls ``function(batch)`` and computes the statistics over the whole batch. From then on, within the
    context, the norms use these statistics. Before that call they work as usual.
    """
    norms: list[Any] = [m for m in module.modules() if isinstance(m, nn.GroupNorm)]
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    measuring = False

    def normed(norm: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if not measuring and norm not in found:
            return output
        x = inputs[0].float().unflatten(1, (norm.num_groups, -1))
        if measuring:
            variance, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0, keepdim=True)
            found[norm] = ((variance + norm.eps).rsqrt(), mean)
        scale, mean = found[norm]
        shape = (1, -1, *[1] * (output.ndim - 2))
        y = ((x - mean) * scale).flatten(1, 2)
        return (y * norm.weight.float().view(shape) + norm.bias.float().view(shape)).to(output.dtype)

    def measure(function: Callable[[Tensor], object], batch: Tensor) -> None:
        nonlocal measuring
        measuring = True
        function(batch)
        measuring = False

    hooks = [norm.register_forward_hook(normed) for norm in norms]
    try:
        yield measure
    finally:
        for hook in hooks:
            hook.remove()


def _crop(codes: Tensor, y: range, x: range) -> Tensor:
    return codes[:, y.start : y.stop, x.start : x.stop]


def _sample(grid: tuple[int, int], side: int) -> list[tuple[range, range]]:
    """Evenly spread crops of one size, which overlap in small images."""

    def along(length: int) -> list[range]:
        near = min(side, length)
        starts = [round(i * (length - near) / (SAMPLE - 1)) for i in range(SAMPLE)]
        return [range(start, start + near) for start in starts]

    return [(y, x) for y in along(grid[0]) for x in along(grid[1])]


def _grid(tokenizer: Tokenizer, size: tuple[int, int]) -> tuple[int, int]:
    grid = tokenizer.grid(size)
    if len(grid) != 2:
        raise ValueError("1-D tokens have no position in the image; encode the whole image, at the size of training")
    return grid[0], grid[1]


def _spans(length: int, tile: int, overlap: int) -> list[range]:
    """:func:`spans` of tiles that no third one may reach into."""
    if not 0 <= overlap < tile / 2:
        raise ValueError(f"overlap {overlap} must be at least 0 and below half the tile of {tile}")
    return spans(length, tile, overlap)


def spans(length: int, tile: int, overlap: int) -> list[range]:
    """Tiles of one size that cover `length`; neighbours share at least `overlap`, which must be smaller than `tile`."""
    if length <= tile:
        return [range(length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [range(start, start + tile) for start in starts]


def _kept(spans: list[range]) -> list[tuple[range, slice]]:
    """Each tile and the part of it that is kept, up to the middle of the overlap with each neighbour."""
    cuts = [(a.stop + b.start) // 2 for a, b in pairwise(spans)]
    edges = [spans[0].start, *cuts, spans[-1].stop]
    return [(s, slice(edges[i] - s.start, edges[i + 1] - s.start)) for i, s in enumerate(spans)]


def _ramp(span: range, length: int, overlap: int, factor: int, like: Tensor) -> Float[Tensor, "n"]:
    """The weight of a tile along one side: it rises from 0 to 1 over the overlap with a neighbour."""
    n, ramp = len(span) * factor, overlap * factor
    position = torch.arange(n, device=like.device, dtype=torch.float32) + 0.5
    left = (position / ramp).clamp(max=1) if span.start > 0 and ramp else torch.ones_like(position)
    right = ((n - position) / ramp).clamp(max=1) if span.stop < length and ramp else torch.ones_like(position)
    return left * right
