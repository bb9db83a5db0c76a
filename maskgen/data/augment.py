"""Random changes of training pictures, each a function of the picture and a generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor


class Augmentation:
    """Horizontal flip and random-resized crop.

    Args:
        flip: probability of a horizontal flip.
        crop: least share of the area that a random crop (aspect 3:4 to 4:3, resized back) keeps; 1 is no crop.
    """

    def __init__(self, flip: float = 0.0, crop: float = 1.0):
        if not (0 <= flip <= 1 and 0 < crop <= 1):
            raise ValueError(f"flip lies in [0, 1] and crop in (0, 1], got {flip} and {crop}")
        self.flip, self.crop = flip, crop

    def __call__(self, pixels: Float[Tensor, "c h w"], generator: Generator) -> Float[Tensor, "c h w"]:
        """A changed copy of one picture, of its own size."""
        flip, area, aspect, y, x = torch.rand(5, generator=generator).tolist()
        if self.crop < 1:
            pixels = _crop(pixels, self.crop + (1 - self.crop) * area, (4 / 3) ** (2 * aspect - 1), y, x)
        return pixels.flip(-1) if flip < self.flip else pixels


def _crop(pixels: Tensor, area: float, aspect: float, y: float, x: float) -> Tensor:
    """The crop of `area` (share) and `aspect` (relative width over height) at (y, x) in [0, 1), resized back."""
    h, w = pixels.shape[1:]
    ch = min(h, max(1, round(h * math.sqrt(area / aspect))))
    cw = min(w, max(1, round(w * math.sqrt(area * aspect))))
    top, left = int(y * (h - ch + 1)), int(x * (w - cw + 1))
    piece = pixels[None, :, top : top + ch, left : left + cw]
    return F.interpolate(piece, (h, w), mode="bilinear", antialias=True, align_corners=False)[0]
