"""Images as the page's editor shows them, and what was painted on them as a mask.

Small images are enlarged by whole numbers without smoothing, so that a pixel is a square that can be painted on. The
way back is the rule from pixels to tokens: a pixel is hidden if any part of it was painted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskgen.data.pixels import UnreadableImage
from maskgen.images import to_pil
from maskgen.pipelines.inputs import images_of
from maskgen.tasks.masks import token_mask

MAX_SIDE = 1024  # pixels of an image that the page takes or makes
EDITOR = 384  # pixels of the editor's canvas, about
PAINT = (225, 29, 142)


def opened(file: str | Path | Image.Image) -> Image.Image:
    """An image that was handed in, upright, in RGB, transparency on white.

    Raises:
        ValueError: it cannot be read, or has a side of more than MAX_SIDE pixels.
    """
    try:
        (pixels,) = images_of(file, 3)
    except UnreadableImage as error:
        name = Path(file).name if isinstance(file, (str, Path)) else "this"
        raise ValueError(f"{name} cannot be read as an image; give a PNG, JPEG, WebP or GIF file") from error
    (image,) = to_pil(pixels[None])
    check_side(*image.size)
    return image


def check_side(width: int, height: int) -> None:
    """ValueError for more pixels than the page takes."""
    if max(width, height) > MAX_SIDE:
        raise ValueError(
            f"an image of {width}x{height} pixels; the page takes sides of at most {MAX_SIDE}: make it smaller, "
            "or use the commands, which take 4096x4096"
        )


def canvas_of(image: Image.Image) -> Image.Image:
    """The image for the editor: enlarged by a whole number without smoothing; a large one is reduced."""
    longest = max(image.size)
    if longest > EDITOR:
        width, height = (max(1, round(side * EDITOR / longest)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    times = EDITOR // longest
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def mask_of(layers: Sequence[Image.Image | None], size: tuple[int, int]) -> Image.Image:
    """White where a pixel of the image was painted on, in any part of it.

    Args:
        layers: what was painted, RGBA of one size, which may be the enlarged image's.
        size: (width, height) of the image.

    Raises:
        ValueError: nothing was painted.
    """
    painted = [np.asarray(layer.convert("RGBA"))[..., 3] >= 128 for layer in layers if layer is not None]
    if not painted or not np.any(painted):
        raise ValueError("nothing is painted yet: paint with the brush over what is to be drawn anew")
    hidden = token_mask(torch.from_numpy(np.any(painted, axis=0))[None], (size[1], size[0]))[0]
    return Image.fromarray(hidden.numpy().astype(np.uint8) * 255)


def layer_of(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A mask as a layer of paint, RGBA, of the editor's canvas `size` (width, height)."""
    layer = Image.new("RGBA", size, (*PAINT, 0))
    layer.paste((*PAINT, 255), mask=mask.convert("L").resize(size, Image.Resampling.NEAREST))
    return layer
