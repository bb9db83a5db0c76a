"""The images of a folder, a .zip file or a .tar file as an evaluation reads them: at their own size, in threads."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from maskgen.data.image_source import ImageSource, open_images
from maskgen.data.pixels import UnreadableImage
from maskgen.data.pixels import fit as fit_image
from maskgen.evaluation.fid.sources import CROPPED, Batch, Images, Reading, digest_of, evenly, note_grey

READERS = 8  # threads that decode images


def of_files(path: Path, reading: Reading) -> Images:
    """The images in a folder, a .zip file or a .tar file.

    Raises:
        ValueError: there are no images or the archive is damaged; while reading, an image that cannot be read, is grey
            or has another size than the first.
    """
    source = open_images(path)
    chosen = evenly(len(source), reading.limit)
    notes: Counter[str] = Counter()

    def read_one(i: int) -> tuple[UInt8[np.ndarray, "h w 3"], Counter[str]]:
        noted: Counter[str] = Counter()  # one per image, because threads would lose counts of a shared one
        return _decode(source, i, reading, noted), noted

    first, _ = read_one(chosen[0])

    def read(start: int, stop: int) -> Batch:
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(read_one, chosen[start:stop]))
        for (pixels, noted), i in zip(found, chosen[start:stop]):
            notes.update(noted)
            if pixels.shape != first.shape:
                (h, w), (h0, w0) = pixels.shape[:2], first.shape[:2]
                raise ValueError(
                    f"{source.where(i)} is {h}x{w} (h x w), {source.where(chosen[0])} is {h0}x{w0}; all images must "
                    "have one size, or the distance measures how they were resized: crop all of them in the same way "
                    "with `crop` (--crop SIDE)"
                )
        return np.stack([pixels for pixels, _ in found])

    return Images(len(chosen), read, _identity(path, source) | vars(reading), notes=notes)


def _identity(path: Path, source: ImageSource) -> dict[str, Any]:
    """What tells these files from others, without reading all of them, which may take as long as the evaluation."""
    if path.is_dir():
        stats = [(name, (path / name).stat()) for name in source.names]
        return {"files": digest_of([(name, found.st_size, found.st_mtime_ns) for name, found in stats])}
    return {"file": path.name, "bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns}


def _decode(source: ImageSource, i: int, reading: Reading, notes: Counter[str]) -> UInt8[np.ndarray, "h w 3"]:
    """One image as RGB, cropped where `reading` asks for it."""
    try:
        mode, rgb = source.decode(i, lambda image: (image.mode, image.convert("RGB")))
    except UnreadableImage as error:
        raise ValueError(f"cannot read the image {error}; remove it or write it again") from error
    name = source.where(i)
    if mode in ("F", "I") or mode.startswith("I;"):
        raise ValueError(f"{name} has more than 8 bits per channel (mode {mode}); convert it to 8-bit RGB first")
    if mode in ("1", "L", "LA"):
        note_grey(name, 1, reading, notes)
    elif mode != "RGB":
        notes[f"{mode} images converted to RGB (transparency dropped, as torch-fidelity does)"] += 1
    if reading.crop is not None and rgb.size != (reading.crop, reading.crop):
        notes[CROPPED.format(reading.crop)] += 1
        rgb = fit_image(rgb, (reading.crop, reading.crop))
    return np.asarray(rgb)
