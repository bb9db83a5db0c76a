"""Pictures to pixels: one way to read, crop, resize and scale, used wherever a picture enters."""

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
    """A picture which cannot be decoded; the message names it and says why."""


def check_size(size: int | Sequence[int]) -> tuple[int, int]:
    """An int (square) or [height, width] -> (height, width); ValueError unless both are at least 1."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(f"size is {size!r}; give one positive integer (square pictures) or [height, width]")
    return pair[0], pair[1]


def check_channels(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; give 1 (grey) or 3 (RGB)")
    return channels


def to_tensor(picture: UInt8[np.ndarray, "h w c"] | Float[np.ndarray, "h w c"]) -> Float[Tensor, "c h w"]:
    """Values in [0, 255] -> float32 in [-1, 1]; 0 gives exactly -1 and 255 exactly 1."""
    return torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1).contiguous() / 127.5 - 1


def fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the shorter side and crop the centre, in one resampling.

    The largest centred rectangle with the aspect ratio of `size` (height, width) is resized to `size` with PIL's
    antialiased bicubic filter. For a square this is "resize the shorter side, then centre crop", without the rounding
    of the longer side. Smaller pictures are enlarged the same way. A picture already of that size is untouched.
    """
    height, width = size
    if picture.size == (width, height):
        return picture
    scale = min(picture.width / width, picture.height / height)
    w, h = width * scale, height * scale
    left, top = (picture.width - w) / 2, (picture.height - h) / 2
    box = (left, top, min(left + w, picture.width), min(top + h, picture.height))
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=box)


def flatten(picture: Image.Image, channels: int) -> Image.Image:
    """Any PIL picture -> mode L (1 channel) or RGB (3), transparency composited on white; 16-bit grey -> mode F.

    16-bit grey is scaled by 1/257 (65535 -> 255) and keeps its precision; PIL's own conversion would clip it at 255.
    CMYK, palette and the rest are converted by PIL; grey from colour is ITU-R 601 luma.

    Raises:
        ValueError: 32-bit integers beyond 16 bits, or floats: their range is unknown.
    """
    if picture.mode.startswith("I"):  # I;16, I;16B, and I: how some PIL versions open 16-bit PNGs
        values = np.asarray(picture).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit integer pixels, whose range is unknown; save the picture with 8 or 16 bits")
        return Image.fromarray(values / 257)
    if picture.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown; save the picture with 8 or 16 bits")
    if "A" in picture.getbands() or "transparency" in picture.info:
        front = picture.convert("RGBA")
        picture = Image.new("RGBA", front.size, "white")
        picture.alpha_composite(front)
    return picture.convert("L" if channels == 1 else "RGB")


def check_header(picture: Image.Image) -> None:
    """ValueError for a picture with more than MAX_PIXELS pixels (known before any is decoded)."""
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{picture.width}x{picture.height} is more than the {MAX_PIXELS} pixels allowed (MAX_PIXELS)")


def load_image(
    file: str | Path | BinaryIO | BytesIO, size: int | Sequence[int] | None, channels: int = 3
) -> Float[Tensor, "c h w"]:
    """Read a picture file, upright, at exactly `size`.

    In order: the EXIF orientation is applied; see `flatten` for colour, transparency and 16 bits; see `fit` for the
    crop and resize; see `to_tensor` for the range. Of an animation, the first frame.

    Args:
        file: a path or an open binary file.
        size: the side of a square, or (height, width); None leaves the picture at its own.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        float32 (channels, height, width) in [-1, 1].

    Raises:
        UnreadableImage: missing, damaged, truncated, more than MAX_PIXELS pixels, or not a picture.
        ValueError: `size` or `channels` is not allowed.
    """
    pair, channels = None if size is None else check_size(size), check_channels(channels)
    try:
        with Image.open(file) as picture:
            check_header(picture)
            return from_picture(picture, pair, channels)
    except Exception as error:  # decoders meet damaged files with errors of every kind
        name = str(file) if isinstance(file, (str, Path)) else str(getattr(file, "name", "the given file"))
        raise UnreadableImage(f"{name}: {error or type(error).__name__}") from error


def from_picture(picture: Image.Image, size: tuple[int, int] | None, channels: int) -> Float[Tensor, "c h w"]:
    """What :func:`load_image` does with an opened picture."""
    flat = flatten(ImageOps.exif_transpose(picture), channels)
    flat = flat if size is None else fit(flat, size)
    values = np.asarray(flat)
    if flat.mode == "F":  # bicubic overshoots; PIL clips this only in 8 bits
        values = np.repeat(values.clip(0, 255)[:, :, None], channels, axis=2)
    return to_tensor(values.reshape(flat.height, flat.width, channels))
