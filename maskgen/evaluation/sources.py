"""What is evaluated: pictures by index, ready-made features, or ready-made statistics, from whatever holds them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from maskgen.data import DATASETS
from maskgen.data.pixels import fit as fit_picture
from maskgen.data.shards import read_samples
from maskgen.data.source import open_dataset
from maskgen.evaluation.statistics import Gaussian
from maskgen.pictures import to_uint8
from maskgen.pipelines.encode import describe

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
READERS = 8  # threads that decode pictures
CROPPED = "pictures resized to {} at the shorter side and cropped at the centre"

Batch = UInt8[np.ndarray, "n h w 3"]


@dataclass(frozen=True)
class Reading:
    """How pictures are read, all of it told in the report.

    Args:
        crop: resize the shorter side to this and crop the centre (PIL's bicubic, anti-aliased); None reads pictures as
            they are, and they must be of one size. What a pipeline draws is never cropped.
        grey: take grey pictures as RGB with three equal channels; without it they are an error.
        limit: use at most so many pictures, evenly spread, so that every class folder has its share.
    """

    crop: int | None = None
    grey: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("crop", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass
class Pictures:
    """Pictures by index.

    Args:
        count: how many there are.
        read: (start, stop) -> pictures start .. stop - 1, uint8 (n, h, w, 3), all of one size.
        identity: what tells these pictures from others without reading them all.
        labels, class_names: where the source has them.
        notes: what was done to how many pictures; filled while reading.
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
        pictures: None where there are only features or statistics.
        gaussian: ready-made mu and sigma; taken before the pictures, of which ADM's files hold only some.
        features: ready-made features of the layer that FID takes.
        resize: the `Extractor.resize_mode` that ready-made features or statistics were made with; None if unknown.
        facts: more for the report.
    """

    name: str
    kind: str
    pictures: Pictures | None = None
    gaussian: Gaussian | None = None
    features: Float32[np.ndarray, "n d"] | None = None
    resize: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def open_source(source: Any, reading: Reading | None = None) -> Source:
    """Find out what `source` is and check what can be checked before any work; pipelines are `sampling.drawn`.

    Args:
        source: a folder of pictures (with its sub-folders), a .zip or .tar of them; an .npz or .pt file (see
            :mod:`.references`); what :func:`maskgen.data.source.open_dataset` takes, or a .yaml file of it, alone or
            under `data`; a map-style data set of maskgen's (items with `pixels` in [-1, 1]); or uint8 pictures, a
            tensor (n, c, h, w) or an array (n, h, w, c).

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the folder is empty, or the file holds something else; while reading, pictures that cannot be
            read, are grey, or of several sizes.
    """
    from maskgen.evaluation.references import read_npz, read_torch_cache

    reading = reading or Reading()
    if isinstance(source, (np.ndarray, Tensor)):
        return Source("pictures in memory", "array", of_array(source, "the array", reading))
    if not isinstance(source, (str, Path)):
        if not (hasattr(source, "__getitem__") and hasattr(source, "labels")):
            raise ValueError(
                f"cannot read pictures from a {type(source).__name__}; give a path, a pipeline, a data set or uint8 "
                "pictures"
            )
        return _of_dataset(source, type(source).__name__, reading)
    path = Path(source).expanduser()
    if not path.exists():
        if str(source).lstrip().startswith("{") or str(source) in DATASETS:
            return _of_dataset(open_dataset(str(source), reading.crop), str(source), reading)
        raise FileNotFoundError(
            f"{path} does not exist; give a folder of pictures, an .npz file or a saved pipeline, a .zip, .tar or "
            f".yaml, or a data set ({', '.join(DATASETS)}, or a mapping {{type: ...}})"
        )
    if path.is_dir():
        return Source(str(path), "folder", _of_folder(path, reading))
    if path.suffix == ".zip":
        return Source(str(path), "zip", _of_zip(path, reading))
    if path.suffix == ".tar":
        return Source(str(path), "tar", _of_tar(path, reading))
    if path.suffix in (".yaml", ".yml"):
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = spec.get("data", spec) if isinstance(spec, dict) else spec
        return _of_dataset(open_dataset(json.dumps(spec), reading.crop), str(path), reading)
    return read_torch_cache(path) if path.suffix == ".pt" else read_npz(path, reading)


# --------------------------------------------------------------------------------------------------- files of pictures


def _of_folder(path: Path, reading: Reading) -> Pictures:
    files = sorted(file for file in path.rglob("*") if _is_picture(file.relative_to(path)) and file.is_file())
    if not files:
        raise ValueError(f"{path} holds no pictures; looked in all its folders for {', '.join(sorted(SUFFIXES))}")
    stats = [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return _of_files(
        [str(file) for file in files], lambda i: BytesIO(files[i].read_bytes()), {"files": digest_of(stats)}, reading
    )


def _is_picture(path: Any) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _of_zip(path: Path, reading: Reading) -> Pictures:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(i.filename for i in archive.infolist() if not i.is_dir() and _is_picture(Path(i.filename)))
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a zip file ({error}); write it anew") from error
    if not names:
        raise ValueError(f"{path} holds no pictures; looked for {', '.join(sorted(SUFFIXES))}")

    def open_picture(i: int) -> BytesIO:
        with zipfile.ZipFile(path) as archive:  # anew each time: one open archive is no good to several threads
            return BytesIO(archive.read(names[i]))

    return _of_files([f"{path}:{name}" for name in names], open_picture, _identity(path), reading)


def _of_tar(path: Path, reading: Reading) -> Pictures:
    samples = list(read_samples(path))
    if not samples:
        raise ValueError(f"{path} holds no pictures (.jpg, .jpeg, .png, .webp)")
    return _of_files(
        [name for name, _, _ in samples], lambda i: BytesIO(samples[i][1].read()), _identity(path), reading
    )


def _identity(path: Path) -> dict[str, Any]:
    """Of an archive; reading all of it for a digest may take as long as the work."""
    return {"file": path.name, "bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns}


def _of_files(
    names: list[str], open_picture: Callable[[int], BytesIO], identity: dict[str, Any], reading: Reading
) -> Pictures:
    chosen = evenly(len(names), reading.limit)
    notes: Counter[str] = Counter()

    def read_one(i: int) -> UInt8[np.ndarray, "h w 3"]:
        return _decode(open_picture(i), names[i], reading, notes)

    first = read_one(chosen[0])

    def read(start: int, stop: int) -> Batch:
        with ThreadPoolExecutor(READERS) as pool:
            batch = list(pool.map(read_one, chosen[start:stop]))
        for pixels, i in zip(batch, chosen[start:stop]):
            if pixels.shape != first.shape:
                (h, w), (h0, w0) = pixels.shape[:2], first.shape[:2]
                raise ValueError(
                    f"{names[i]} is {h}x{w} (h x w), {names[chosen[0]]} is {h0}x{w0}; pictures must be of one size, or "
                    "the distance measures how they were resized: crop them all alike with `crop` (--crop SIDE)"
                )
        return np.stack(batch)

    return Pictures(len(chosen), read, identity | vars(reading), notes=notes)


def _decode(file: BytesIO, name: str, reading: Reading, notes: Counter[str]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture file as RGB, cropped where that is asked for."""
    try:
        with Image.open(file) as picture:
            mode, rgb = picture.mode, picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the picture {name} ({error}); remove it or write it anew") from error
    if mode in ("F", "I") or mode.startswith("I;"):
        raise ValueError(f"{name} has more than 8 bits a channel (mode {mode}); convert it to 8-bit RGB first")
    if mode in ("1", "L", "LA"):
        note_grey(name, 1, reading, notes)
    elif mode != "RGB":
        notes[f"{mode} pictures converted to RGB (transparency dropped, as torch-fidelity does)"] += 1
    if reading.crop is not None and rgb.size != (reading.crop, reading.crop):
        notes[CROPPED.format(reading.crop)] += 1
        rgb = fit_picture(rgb, (reading.crop, reading.crop))
    return np.asarray(rgb)


def note_grey(name: str, count: int, reading: Reading, notes: Counter[str]) -> None:
    """Grey pictures are refused unless they are asked for: among coloured ones they are mostly a mistake."""
    if not reading.grey:
        raise ValueError(
            f"{name} is grey; Inception takes RGB. Give coloured pictures, or `grey=True` (--grey) to take grey ones "
            "as RGB with three equal channels"
        )
    notes["grey pictures taken as RGB"] += count


# ------------------------------------------------------------------------------------------------ arrays and data sets


def of_array(images: Any, name: str, reading: Reading, identity: dict[str, Any] | None = None) -> Pictures:
    """A uint8 tensor (n, c, h, w) or array (n, h, w, c) of 1 or 3 channels."""
    channel = 1 if isinstance(images, Tensor) else -1
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[channel] not in (1, 3):
        raise ValueError(
            f"{name} must be a uint8 tensor (n, c, h, w) or array (n, h, w, c) with 1 or 3 channels, got a "
            f"{type(images).__name__}, {images.dtype}, {tuple(images.shape)}; of [0, 1] pictures give round(x * 255)"
        )
    if not len(array):
        raise ValueError(f"{name} holds no pictures: its shape is {tuple(array.shape)}")
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
        return np.stack([np.asarray(fit_picture(Image.fromarray(x), (reading.crop, reading.crop))) for x in batch])

    return Pictures(len(chosen), read, identity | vars(reading), notes=notes)


def _of_dataset(dataset: Any, name: str, reading: Reading) -> Source:
    chosen = evenly(len(dataset), reading.limit)
    first, notes = dataset[chosen[0]]["pixels"], Counter[str]()

    def read(start: int, stop: int) -> Batch:
        items = [dataset[i]["pixels"] for i in chosen[start:stop]]
        if any(item.shape != first.shape for item in items):
            raise ValueError(f"{name} holds pictures of several sizes; give the data set a size")
        pixels = torch.stack(items)
        if pixels.shape[1] == 1:
            note_grey(name, len(pixels), reading, notes)
        return to_uint8(pixels.expand(-1, 3, -1, -1))

    labels, classes = np.asarray(dataset.labels, np.int64)[chosen], list(getattr(dataset, "class_names", ()))
    pictures = Pictures(len(chosen), read, describe(dataset) | vars(reading), labels, classes, notes)
    return Source(name, "data set", pictures)


def evenly(total: int, limit: int | None) -> list[int]:
    """At most `limit` of `total` indices, evenly spaced."""
    kept = min(total, limit or total)
    return [i * total // kept for i in range(kept)]


def digest_of(value: Any) -> str:
    """SHA-256 of a value's JSON: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
