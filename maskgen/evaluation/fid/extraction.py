"""Images to features, in chunks that are kept when a process is killed and that several processes share."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from tqdm import tqdm

from maskgen.data.tokens import wait_until
from maskgen.evaluation.fid.inception import Extractor
from maskgen.evaluation.fid.sources import Images, digest_of
from maskgen.evaluation.fid.statistics import check_finite
from maskgen.pipelines.encode import launched

CHUNK = 4  # batches per file


@dataclass
class Features:
    """The features of images, in the order of the images.

    Args:
        values: the features.
        logits: the logits, if the network has them.
        sha256: digest of the digests of all images (uint8), in order.
        size: [h, w] of the images.
        notes: how many images were changed in which way.
    """

    values: Float32[np.ndarray, "n d"]
    logits: Float32[np.ndarray, "n k"] | None
    sha256: str
    size: list[int]
    notes: Counter[str]


def extract(
    images: Images,
    extractor: Extractor,
    *,
    name: str = "images",
    batch_size: int = 64,
    work: str | Path | None = None,
    progress: bool = True,
) -> Features | None:
    """The features of all images.

    Batches and chunks depend only on `batch_size`. The features are therefore bitwise the same for any number of
    processes and interruptions; another batch size may round differently.

    Args:
        images: the images.
        extractor: the network.
        name: name of the images on the progress bar.
        batch_size: number of images at once.
        work: a folder for finished chunks. They lie in a sub-folder named by a digest of all settings, so that the same
            call resumes where a killed one stopped. The processes of one launch (``torchrun``, ``accelerate launch``)
            share the folder. None keeps everything in memory, for one process.
        progress: show a progress bar.

    Returns:
        The features; None in all processes of a launch but the first.

    Raises:
        ValueError: there are several processes but no `work`, features are NaN, or images cannot be read.
        RuntimeError: other processes of the launch have made no progress for half an hour.
    """
    rank, processes = launched()
    if work is None and processes > 1:
        raise ValueError(f"{processes} processes share a folder of finished work; give `work` (--work FOLDER)")
    step = batch_size * CHUNK
    chunks = [(start, min(start + step, images.count)) for start in range(0, images.count, step)]
    mine = chunks[rank::processes]
    bar = tqdm(
        total=sum(stop - start for start, stop in mine),
        desc=f"features of {name}" + (f", process 1 of {processes}" if processes > 1 else ""),
        unit="image",
        disable=not progress or rank > 0,
    )
    with bar:
        if work is None:
            return _joined([_chunk(images, extractor, *chunk, batch_size, bar) for chunk in chunks])
        folder = _folder(Path(work), images, extractor, batch_size)
        files = {chunk: folder / f"{chunk[0]:09d}.npz" for chunk in chunks}
        done = [chunk for chunk in mine if files[chunk].exists()]
        bar.update(n := sum(stop - start for start, stop in done))
        bar.initial = n  # so that the remaining time is estimated from this run
        for chunk in mine:
            if chunk not in done:
                _write(files[chunk], _chunk(images, extractor, *chunk, batch_size, bar))
    if rank > 0:
        return None
    left = list(files.values())

    def finished() -> int:
        left[:] = [file for file in left if not file.exists()]
        return len(left)

    wait_until(lambda: not finished(), "other processes have made no progress", finished)
    return _joined([_read(file) for file in files.values()])


Chunk = dict[str, np.ndarray]  # the content of a file: features, logits, digests, size, notes


def _chunk(images: Images, extractor: Extractor, start: int, stop: int, batch_size: int, bar: Any) -> Chunk:
    """The features of images `start` to `stop` - 1, batch by batch."""
    images.notes.clear()
    rows: list[tuple[np.ndarray, np.ndarray | None]] = []
    digests: list[np.ndarray] = []
    size: tuple[int, ...] = ()
    for first in range(start, stop, batch_size):
        batch = images.read(first, min(first + batch_size, stop))
        size = batch.shape[1:3]
        digests += [np.frombuffer(hashlib.sha256(x.tobytes()).digest(), np.uint8) for x in batch]
        rows.append(extractor(torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())))
        bar.update(len(batch))
    chunk = {
        "features": np.concatenate([features for features, _ in rows]),
        "digests": np.stack(digests),
        "size": np.array(size),
        "notes": np.array(json.dumps(images.notes)),
    }
    if rows[0][1] is not None:
        chunk["logits"] = np.concatenate([logits for _, logits in rows if logits is not None])
    check_finite(chunk["features"])  # before they are written, or a resumed run would read them
    return chunk


def _joined(chunks: list[Chunk]) -> Features:
    notes: Counter[str] = Counter()
    for chunk in chunks:
        notes.update(json.loads(str(chunk["notes"])))
    sizes = {tuple(chunk["size"].tolist()) for chunk in chunks}
    assert len(sizes) == 1, f"the sources refuse images of several sizes, found {sizes}"
    return Features(
        np.concatenate([chunk["features"] for chunk in chunks]),
        np.concatenate([chunk["logits"] for chunk in chunks]) if "logits" in chunks[0] else None,
        hashlib.sha256(b"".join(chunk["digests"].tobytes() for chunk in chunks)).hexdigest(),
        [int(side) for side in chunks[0]["size"]],
        notes,
    )


def _folder(work: Path, images: Images, extractor: Extractor, batch_size: int) -> Path:
    """The sub-folder of these features, with their settings in a file."""
    from torch_fidelity import __version__ as torch_fidelity

    settings = {
        "images": images.identity,
        "count": images.count,
        "extractor": extractor.facts(),
        "batch_size": batch_size,
        "device": extractor.device.type,  # devices round differently
        "versions": [torch.__version__, torch_fidelity],
    }
    folder = work / digest_of(settings)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "settings.json", (json.dumps(settings, indent=1) + "\n").encode())
    return folder


def _write(file: Path, chunk: Chunk) -> None:
    part = file.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **chunk)
        stream.flush()
        os.fsync(stream.fileno())  # the data must be on disk before the name is
    os.replace(part, file)


def _replace(file: Path, data: bytes) -> None:
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, file)


def _read(file: Path) -> Chunk:
    with np.load(file, allow_pickle=False) as held:
        return {key: held[key] for key in held.files}
