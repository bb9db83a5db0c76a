"""Images with a hole: how the hole is filled before encoding, and how the result is pasted into it."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Fill = Literal["smooth", "mean", "grey"]
REACH = 64  # colours spread so many pixels into the hole; beyond, the mean fills it


def resized(pixels: Float[Tensor, "b c H W"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Pixels at another size, antialiased; unchanged if the size is the same."""
    if tuple(pixels.shape[2:]) == tuple(size):
        return pixels
    return F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def filled(
    pixels: Float[Tensor, "b c H W"],
    hidden: Bool[Tensor, "b H W"],
    size: tuple[int, int] | None = None,
    fill: Fill = "smooth",
) -> Float[Tensor, "b c h w"]:
    """The image with its hole filled. Nothing of the hidden pixels is left in the result, at any size.

    Args:
        pixels: in [-1, 1].
        hidden: True = hidden.
        size: the size of the result; a pixel of the result that covers known pixels is their mean alone.
        fill: ``smooth`` spreads the known colours into the hole, and fills with the mean beyond 64 pixels; ``mean`` is
            the mean colour of the known pixels; ``grey`` is 0. If nothing is known, the result is grey.

    Raises:
        ValueError: the fill is unknown.
    """
    if fill not in get_args(Fill):
        raise ValueError(f"unknown fill {fill!r}: choose one of {', '.join(get_args(Fill))}")
    weight = (~hidden)[:, None].to(pixels.dtype)
    x = torch.where(hidden[:, None], 0, pixels)
    mean = x.sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1)
    if size is not None and tuple(size) != tuple(pixels.shape[2:]):
        whole = resized(x, size)
        x, weight = (F.interpolate(v, size, mode="bilinear", antialias=True, align_corners=False) for v in (x, weight))
        x = torch.where(weight > 1 - 1e-4, whole, x / weight.clamp(min=1e-4))
    known = weight[:, 0] > 1e-3
    if fill == "smooth":
        x, distance = spread(x, known, REACH)
        known = distance >= 0
    return torch.where(known[:, None], x, 0 if fill == "grey" else mean)


def spread(
    values: Float[Tensor, "b c H W"], known: Bool[Tensor, "b H W"], reach: int
) -> tuple[Float[Tensor, "b c H W"], Int[Tensor, "b H W"]]:
    """Spread `values` from the known pixels outwards, ring by ring: a pixel gets the mean of its known neighbours.

    Returns:
        The values, and the distance of each pixel to the known ones in rings; 0 is known, and -1 was not reached.
    """
    weight = known[:, None].to(values.dtype)
    values = torch.where(known[:, None], values, 0)
    distance = known.long() - 1
    for ring in range(1, reach + 1):
        near = F.avg_pool2d(weight, 3, stride=1, padding=1)
        new = (near > 0) & (weight == 0)
        if not new.any():
            break
        values = torch.where(new, F.avg_pool2d(values, 3, stride=1, padding=1) / near.clamp(min=0.1), values)
        weight = torch.where(new, 1, weight)
        distance = distance.masked_fill(new[:, 0], ring)
    return values, distance


def pasted(
    pixels: Float[Tensor, "b c H W"],
    hidden: Bool[Tensor, "b H W"],
    made: Float[Tensor, "b c H W"],
    feather: int,
) -> Float[Tensor, "b c H W"]:
    """Paste the pixels `made` into the hidden region. The known pixels stay the same, bit for bit.

    The difference between known and made pixels at the border of the region is added to the made pixels and fades over
    `feather` pixels, so that no edge is visible. The former values of the hidden pixels have no influence.

    Raises:
        ValueError: the feather is negative.
    """
    if feather < 0:
        raise ValueError(f"feather is {feather}; give the pixels over which the paste fades, at least 0")
    difference, distance = spread(pixels - made, ~hidden, feather)
    fade = (1 - distance / (feather + 1)).masked_fill(distance < 0, 0)[:, None]
    return torch.where(hidden[:, None], made + fade * difference, pixels)
