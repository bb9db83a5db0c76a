"""Images to pixels: the one way in which images are read, cropped, resized and scaled."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 89_478_485  # PIL's own "decompression bomb" threshold: 256 MiB of 24-bit pixels


class UnreadableImage(ValueError):
    """An image cannot be decoded; the message gives its name and the reason."""


def check_size(size: int | Sequence[int]) -> tuple[int, int]:
    """An int (square) or [height, width] -> (height, width); ValueError unless both are at least 1."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(f"size is {size!r}; give one positive integer (square images) or [height, width]")
    return pair[0], pair[1]


def check_channels(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; give 1 (grey) or 3 (RGB)")
    return channels


def to_tensor(image: UInt8[np.ndarray, "h w c"] | Float[np.ndarray, "h w c"]) -> Float[Tensor, "c h w"]:
    """Values in [0, 255] -> float32 in [-1, 1]; 0 gives exactly -1 and 255 exactly 1."""
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1).contiguous() / 127.5 - 1


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the shorter side and crop the centre, in one resampling.

    The largest centred rectangle with the aspect ratio of `size` (height, width) is resized to `size` with PIL's
    antialiased bicubic filter. For a square this is "resize the shorter side, then centre crop", without the rounding
    of the longer side. Smaller images are enlarged the same way. An image already of that size is untouched.
    """
    height, width = size
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    w, h = width * scale, height * scale
    left, top = (image.width - w) / 2, (image.height - h) / 2
    box = (left, top, min(left + w, image.width), min(top + h, image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def flatten(image: Image.Image, channels: int) -> Image.Image:
    """Any PIL image -> mode L (1 channel) or RGB (3), with transparency on white; 16-bit grey -> mode F.

    16-bit grey is scaled by 1/257 (65535 -> 255) and keeps its precision; PIL's own conversion would clip it at 255.
    PIL converts CMYK, palette and other modes; colour becomes grey by ITU-R 601 luma.

    Raises:
        ValueError: pixels are 32-bit integers beyond 16 bits, or floats, whose range is unknown.
    """
    if image.mode.startswith("I"):  # I;16, I;16B, and I: how some PIL versions open 16-bit PNGs
        values = np.asarray(image).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit integer pixels, whose range is unknown; save the image with 8 or 16 bits")
        return Image.fromarray(values / 257)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown; save the image with 8 or 16 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        front = image.convert("RGBA")
        image = Image.new("RGBA", front.size, "white")
        image.alpha_composite(front)
    return image.convert("L" if channels == 1 else "RGB")


def check_header(image: Image.Image) -> None:
    """ValueError for an image with more than MAX_PIXELS pixels (known before any is decoded)."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} is more than the {MAX_PIXELS} pixels allowed (MAX_PIXELS)")


def load_image(
    file: str | Path | BinaryIO | BytesIO, size: int | Sequence[int] | None, channels: int = 3
) -> Float[Tensor, "c h w"]:
    """Read an image file, upright, at exactly `size`.

    The EXIF orientation is applied first. :func:`flatten` describes colour, transparency and 16 bits, :func:`fit` the
    crop and resize, :func:`to_tensor` the range. An animation gives its first frame.

    Args:
        file: a path or an open binary file.
        size: the side of a square, or (height, width); None keeps the size of the image.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        float32 (channels, height, width) in [-1, 1].

    Raises:
        UnreadableImage: the file is missing, damaged, truncated or not an image, or has more than MAX_PIXELS pixels.
        ValueError: `size` or `channels` is not allowed.
    """
    pair, channels = None if size is None else check_size(size), check_channels(channels)
    try:
        with Image.open(file) as image:
            check_header(image)
            return from_image(image, pair, channels)
    except Exception as error:  # decoders meet damaged files with errors of every kind
        name = str(file) if isinstance(file, (str, Path)) else str(getattr(file, "name", "the given file"))
        raise UnreadableImage(f"{name}: {error or type(error).__name__}") from error


def from_image(image: Image.Image, size: tuple[int, int] | None, channels: int) -> Float[Tensor, "c h w"]:
    """What :func:`load_image` does with an opened image."""
    flat = flatten(ImageOps.exif_transpose(image), channels)
    flat = flat if size is None else fit(flat, size)
    values = np.asarray(flat)
    if flat.mode == "F":  # bicubic overshoots; PIL clips this only in 8 bits
        values = np.repeat(values.clip(0, 255)[:, :, None], channels, axis=2)
    return to_tensor(values.reshape(flat.height, flat.width, channels))
