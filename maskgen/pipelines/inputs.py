"""Images and masks of users -> tensors. Users give files, PIL images, arrays, tensors, or lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageOps
from torch import Tensor

from maskgen.data.pixels import UnreadableImage, flatten, from_image

MAX_PIXELS = 4096 * 4096  # the largest image to edit has 200 MB of floats


def images_of(image: Any, channels: int) -> list[Float[Tensor, "c _ _"]]:
    """Images as float32 in [-1, 1], upright. Every value of an 8-bit image can be recovered exactly.

    Args:
        image: one image, a list, or a batch. An image is a path, a PIL image (its EXIF orientation is applied,
            transparency is put on white, and 16 bits are scaled, see :func:`maskgen.data.pixels.flatten`), an array
            (h, w, c) or (h, w), or a tensor (c, h, w); arrays and tensors hold uint8, or floats in [0, 1].
        channels: 1 or 3.

    Raises:
        ValueError: an image is unreadable or too large, or has another range or number of channels.
    """
    return [_image(one, channels) for one in _listed(image, 3)]


def masks_of(mask: Any, sizes: Sequence[tuple[int, int]]) -> list[Bool[Tensor, "_ _"]]:
    """One mask per image, True = hidden. White, or at least half of it, is hidden; transparent is known.

    Args:
        mask: one mask for all images, or a list with one per image, as :func:`images_of` takes them, without a channel
            axis; booleans are taken too.
        sizes: (H, W) of each image.

    Raises:
        ValueError: a mask is unreadable, differs in size from its image, or hides nothing.
    """
    masks = [_mask(one) for one in _listed(mask, 2)]
    if len(masks) == 1:
        masks *= len(sizes)
    if len(masks) != len(sizes):
        raise ValueError(f"{len(masks)} masks for {len(sizes)} images; give one, or one per image")
    for hidden, (height, width) in zip(masks, sizes):
        if tuple(hidden.shape) != (height, width):
            raise ValueError(
                f"the mask is {hidden.shape[1]}x{hidden.shape[0]} pixels (w x h) and its image {width}x{height}; "
                "both must have one size"
            )
        if not hidden.any():
            raise ValueError("the mask hides nothing: white is hidden and black is kept (is the mask inverted?)")
    return masks


def _listed(given: Any, ndim: int) -> list[Any]:
    """A list of single images or masks; arrays of more than `ndim` axes are a batch."""
    if isinstance(given, (list, tuple)):
        if not given:
            raise ValueError("an empty list of images; give at least one")
        return list(given)
    return list(given) if isinstance(given, (np.ndarray, Tensor)) and given.ndim > ndim else [given]


def _opened(given: str | Path) -> Image.Image:
    try:
        with Image.open(given) as image:
            _check_size(image.width, image.height, str(given))
            image.load()
            return image
    except ValueError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(f"{given} does not exist; give the path of an image file") from error
    except Exception as error:  # decoders raise errors of every kind for damaged files
        raise UnreadableImage(f"{given}: {error or type(error).__name__}") from error


def _check_size(width: int, height: int, name: str = "the image") -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} has {width}x{height} pixels; at most {MAX_PIXELS} (4096x4096) can be edited: make it smaller"
        )


def _image(given: Any, channels: int) -> Float[Tensor, "c H W"]:
    if isinstance(given, (str, Path)):
        given = _opened(given)
    if isinstance(given, Image.Image):
        _check_size(*given.size)
        return from_image(given, None, channels)
    values = _numbers(given, "image")
    if isinstance(given, np.ndarray):
        values = values[None] if values.ndim == 2 else values.movedim(-1, 0)
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ValueError(f"an image of shape {tuple(given.shape)}; give an array (h, w, 1 or 3) or a tensor (c, h, w)")
    _check_size(values.shape[2], values.shape[1])
    if values.shape[0] == 3 and channels == 1:
        values = (values * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    return (values.expand(channels, -1, -1) * 2 - 1).contiguous()


def _mask(given: Any) -> Bool[Tensor, "H W"]:
    if isinstance(given, (str, Path)):
        given = _opened(given)
    if isinstance(given, Image.Image):
        _check_size(*given.size)
        given = ImageOps.exif_transpose(given)
        if "A" in given.getbands() or "transparency" in given.info:  # a transparent pixel is not white
            front = given.convert("RGBA")
            given = Image.new("RGBA", front.size, "black")
            given.alpha_composite(front)
        return torch.from_numpy(np.asarray(flatten(given, 1)) >= 127.5)
    values = _numbers(given, "mask")
    values = values.squeeze(-1 if isinstance(given, np.ndarray) else 0) if values.ndim == 3 else values
    if values.ndim != 2:
        raise ValueError(f"a mask of shape {tuple(given.shape)}; give (h, w)")
    return values >= 0.5


def _numbers(given: Any, what: str) -> Float[Tensor, "*shape"]:
    """Float32 values in [0, 1]."""
    if not isinstance(given, (np.ndarray, Tensor)):
        raise ValueError(
            f"the {what} is of type {type(given).__name__}; give a file, a PIL image, an array or a tensor"
        )
    values = torch.tensor(given) if isinstance(given, np.ndarray) else given.detach().cpu()
    if values.dtype == torch.uint8:
        return values.float() / 255
    if values.dtype != torch.bool and not values.is_floating_point():
        raise ValueError(f"a {what} of {values.dtype} numbers; give uint8, floats in [0, 1], or booleans for a mask")
    values = values.float()
    if not (values.isfinite().all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"a {what} with values from {values.min():.3g} to {values.max():.3g}; floats are in [0, 1]")
    return values
