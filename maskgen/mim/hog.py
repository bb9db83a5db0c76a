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
    """The gradient magnitudes of each channel and cell per direction, with L2 norm 1 over the directions.

    Directions are angles of atan2 modulo 180 degrees (unsigned) in steps of 180 / `bins`; 0 is the vertical gradient.
    The result is invariant to a scale or shift of a channel's values.

    Args:
        pixels: float in any range. The sides are multiples of `cell`, and of `window` if it is not 0.
        bins: number of directions.
        cell: side of a cell in pixels.
        window: side of the Gaussian windows that tile the image and weight its gradients (their standard deviation is
            half the side); 0 is no window, as in MaskFeat's configurations.

    Raises:
        ValueError: the sides are not such multiples.
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
    # The order is (right, down), as in MaskFeat.
    direction = (torch.atan2(right, down) / math.pi * bins).floor().long() % bins
    # One direction at a time instead of a scatter, which is not deterministic on a GPU.
    sums = [F.avg_pool2d(torch.where(direction == k, magnitude, 0.0), cell, divisor_override=1) for k in range(bins)]
    return F.normalize(torch.stack(sums, dim=2), dim=2)


def _gradients(x: Float[Tensor, "b c H W"]) -> tuple[Float[Tensor, "b c H W"], Float[Tensor, "b c H W"]]:
    """Sobel derivatives along height and width, earlier minus later pixel, with reflected borders."""
    smooth, slope = x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([1.0, 0.0, -1.0])
    kernels = torch.stack([torch.outer(slope, smooth), torch.outer(smooth, slope)])[:, None]
    found = F.conv2d(F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect"), kernels)
    down, right = found.unflatten(0, x.shape[:2]).unbind(2)
    return down, right


def _gaussian(side: int, device: torch.device) -> Float[Tensor, "s s"]:
    """A centred Gaussian of `side` x `side` pixels with sum 1."""
    x = torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2
    line = torch.exp(-0.5 * (x / (side // 2)) ** 2)
    line = line / line.sum()
    return torch.outer(line, line)


class HOG:
    """The histograms of each patch, float32 (b, n, c * bins * cells): 3 x 9 x 2 x 2 = 108 values for 16 x 16 pixels.

    A token of a video (b, c, t, H, W) has the histograms of its first frame, as in MaskFeat.

    Args:
        patch: side of a token in pixels, a multiple of `cell`.
        frames: frames per token.
        bins, cell, window: see :func:`hog`.

    Raises:
        ValueError: `patch` is not a multiple of `cell`.
    """

    source = "pixels"

    def __init__(self, patch: int = 16, frames: int = 1, bins: int = 9, cell: int = 8, window: int = 0):
        if patch % cell:
            raise ValueError(f"patch {patch} is not a multiple of cell {cell}; set cell: {math.gcd(patch, cell)}")
        self.patch, self.frames, self.bins, self.cell, self.window = patch, frames, bins, cell, window

    def __call__(self, pixels: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Values in [0, 1], ordered by channel, direction, row of cells, column of cells.

        Raises:
            ValueError: the size of `pixels` is not a multiple of the token's.
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
