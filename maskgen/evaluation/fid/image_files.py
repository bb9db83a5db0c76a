"""Images in a folder, a .zip or a .tar, read by index at their own size and in threads."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from maskgen.data.pixels import fit as fit_image
from maskgen.data.shards import read_samples
from maskgen.evaluation.fid.sources import CROPPED, Batch, Images, Reading, digest_of, evenly, note_grey

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
READERS = 8  # threads that decode images


def of_folder(path: Path, reading: Reading) -> Images:
    files = sorted(file for file in path.rglob("*") if _is_image(file.relative_to(path)) and file.is_file())
    if not files:
        raise ValueError(f"{path} holds no images; looked in all its folders for {', '.join(sorted(SUFFIXES))}")
    stats = [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return _of_files(
        [str(file) for file in files], lambda i: BytesIO(files[i].read_bytes()), {"files": digest_of(stats)}, reading
    )


def _is_image(path: Any) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def of_zip(path: Path, reading: Reading) -> Images:
    try:
        archive = zipfile.ZipFile(path)  # stays open, or its directory would be read for every image
        names = sorted(i.filename for i in archive.infolist() if not i.is_dir() and _is_image(Path(i.filename)))
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a zip file ({error}); write it anew") from error
    if not names:
        raise ValueError(f"{path} holds no images; looked for {', '.join(sorted(SUFFIXES))}")

    return _of_files(
        [f"{path}:{name}" for name in names], lambda i: BytesIO(archive.read(names[i])), _identity(path), reading
    )


def of_tar(path: Path, reading: Reading) -> Images:
    samples = list(read_samples(path))
    if not samples:
        raise ValueError(f"{path} holds no images (.jpg, .jpeg, .png, .webp)")
    return _of_files(
        [name for name, _, _ in samples], lambda i: BytesIO(samples[i][1].read()), _identity(path), reading
    )


def _identity(path: Path) -> dict[str, Any]:
    """Of an archive; reading all of it for a digest may take as long as the work."""
    return {"file": path.name, "bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns}


def _of_files(
    names: list[str], open_image: Callable[[int], BytesIO], identity: dict[str, Any], reading: Reading
) -> Images:
    chosen = evenly(len(names), reading.limit)
    notes: Counter[str] = Counter()

    def read_one(i: int) -> tuple[UInt8[np.ndarray, "h w 3"], Counter[str]]:
        noted: Counter[str] = Counter()  # its own: threads would lose counts of a shared one
        return _decode(open_image(i), names[i], reading, noted), noted

    first, _ = read_one(chosen[0])

    def read(start: int, stop: int) -> Batch:
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(read_one, chosen[start:stop]))
        for (pixels, noted), i in zip(found, chosen[start:stop]):
            notes.update(noted)
            if pixels.shape != first.shape:
                (h, w), (h0, w0) = pixels.shape[:2], first.shape[:2]
                raise ValueError(
                    f"{names[i]} is {h}x{w} (h x w), {names[chosen[0]]} is {h0}x{w0}; images must be of one size, or "
                    "the distance measures how they were resized: crop them all alike with `crop` (--crop SIDE)"
                )
        return np.stack([pixels for pixels, _ in found])

    return Images(len(chosen), read, identity | vars(reading), notes=notes)


def _decode(file: BytesIO, name: str, reading: Reading, notes: Counter[str]) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB, cropped where that is asked for."""
    try:
        with Image.open(file) as image:
            mode, rgb = image.mode, image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {name} ({error}); remove it or write it anew") from error
    if mode in ("F", "I") or mode.startswith("I;"):
        raise ValueError(f"{name} has more than 8 bits a channel (mode {mode}); convert it to 8-bit RGB first")
    if mode in ("1", "L", "LA"):
        note_grey(name, 1, reading, notes)
    elif mode != "RGB":
        notes[f"{mode} images converted to RGB (transparency dropped, as torch-fidelity does)"] += 1
    if reading.crop is not None and rgb.size != (reading.crop, reading.crop):
        notes[CROPPED.format(reading.crop)] += 1
        rgb = fit_image(rgb, (reading.crop, reading.crop))
    return np.asarray(rgb)
