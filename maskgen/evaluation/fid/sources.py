"""Sources of an evaluation (images by index, ready-made features or statistics), and how images are read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from maskgen.data.pixels import fit as fit_image
from maskgen.evaluation.fid.statistics import Gaussian

CROPPED = "images resized to {} at the shorter side and cropped at the centre"

Batch = UInt8[np.ndarray, "n h w 3"]


@dataclass(frozen=True)
class Reading:
    """How images are read; reports include it.

    Args:
        crop: resize the shorter side to this and crop the centre (PIL's anti-aliased bicubic). None keeps images as
            they are, and then all must have one size. Samples of a pipeline are never cropped.
        grey: read grey images as RGB with three equal channels; otherwise they are an error.
        limit: use at most this many images, evenly spread, so that each class folder has its share.
    """

    crop: int | None = None
    grey: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("crop", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass
class Images:
    """Images by index.

    Args:
        count: number of images.
        read: (start, stop) -> images start .. stop - 1, uint8 (n, h, w, 3), all of one size.
        identity: facts that distinguish these images from others without reading all of them.
        labels, class_names: the classes, if the source has them.
        notes: how many images were changed in which way; filled while reading.
    """

    count: int
    read: Callable[[int, int], Batch]
    identity: dict[str, Any]
    labels: Int64[np.ndarray, "n"] | None = None
    class_names: Sequence[str] = ()
    notes: Counter[str] = field(default_factory=Counter)


@dataclass
class Source:
    """One side of an evaluation.

    Args:
        name, kind: for the report.
        images: None if there are only features or statistics.
        gaussian: ready-made mu and sigma; they are preferred to the images, since ADM's files hold only some of these.
        features: ready-made features of the layer for FID.
        resize: the `Extractor.resize_mode` of ready-made features or statistics; None if unknown.
        facts: further facts for the report.
    """

    name: str
    kind: str
    images: Images | None = None
    gaussian: Gaussian | None = None
    features: Float32[np.ndarray, "n d"] | None = None
    resize: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def of_array(images: Any, name: str, reading: Reading, identity: dict[str, Any] | None = None) -> Images:
    """Images in a uint8 tensor (n, c, h, w) or array (n, h, w, c) with 1 or 3 channels."""
    channel = 1 if isinstance(images, Tensor) else -1
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[channel] not in (1, 3):
        raise ValueError(
            f"{name} must be a uint8 tensor (n, c, h, w) or array (n, h, w, c) with 1 or 3 channels, got a "
            f"{type(images).__name__}, {images.dtype}, {tuple(images.shape)}; for images in [0, 1] give round(x * 255)"
        )
    if not len(array):
        raise ValueError(f"{name} holds no images: its shape is {tuple(array.shape)}")
    array = array if channel == -1 else array.transpose(0, 2, 3, 1)
    chosen = evenly(len(array), reading.limit)
    identity = identity or {"sha256": hashlib.sha256(array.tobytes()).hexdigest()}
    notes: Counter[str] = Counter()

    def read(start: int, stop: int) -> Batch:
        batch = array[chosen[start:stop]]
        if batch.shape[-1] == 1:
            note_grey(name, len(batch), reading, notes)
        batch = np.repeat(batch, 3, axis=3) if batch.shape[-1] == 1 else batch
        if reading.crop is None or batch.shape[1:3] == (reading.crop, reading.crop):
            return np.ascontiguousarray(batch)
        notes[CROPPED.format(reading.crop)] += len(batch)
        return np.stack([np.asarray(fit_image(Image.fromarray(x), (reading.crop, reading.crop))) for x in batch])

    return Images(len(chosen), read, identity | vars(reading), notes=notes)


def note_grey(name: str, count: int, reading: Reading, notes: Counter[str]) -> None:
    """Count grey images; without `reading.grey` they are an error, since they are often a mistake."""
    if not reading.grey:
        raise ValueError(
            f"{name} is grey; Inception takes RGB. Give coloured images, or `grey=True` (--grey) to read grey ones "
            "as RGB with three equal channels"
        )
    notes["grey images taken as RGB"] += count


def evenly(total: int, limit: int | None) -> list[int]:
    """At most `limit` of `total` indices, evenly spaced."""
    kept = min(total, limit or total)
    return [i * total // kept for i in range(kept)]


def digest_of(value: Any) -> str:
    """The SHA-256 digest of a value's JSON, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
