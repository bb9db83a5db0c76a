"""Images for the page's editor, and masks from the strokes that were painted on them.

Small images are enlarged by a whole number without smoothing, so that each pixel is a square that can be painted on. A
pixel is hidden if any part of its square is painted; pixels become tokens by the same rule.
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

MAX_SIDE = 1024  # pixels of the largest side of an image that the page takes or makes
EDITOR = 384  # approximate side of the editor's canvas in pixels
PAINT = (225, 29, 142)


def opened(file: str | Path | Image.Image) -> Image.Image:
    """Open an image: upright, in RGB, with transparent pixels on white.

    Raises:
        ValueError: the image cannot be read, or a side is longer than MAX_SIDE pixels.
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
    """Raise a ValueError if a side is longer than MAX_SIDE pixels."""
    if max(width, height) > MAX_SIDE:
        raise ValueError(
            f"the image has {width}x{height} pixels; the page takes sides of at most {MAX_SIDE}: make it smaller, "
            "or use the commands, which take 4096x4096"
        )


def canvas_of(image: Image.Image) -> Image.Image:
    """The image for the editor: enlarged by a whole number without smoothing, or reduced if it is large."""
    longest = max(image.size)
    if longest > EDITOR:
        width, height = (max(1, round(side * EDITOR / longest)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    times = EDITOR // longest
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def mask_of(layers: Sequence[Image.Image | None], size: tuple[int, int]) -> Image.Image:
    """A mask in the size of the image, white where any part of a pixel is painted.

    Args:
        layers: the painted strokes, RGBA images of one size, which may be the size of the enlarged image.
        size: (width, height) of the image.

    Raises:
        ValueError: nothing is painted.
    """
    painted = [np.asarray(layer.convert("RGBA"))[..., 3] >= 128 for layer in layers if layer is not None]
    if not painted or not np.any(painted):
        raise ValueError("nothing is painted yet: paint over the part to replace")
    hidden = token_mask(torch.from_numpy(np.any(painted, axis=0))[None], (size[1], size[0]))[0]
    return Image.fromarray(hidden.numpy().astype(np.uint8) * 255)


def layer_of(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A mask as a layer of paint, an RGBA image of the canvas `size` (width, height)."""
    layer = Image.new("RGBA", size, (*PAINT, 0))
    layer.paste((*PAINT, 255), mask=mask.convert("L").resize(size, Image.Resampling.NEAREST))
    return layer
