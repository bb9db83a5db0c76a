"""Images too large for memory, a tile at a time.

Tiles overlap. Decoded tiles are blended linearly over the overlap; of encoded tiles each keeps the codes nearest to its
middle. A GroupNorm takes its statistics from what it sees, so tiles on their own would differ in brightness and colour:
first a sample of crops goes through the network together, as one image to the norms, and then all tiles share its
statistics. Attention still sees a tile only. docs/tokenizers.md says what is left.
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

SAMPLE = 4  # crops along either side that tell the norms' statistics, each of half a tile: together four tiles


@torch.no_grad()
def tiled_encode(
    tokenizer: Tokenizer, pixels: Float[Tensor, "b c H W"], tile: int = 512, overlap: int = 128
) -> Shaped[Tensor, "b *grid"]:
    """Codes of large images, one after the other.

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
    """Pixels of large grids of codes, one image after the other, on the codes' device, in float32.

    Args:
        codes: (b, h, w), or (b, h, w, d) with several codes a place or continuous tokens.
        tile, overlap: in tokens.

    Raises:
        ValueError: what :meth:`Tokenizer.decode` raises; 1-D tokens; an overlap of half a tile or more.
    """
    if codes.ndim < 3:
        raise ValueError("1-D tokens have no place in the image; decode them without tiles")
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
                place = (slice(y.start * factor, y.stop * factor), slice(x.start * factor, x.stop * factor))
                canvas[(..., *place)] += part * share
                weights[place] += share
        made.append(canvas / weights)
    return torch.cat(made)


@contextmanager
def shared_norms(module: nn.Module) -> Iterator[Any]:
    """Give ``measure(function, batch)``: it calls ``function(batch)`` with every GroupNorm of `module` taking its
    statistics over the whole batch, and from then on, within the context, they keep to these. Until then they are as
    ever.
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
    """Crops of one size, evenly spread; they overlap where the image is small."""

    def along(length: int) -> list[range]:
        near = min(side, length)
        starts = [round(i * (length - near) / (SAMPLE - 1)) for i in range(SAMPLE)]
        return [range(start, start + near) for start in starts]

    return [(y, x) for y in along(grid[0]) for x in along(grid[1])]


def _grid(tokenizer: Tokenizer, size: tuple[int, int]) -> tuple[int, int]:
    grid = tokenizer.grid(size)
    if len(grid) != 2:
        raise ValueError("1-D tokens have no place in the image; encode it whole, at the trained size")
    return grid[0], grid[1]


def _spans(length: int, tile: int, overlap: int) -> list[range]:
    """:func:`spans` of tiles that no third one may reach into."""
    if not 0 <= overlap < tile / 2:
        raise ValueError(f"overlap {overlap} must be at least 0 and below half the tile of {tile}")
    return spans(length, tile, overlap)


def spans(length: int, tile: int, overlap: int) -> list[range]:
    """Tiles that cover `length`, all of one size, neighbours sharing at least `overlap`, which is below the tile."""
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
