"""What a distance compares, as uint8 batches: a folder, an `.npz`, a pipeline, a data set, or a stream of batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from maskgen.evaluation.statistics import Gaussian

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
OPEN_SIZES = 16  # half-filled batches kept at once where a folder mixes sizes

Batches = Iterator[UInt8[Tensor, "b 3 h w"]]


@dataclass
class Pictures:
    """One side of a comparison.

    Args:
        name: what it is, for the report.
        read: starts a pass over the pictures, uint8 (b, 3, h, w), all of one size within a batch; None where there are
            only statistics.
        statistics: ready-made `mu` and `sigma`, where the file has them.
        notes: what was done to the pictures and to how many; filled while reading.
    """

    name: str
    read: Callable[[], Batches] | None = None
    statistics: Gaussian | None = None
    notes: Counter[str] = field(default_factory=Counter)


def open_pictures(
    source: Any,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    pipeline_options: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> Pictures:
    """Find out what `source` is and check what can be checked before any work.

    Args:
        source: a folder of pictures (with its sub-folders); an `.npz` with uint8 (n, h, w, c) pictures under `arr_0` or
            `images`, or `mu` and `sigma`; a saved pipeline (a folder with `model_index.json`) or a run that holds one;
            a pipeline; a map-style data set of maskgen's (items with `pixels` in [-1, 1]); an iterable, or a function
            of no arguments that returns one, of uint8 batches: tensors (b, c, h, w) or arrays (b, h, w, c).
        limit: use at most so many: evenly spaced ones of a folder or file (so that every class folder has its share),
            the first ones of a stream.
        num_samples: how many pictures a pipeline draws, its classes in turn.
        seed: picture i of a pipeline is drawn with seed + i.
        pipeline_options: more arguments for the pipeline's call (`num_inference_steps`, `guidance_scale`, ...).

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the folder is empty, or the file holds something else; while reading, an unreadable picture.
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; give a folder of pictures, an .npz file or a saved pipeline"
            )
        if path.is_file():
            return _npz(path, batch_size, limit)
        if not any((folder / "model_index.json").is_file() for folder in (path, path / "pipeline")):
            return _folder(path, batch_size, limit)
        pipe = _load_pipeline(path, device)
        return _pipeline(
            pipe, str(path), min(num_samples, limit or num_samples), batch_size, seed, pipeline_options or {}
        )
    if hasattr(source, "class_names") and not callable(source):
        return _dataset(source, batch_size, limit)
    if hasattr(source, "class_names"):
        count = min(num_samples, limit or num_samples)
        return _pipeline(source, type(source).__name__, count, batch_size, seed, pipeline_options or {})
    if callable(source) or isinstance(source, Iterable):
        return _stream(source, batch_size, limit)
    raise ValueError(
        f"cannot read pictures from a {type(source).__name__}; give a path, a pipeline, a data set or uint8 batches"
    )


def _evenly(total: int, limit: int | None) -> list[int]:
    """At most `limit` of `total` indices, evenly spaced."""
    kept = min(total, limit or total)
    return [i * total // kept for i in range(kept)]


def _folder(path: Path, batch_size: int, limit: int | None) -> Pictures:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise ValueError(f"{path} holds no pictures; looked in all its folders for {', '.join(sorted(SUFFIXES))}")
    pictures = Pictures(str(path))
    chosen = [files[i] for i in _evenly(len(files), limit)]
    if len(chosen) < len(files):
        pictures.notes[f"evenly spaced pictures of {len(files)}"] = len(chosen)

    def read() -> Batches:
        return _by_size((_read_picture(file, pictures.notes) for file in chosen), batch_size, pictures.notes)

    pictures.read = read
    return pictures


def _read_picture(path: Path, notes: Counter[str]) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            pixels = np.array(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the picture {path} ({error}); remove it or write it anew") from error
    if mode in ("F", "I") or mode.startswith("I;"):
        raise ValueError(f"{path} has more than 8 bits a channel (mode {mode}); convert it to 8-bit RGB first")
    if mode in ("1", "L"):
        notes["grey pictures converted to RGB"] += 1
    elif mode != "RGB":
        notes[f"{mode} pictures converted to RGB (transparency dropped, as torch-fidelity does)"] += 1
    return pixels


def _by_size(pictures: Iterable[UInt8[np.ndarray, "h w 3"]], batch_size: int, notes: Counter[str]) -> Batches:
    """Batches of one size each; the order changes where sizes are mixed, which no statistic minds."""
    waiting: dict[tuple[int, ...], list[np.ndarray]] = {}
    sizes = set()
    for pixels in pictures:
        sizes.add(pixels.shape)
        waiting.setdefault(pixels.shape, []).append(pixels)
        if len(waiting[pixels.shape]) == batch_size:
            yield _stack(waiting.pop(pixels.shape))
        elif len(waiting) > OPEN_SIZES:
            yield _stack(waiting.pop(next(iter(waiting))))
    for group in waiting.values():
        yield _stack(group)
    if len(sizes) > 1:
        notes["picture sizes in one folder, each resized on its own"] = len(sizes)


def _stack(pixels: list[np.ndarray]) -> UInt8[Tensor, "b 3 h w"]:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def _npz(path: Path, batch_size: int, limit: int | None) -> Pictures:
    try:
        file = np.load(path, allow_pickle=False)
        keys = list(file.files)  # a bare .npy array has no names
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no .npz file ({error}); give a folder of pictures, an .npz or a saved pipeline"
        ) from error
    pictures = Pictures(str(path))
    if {"mu", "sigma"} <= set(keys):
        pictures.statistics = _read_statistics(path, file)
    key = next((key for key in ("arr_0", "images") if key in keys), None)
    if key is not None:
        pictures.read = lambda: _arrays(path, key, batch_size, limit, pictures.notes)
    if pictures.statistics is None and key is None:
        raise ValueError(
            f"{path} holds {', '.join(keys) or 'nothing'}; expected `arr_0` or `images`, or `mu` and `sigma`"
        )
    return pictures


def _read_statistics(path: Path, file: Any) -> Gaussian:
    mu, sigma = (np.asarray(file[key], dtype=np.float64) for key in ("mu", "sigma"))
    if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
        raise ValueError(f"{path}: mu must be (d,) and sigma (d, d), got {mu.shape} and {sigma.shape}")
    return Gaussian(mu, sigma)


def _arrays(path: Path, key: str, batch_size: int, limit: int | None, notes: Counter[str]) -> Batches:
    images = np.load(path, allow_pickle=False)[key]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"{path}: `{key}` must be uint8 (n, h, w, c), got {images.dtype} {images.shape}")
    chosen = _evenly(len(images), limit)
    if len(chosen) < len(images):
        notes[f"evenly spaced pictures of {len(images)}"] = len(chosen)
    for start in range(0, len(chosen), batch_size):
        yield _as_batch(images[chosen[start : start + batch_size]], notes)


def _dataset(source: Any, batch_size: int, limit: int | None) -> Pictures:
    pictures = Pictures(type(source).__name__)
    chosen = _evenly(len(source), limit)
    if len(chosen) < len(source):
        pictures.notes[f"evenly spaced pictures of {len(source)}"] = len(chosen)

    def read() -> Batches:
        for start in range(0, len(chosen), batch_size):
            pixels = torch.stack([source[i]["pixels"] for i in chosen[start : start + batch_size]])
            yield _as_batch(((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), pictures.notes)

    pictures.read = read
    return pictures


def _stream(source: Any, batch_size: int, limit: int | None) -> Pictures:
    pictures = Pictures(getattr(source, "__name__", type(source).__name__))

    def read() -> Batches:
        left = limit
        for given in source() if callable(source) else source:
            batch = _as_batch(given, pictures.notes)[:left]
            yield from batch.split(batch_size)
            if left is not None and (left := left - len(batch)) == 0:
                return

    pictures.read = read
    return pictures


def _as_batch(images: Any, notes: Counter[str]) -> UInt8[Tensor, "b 3 h w"]:
    """A tensor (b, c, h, w) or an array (b, h, w, c), uint8, 1 or 3 channels, as RGB."""
    channel = 1 if isinstance(images, Tensor) else -1
    batch = torch.as_tensor(images)
    if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[channel] not in (1, 3):
        raise ValueError(
            f"a batch must be a uint8 tensor (b, c, h, w) or array (b, h, w, c) with 1 or 3 channels, got a "
            f"{type(images).__name__}, {batch.dtype}, {tuple(batch.shape)}; of [0, 1] pictures give round(x * 255)"
        )
    if channel == -1:
        batch = batch.permute(0, 3, 1, 2)
    if batch.shape[1] == 1:
        notes["grey pictures converted to RGB"] += len(batch)
    return batch.expand(-1, 3, -1, -1).contiguous()


def _load_pipeline(path: Path, device: torch.device | str | None) -> Any:
    from maskgen.pipelines.image import MaskedImagePipeline

    pipe = MaskedImagePipeline.from_pretrained(str(path))
    pipe.set_progress_bar_config(disable=True)  # one bar for all batches is enough
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _pipeline(pipe: Any, name: str, count: int, batch_size: int, seed: int, options: Mapping[str, Any]) -> Pictures:
    pictures = Pictures(name)
    classes = len(pipe.class_names or ())
    drawn = f"drawn, {f'{classes} classes in turn' if classes else 'without a class'}, seeds from {seed}"
    pictures.notes[" ".join([drawn, *(f"{key}={value}" for key, value in options.items())])] = count

    def read() -> Batches:
        for start in range(0, count, batch_size):
            index = range(start, min(start + batch_size, count))
            what = {"class_labels": [i % classes for i in index]} if classes else {"num_images_per_prompt": len(index)}
            generators = [torch.Generator().manual_seed(seed + i) for i in index]
            images = pipe(**what, generator=generators, output_type="np", **options).images
            yield _as_batch((np.asarray(images) * 255).round().clip(0, 255).astype(np.uint8), pictures.notes)

    pictures.read = read
    return pictures
