"""Histograms of oriented gradients, the target of MaskFeat (Wei et al. 2022, arXiv:2112.09133, section 3.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def hog(pixels: Float[Tensor, "b c H W"], bins: int = 9, cell: int = 8, window: int = 0) -> Float[Tensor, "b c k h w"]:
    """For each channel and cell the gradients' magnitudes by direction, with L2 norm 1 over the directions.

    Directions are counted over the whole circle of atan2 in steps of 180 / `bins` degrees, modulo 180 degrees
    (unsigned), from the vertical gradient on. Scaling or shifting a channel's values changes nothing.

    Args:
        pixels: float, any range; sides are multiples of `cell`, and of `window` where there is one.
        bins: directions.
        cell: side in pixels.
        window: side of the Gaussian windows (standard deviation half of it) that tile the image and weigh its
            gradients; 0 for none, as in MaskFeat's configurations.

    Raises:
        ValueError: sides that are no such multiples.
    """
    height, width = pixels.shape[2:]
    for name, side in (("cell", cell), ("window", window)):
        if side and (height % side or width % side):
            raise ValueError(
                f"images of {height} x {width} pixels are not whole {name}s of {side}; resize or crop them"
            )
    down, right = _gradients(pixels.float())
    magnitude = torch.hypot(right, down)
    if window:
        magnitude = magnitude * _gaussian(window, magnitude.device).repeat(height // window, width // window)
    # (right, down), not (down, right): MaskFeat's direction 0
    direction = (torch.atan2(right, down) / math.pi * bins).floor().long() % bins
    # one direction at a time: no scattering, whose order of sums a GPU does not keep
    sums = [F.avg_pool2d(torch.where(direction == k, magnitude, 0.0), cell, divisor_override=1) for k in range(bins)]
    return F.normalize(torch.stack(sums, dim=2), dim=2)


def _gradients(x: Float[Tensor, "b c H W"]) -> tuple[Float[Tensor, "b c H W"], Float[Tensor, "b c H W"]]:
    """Sobel's derivatives along the height and the width, with the sign of (earlier - later), borders reflected."""
    smooth, slope = x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([1.0, 0.0, -1.0])
    kernels = torch.stack([torch.outer(slope, smooth), torch.outer(smooth, slope)])[:, None]
    found = F.conv2d(F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect"), kernels)
    down, right = found.unflatten(0, x.shape[:2]).unbind(2)
    return down, right


def _gaussian(side: int, device: torch.device) -> Float[Tensor, "s s"]:
    """A Gaussian about the middle of `side` x `side` pixels, with sum 1."""
    x = torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2
    line = torch.exp(-0.5 * (x / (side // 2)) ** 2)
    line = line / line.sum()
    return torch.outer(line, line)


class HOG:
    """Each patch's histograms, (b, n, c bins cells): 3 x 9 x 2 x 2 = 108 values for a patch of 16 x 16 pixels.

    Of a video (b, c, t, H, W) each token has those of its first frame, as in MaskFeat.

    Args:
        patch: side of a token in pixels, a multiple of `cell`.
        frames: frames of a token.
        bins, cell, window: see :func:`hog`.

    Raises:
        ValueError: a patch that is not whole cells.
    """

    source = "pixels"

    def __init__(self, patch: int = 16, frames: int = 1, bins: int = 9, cell: int = 8, window: int = 0):
        if patch % cell:
            raise ValueError(f"patch {patch} is no multiple of cell {cell}; take cells of {math.gcd(patch, cell)}")
        self.patch, self.frames, self.bins, self.cell, self.window = patch, frames, bins, cell, window

    def __call__(self, pixels: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Values in [0, 1], channels first, then directions, then the cells' rows and columns.

        Raises:
            ValueError: pixels that are not whole tokens.
        """
        video = pixels if pixels.ndim == 5 else pixels[:, :, None]
        t, height, width = video.shape[2:]
        if t % self.frames or height % self.patch or width % self.patch:
            raise ValueError(
                f"pixels {tuple(pixels.shape)} are not whole tokens of {self.frames} frames and {self.patch} x "
                f"{self.patch} pixels; resize or crop them"
            )
        video = video[:, :, :: self.frames]
        found = hog(rearrange(video, "b c t H W -> (b t) c H W"), self.bins, self.cell, self.window)
        y = self.patch // self.cell
        return rearrange(found, "(b t) c k (h y) (w x) -> b (t h w) (c k y x)", b=len(pixels), y=y, x=y)
