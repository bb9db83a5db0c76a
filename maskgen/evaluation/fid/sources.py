"""What is evaluated: images by index, ready-made features, or ready-made statistics; and how images are read."""

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
    """How images are read, all of it told in the report.

    Args:
        crop: resize the shorter side to this and crop the centre (PIL's bicubic, anti-aliased); None reads images as
            they are, and they must be of one size. What a pipeline draws is never cropped.
        grey: take grey images as RGB with three equal channels; without it they are an error.
        limit: use at most so many images, evenly spread, so that every class folder has its share.
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
        count: how many there are.
        read: (start, stop) -> images start .. stop - 1, uint8 (n, h, w, 3), all of one size.
        identity: what tells these images from others without reading them all.
        labels, class_names: where the source has them.
        notes: what was done to how many images; filled while reading.
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
        images: None where there are only features or statistics.
        gaussian: ready-made mu and sigma; taken before the images, of which ADM's files hold only some.
        features: ready-made features of the layer that FID takes.
        resize: the `Extractor.resize_mode` that ready-made features or statistics were made with; None if unknown.
        facts: more for the report.
    """

    name: str
    kind: str
    images: Images | None = None
    gaussian: Gaussian | None = None
    features: Float32[np.ndarray, "n d"] | None = None
    resize: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def of_array(images: Any, name: str, reading: Reading, identity: dict[str, Any] | None = None) -> Images:
    """A uint8 tensor (n, c, h, w) or array (n, h, w, c) of 1 or 3 channels."""
    channel = 1 if isinstance(images, Tensor) else -1
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[channel] not in (1, 3):
        raise ValueError(
            f"{name} must be a uint8 tensor (n, c, h, w) or array (n, h, w, c) with 1 or 3 channels, got a "
            f"{type(images).__name__}, {images.dtype}, {tuple(images.shape)}; of [0, 1] images give round(x * 255)"
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
    """Grey images are refused unless they are asked for: among coloured ones they are mostly a mistake."""
    if not reading.grey:
        raise ValueError(
            f"{name} is grey; Inception takes RGB. Give coloured images, or `grey=True` (--grey) to take grey ones "
            "as RGB with three equal channels"
        )
    notes["grey images taken as RGB"] += count


def evenly(total: int, limit: int | None) -> list[int]:
    """At most `limit` of `total` indices, evenly spaced."""
    kept = min(total, limit or total)
    return [i * total // kept for i in range(kept)]


def digest_of(value: Any) -> str:
    """SHA-256 of a value's JSON: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
