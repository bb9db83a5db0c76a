"""Histograms of oriented gradients as images: each cell shows a star of lines along its edges."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from maskgen.mim.hog import HOG

GLYPH = 16  # least side of the image of a cell, in pixels


def glyphs(
    values: Float[Tensor, "b n d"], target: HOG, channels: int, grid: tuple[int, ...]
) -> Float[Tensor, "b 1 H W"]:
    """White lines on black in [-1, 1]; a line is as bright as its bin is high, averaged over the channels.

    The line of a bin lies along the edge, at the middle of the bin's directions: with 9 bins a vertical edge gives a
    line that is tilted by 10 degrees. The sides of the result are multiples of the sides of the image.

    Args:
        values: HOG features of `target`, or predictions of them; values below 0 count as 0.
        target: the HOG target that made the features.
        channels: number of channels of the image.
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
    """For each direction of :func:`maskgen.mim.hog.hog` a line of 1 across it, through the middle, about 1.5 wide."""
    middle = torch.arange(side) - (side - 1) / 2
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    angle = ((torch.arange(bins) + 0.5) * math.pi / bins)[:, None, None]  # angle of the gradient, from the vertical
    off = (x * angle.sin() + y * angle.cos()).abs()  # distance from the line, along the gradient
    along = (x * angle.cos() - y * angle.sin()).abs()
    return (1.25 - off).clamp(0, 1) * (side / 2 - along).clamp(0, 1)
