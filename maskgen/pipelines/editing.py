"""Scenes: an image with a hole, the tokens that stand for a part of it, and the way back from tokens to the image.

The tasks of :class:`maskgen.pipelines.image.MaskedImagePipeline` build scenes with these functions and complete them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from maskgen.pipelines.base import MaskedPipeline
from maskgen.tasks.images import Fill, filled, pasted, resized
from maskgen.tasks.masks import receptive_radius, token_mask

logger = logging.getLogger(__name__)
MOST_WINDOWS = 256  # the largest canvas, in trained grids
Dilation = int | Literal["auto"]
View = tuple[slice, slice]


@dataclass
class Scene:
    """An image with a hole, and the tokens that stand for a part of it.

    pixels: float32 (1, c, H, W) in [-1, 1]; hidden: bool (1, H, W).
    canvas, mask: the tokens of the pixels at `view`, int64 (1, h, w) or (1, h, w, q) or float (1, h, w, d); and bool
        (1, h, w).
    view: the rows and columns that the tokens stand for.
    crop: the rows and columns of the result.
    """

    pixels: Tensor
    hidden: Tensor
    canvas: Tensor
    mask: Tensor
    view: View
    crop: View = (slice(None), slice(None))

    def placed(self, made: Float[Tensor, "1 c h w"], paste_back: bool, feather: int | None) -> Float[Tensor, "1 c H W"]:
        """The image of the scene with the completed pixels `made` in its view; see the task ``inpaint``."""
        y, x = self.view
        size = (y.stop - y.start, x.stop - x.start)
        if feather is None:
            feather = round(size[0] / self.canvas.shape[1])
        made = resized(made.clamp(-1, 1), size)
        result = self.pixels.clone()
        if paste_back:
            made = pasted(self.pixels[:, :, y, x], self.hidden[:, y, x], made, feather)
        result[:, :, y, x] = made
        return result[:, :, self.crop[0], self.crop[1]]


def hole_scene(
    pipeline: MaskedPipeline,
    image: Float[Tensor, "c H W"],
    hidden: Bool[Tensor, "H W"],
    margin: int | None,
    dilation: Dilation,
    fill: Fill,
) -> Scene:
    """The scene of ``inpaint``: the model sees the image through :func:`view_of`, with the hole filled."""
    grid, size = grid_of(pipeline), pipeline.size
    view = view_of(hidden, size, margin)
    seen, hole = image[None, :, view[0], view[1]], hidden[None, view[0], view[1]]
    _log_view(tuple(image.shape[1:]), view, size)
    canvas = pipeline.encode(filled(seen, hole, size, fill))
    mask = token_mask(hole, grid, _tokens(pipeline, dilation))
    if mask.all():
        logger.warning("no token is known: the image is generated from the class alone")
    return Scene(image[None], hidden[None], canvas, mask.to(pipeline.device), view)


def border_scene(
    pipeline: MaskedPipeline,
    image: Float[Tensor, "c H W"],
    left: int,
    top: int,
    right: int,
    bottom: int,
    dilation: Dilation,
) -> Scene:
    """The scene of ``outpaint``: the tokens of the image inside a larger canvas. The sides are rounded up to whole
    tokens, and the result is cropped."""
    (height, width), trained, factor = image.shape[1:], grid_of(pipeline), factor_of(pipeline)
    density = max(trained[0] / height, trained[1] / width)  # tokens per pixel
    rows, columns = max(trained[0], round(height * density)), max(trained[1], round(width * density))
    high, wide = height / rows, width / columns  # pixels per token
    tokens = [math.ceil(n / side) for n, side in ((left, wide), (right, wide), (top, high), (bottom, high))]
    count = (rows + tokens[2] + tokens[3]) * (columns + tokens[0] + tokens[1])
    if count > MOST_WINDOWS * trained[0] * trained[1]:
        raise ValueError(
            f"the canvas would have {count} tokens, and at most {MOST_WINDOWS} times the trained "
            f"{trained[0]}x{trained[1]} are allowed: extend by less, or give a less narrow image"
        )
    _log_view((height, width), (slice(0, height), slice(0, width)), (rows * factor[0], columns * factor[1]))
    pad = [round(n * side) for n, side in zip(tokens, (wide, wide, high, high))]
    codes = pipeline.encode(resized(image[None], (rows * factor[0], columns * factor[1])))
    mask = F.pad(torch.zeros(codes.shape[:3], dtype=torch.bool, device=codes.device), tokens, value=True)
    mask = token_mask(mask, (mask.shape[1], mask.shape[2]), _tokens(pipeline, dilation))
    pixels = F.pad(image[None], pad)
    hidden = F.pad(torch.zeros(1, height, width, dtype=torch.bool), pad, value=True)
    crop = (slice(pad[2] - top, pad[2] + height + bottom), slice(pad[0] - left, pad[0] + width + right))
    view = (slice(0, pixels.shape[2]), slice(0, pixels.shape[3]))
    item = [0, 0] * (codes.ndim - 3)  # the axis of several codes, or of a vector, is not padded
    return Scene(pixels, hidden, F.pad(codes, [*item, *tokens]), mask, view, crop)


def gap_scene(
    pipeline: MaskedPipeline, left: Float[Tensor, "c H W"], right: Float[Tensor, "c H2 W2"], gap: int, keep: int | None
) -> Scene:
    """The scene of ``join``: the tokens of two images side by side, with hidden tokens between them."""
    (rows, columns), (factor, _) = grid_of(pipeline), factor_of(pipeline)
    parts = []
    for image, last in ((left, False), (right, True)):
        width = max(1, round(image.shape[2] * rows / image.shape[1]))
        pixels = resized(image[None], (rows * factor, width * factor))
        count = width if keep is None else min(width, math.ceil(keep / factor))
        parts.append(pixels[..., -count * factor :] if last else pixels[..., : count * factor])
    between = math.ceil(gap / factor)
    width = sum(part.shape[3] // factor for part in parts) + between
    if width < columns:
        raise ValueError(
            f"the result would be {width * factor} pixels wide and the model's images are {columns * factor}: keep more"
        )
    space = parts[0].new_zeros(*parts[0].shape[:3], between * factor)
    codes = [pipeline.encode(part) for part in parts]
    hole = codes[0].new_zeros(1, rows, between, *codes[0].shape[3:])
    mask = torch.zeros(1, rows, width, dtype=torch.bool, device=pipeline.device)
    mask[:, :, codes[0].shape[2] : codes[0].shape[2] + between] = True
    pixels = torch.cat([parts[0], space, parts[1]], 3)
    hidden = mask.cpu().repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    view = (slice(0, pixels.shape[2]), slice(0, pixels.shape[3]))
    return Scene(pixels, hidden, torch.cat([codes[0], hole, codes[1]], 2), mask, view)


def view_of(hidden: Bool[Tensor, "H W"], size: tuple[int, int], margin: int | None = None) -> View:
    """The box of an image that the model sees, with the proportions of `size`.

    It is the largest such box, or with a `margin` the smallest that holds the hole and so many pixels around it. The
    hole is in its middle as far as the borders of the image allow. If the hole does not fit into the box, the model
    sees the whole image.

    Raises:
        ValueError: the margin is negative.
    """
    if margin is not None and margin < 0:
        raise ValueError(f"padding_mask_crop is {margin}; give the number of pixels around the hole, at least 0")
    whole = tuple(hidden.shape)
    hole = hidden.nonzero()
    if len(hole) == 0:
        hole = torch.tensor([[0, 0], [whole[0] - 1, whole[1] - 1]])
    first, last = hole.min(0).values.tolist(), (hole.max(0).values + 1).tolist()
    largest = min(n / s for n, s in zip(whole, size))
    scale = largest
    if margin is not None:
        scale = min(largest, max((b - a + 2 * margin) / s for a, b, s in zip(first, last, size)))
    sides = [min(n, round(s * scale)) for n, s in zip(whole, size)]
    if hidden.any() and any(b - a > side for a, b, side in zip(first, last, sides)):
        return slice(0, whole[0]), slice(0, whole[1])
    starts = [min(max(0, (a + b - side) // 2), n - side) for a, b, side, n in zip(first, last, sides, whole)]
    return slice(starts[0], starts[0] + sides[0]), slice(starts[1], starts[1] + sides[1])


def fitted(pipeline: MaskedPipeline, images: Sequence[Float[Tensor, "c _ _"]]) -> Float[Tensor, "b c h w"]:
    """The middle of each image at the model's size."""
    made = []
    for pixels in images:
        view = view_of(torch.zeros(pixels.shape[1:], dtype=torch.bool), pipeline.size)
        _log_view(tuple(pixels.shape[1:]), view, pipeline.size)
        made.append(resized(pixels[None, :, view[0], view[1]], pipeline.size))
    return torch.cat(made)


def grown(hidden: Bool[Tensor, "H W"], grid: tuple[int, int], tokens: int) -> Bool[Tensor, "H W"]:
    """A mask that is larger by `tokens` on every side."""
    side = tokens * math.ceil(min(n / g for n, g in zip(hidden.shape, grid)))
    wide = F.max_pool2d(hidden[None, None].float(), (2 * side + 1, 1), stride=1, padding=(side, 0))
    return F.max_pool2d(wide, (1, 2 * side + 1), stride=1, padding=(0, side))[0, 0] > 0


def grid_of(pipeline: MaskedPipeline) -> tuple[int, int]:
    """The trained grid (h, w).

    Raises:
        ValueError: the tokens are a 1-D sequence.
    """
    grid = pipeline.layout.grid
    if len(grid) != 2:
        raise ValueError(
            "the tokens of this model are a 1-D sequence without positions in the image: use generate or vary"
        )
    return grid


def factor_of(pipeline: MaskedPipeline) -> tuple[int, int]:
    """The height and width of a token in pixels."""
    rows, columns = grid_of(pipeline)
    height, width = pipeline.size
    return height // rows, width // columns


def _tokens(pipeline: MaskedPipeline, dilation: Dilation) -> int:
    return receptive_radius(pipeline.vqvae, pipeline.size) if dilation == "auto" else int(dilation)


def _log_view(image: tuple[int, ...], view: View, size: tuple[int, int]) -> None:
    if tuple(image) != tuple(size):
        (y, x), (h, w) = view, size
        logger.info(
            "the image has %dx%d pixels (w x h); the model sees %d..%d x %d..%d, resized to %dx%d",
            *(image[1], image[0], x.start, x.stop, y.start, y.stop, w, h),
        )  # fmt: skip
