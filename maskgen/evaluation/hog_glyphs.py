"""Histograms of oriented gradients as images: a star of lines in each cell, along the edges."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from maskgen.mim.hog import HOG

GLYPH = 16  # least side of a cell's drawing, in pixels


def glyphs(
    values: Float[Tensor, "b n d"], target: HOG, channels: int, grid: tuple[int, ...]
) -> Float[Tensor, "b 1 H W"]:
    """White lines on black, in [-1, 1], as bright as the histogram is high; mean over the channels.

    A gradient across an edge is drawn as a line along it, as an eye sees edges, at the middle of its bin's directions
    (an upright edge in 9 bins 10 degrees aslant). A side is a multiple of the image's.

    Args:
        values: of `target`, or predictions of them; below 0 is 0.
        channels: of the image.
        grid: (h, w) of the tokens.
    """
    cells = target.patch // target.cell
    layout = "b (h w) (c k y x) -> b c k (h y) (w x)"
    sizes = {"h": grid[0], "w": grid[1], "c": channels, "y": cells, "x": cells}
    heights = rearrange(values.float(), layout, **sizes).mean(1).clamp(0, 1)
    side = target.cell * -(-GLYPH // target.cell)
    canvas = heights.new_zeros(len(heights), heights.shape[2] * side, heights.shape[3] * side)
    for height, line in zip(heights.unbind(1), lines(target.bins, side).to(heights.device)):
        one = rearrange(height[..., None, None] * line, "b h w s t -> b (h s) (w t)")
        canvas = torch.maximum(canvas, one)
    return canvas[:, None] * 2 - 1


def lines(bins: int, side: int) -> Float[Tensor, "k s s"]:
    """For each direction of :func:`maskgen.mim.hog.hog` a line across it through the middle, 1 on 0, about 1.5 wide."""
    middle = torch.arange(side) - (side - 1) / 2
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    angle = ((torch.arange(bins) + 0.5) * math.pi / bins)[:, None, None]  # of the gradient, from the vertical one on
    off = (x * angle.sin() + y * angle.cos()).abs()  # how far from the line, along the gradient
    along = (x * angle.cos() - y * angle.sin()).abs()
    return (1.25 - off).clamp(0, 1) * (side / 2 - along).clamp(0, 1)
