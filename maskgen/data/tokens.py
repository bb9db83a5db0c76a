"""Token caches: a data set that is encoded once, so that training a transformer never runs the tokenizer.

A cache is a folder with ``codes.npy`` (n, *grid), (n, *grid, levels) or, for continuous tokens, (n, *grid, d);
``labels.npy`` int64 (n,); and ``meta.json``, which is written last. Until then the folder has ``plan.json`` (the future
``meta.json``) and ``progress/`` with one empty file per finished chunk.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

PATIENCE = 1800  # seconds to wait without progress by other processes


class TokenCache:
    """A token cache, memory-mapped.

    Items are ``{"codes": int64 (*grid) or (*grid, levels), or float32 (*grid, d); "label": int}``. `meta` has
    codebook_size (0 for continuous tokens), class_names, the fingerprint of the tokenizer, and further facts from the
    command that wrote it. `levels` is the number of codes per position.

    Raises:
        FileNotFoundError: the folder holds no token cache.
        ValueError: reading an item finds a code outside the codebook.
    """

    def __init__(self, path: str):
        self.folder = Path(path)
        if not (self.folder / "meta.json").is_file():
            raise FileNotFoundError(f"{self.folder} holds no token cache (meta.json); make one with `maskgen encode`")
        self.meta: dict[str, Any] = json.loads((self.folder / "meta.json").read_text())
        self.codes = np.load(self.folder / "codes.npy", mmap_mode="r")
        self.labels = np.load(self.folder / "labels.npy")
        self.class_names: list[str] = self.meta["class_names"]
        self.codebook_size: int = self.meta["codebook_size"]
        self.levels: int = self.meta.get("levels", 1)  # older caches have no such entry
        last_axis = self.levels > 1 or self.codebook_size == 0
        self.grid: tuple[int, ...] = tuple(self.codes.shape[1:-1] if last_axis else self.codes.shape[1:])

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        codes = torch.from_numpy(self.codes[index].astype(np.int64 if self.codebook_size else np.float32))
        if self.codebook_size and int(codes.max()) >= self.codebook_size:
            raise ValueError(
                f"row {index} of {self.folder} holds code {int(codes.max())}; its codebook has 0 to "
                f"{self.codebook_size - 1}, so the cache is damaged: remove it and encode again"
            )
        return {"codes": codes, "label": int(self.labels[index])}


class TokenCacheWriter:
    """Writes a token cache in chunks, with any number of processes and over any number of interrupted runs.

    The first process creates the files. Each process writes chunks at their offset, flushes them, and then marks them
    as done, so that a chunk without a mark is written again. The process that finds all chunks done writes
    ``meta.json``.

    Args:
        path: the folder.
        meta: the content of ``meta.json``; an interrupted run is resumed only if its content is equal.
        rows: number of rows of the cache.
        item: a tensor with the shape and dtype of one row of codes, as from :meth:`Tokenizer.encode`.
        chunks: number of chunks; the caller decides which rows they have.
        first: whether this process creates the files or waits for the process that does.

    Raises:
        ValueError: the folder holds a complete or partial cache with another `meta`; the message lists the differences.
    """

    def __init__(
        self, path: str | Path, meta: Mapping[str, Any], rows: int, item: Tensor, chunks: int, first: bool = True
    ):
        self.folder, self.chunks = Path(path), chunks
        self.meta = json.loads(json.dumps(meta))  # as it is when read back
        self.size = int(meta["codebook_size"])
        self.plan, self.progress = self.folder / "plan.json", self.folder / "progress"
        if first and not self._begun():
            self._lay_out(rows, item)
        wait_until(self._begun, "the first process has not created its files", lambda: 0)
        self._refuse_another()
        codes = np.load(self.folder / "codes.npy", mmap_mode="r")
        self.dtype, self.row_bytes, self.offset = codes.dtype, codes[:1].nbytes, codes.offset
        self.label_offset = np.load(self.folder / "labels.npy", mmap_mode="r").offset

    def _begun(self) -> bool:
        return self.plan.is_file() or self.complete()

    def complete(self) -> bool:
        """Whether the cache is complete."""
        return (self.folder / "meta.json").is_file()

    def _lay_out(self, rows: int, item: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.progress, ignore_errors=True)
        self.progress.mkdir()
        open_memmap(self.folder / "codes.npy", "w+", _dtype(self.size, item.dtype), (rows, *item.shape)).flush()
        open_memmap(self.folder / "labels.npy", "w+", np.int64, (rows,)).flush()
        part = self.folder / "plan.json.part"
        part.write_text(json.dumps(self.meta))
        os.replace(part, self.plan)

    def _refuse_another(self) -> None:
        try:
            found = json.loads(self.plan.read_text())
        except FileNotFoundError:  # the cache is complete
            found = json.loads((self.folder / "meta.json").read_text())
        differing = [
            f"{key} was {_short(found.get(key))}, is {_short(self.meta.get(key))}"
            for key in {**found, **self.meta}
            if found.get(key) != self.meta.get(key)
        ]
        if differing:
            raise ValueError(
                f"{self.folder} holds another token cache: {'; '.join(differing)}. Give another folder, "
                "or remove this one to encode again"
            )

    def done(self) -> set[int]:
        """The chunks that are done."""
        found = {int(p.name) for p in self.progress.iterdir()} if self.progress.is_dir() else set()
        return set(range(self.chunks)) if self.complete() else found

    def write(self, start: int, codes: Tensor, labels: np.ndarray) -> None:
        """Write codes and labels to the rows from `start` on.

        Raises:
            ValueError: a code lies outside the codebook.
        """
        if self.size and not (int(codes.min()) >= 0 and int(codes.max()) < self.size):
            raise ValueError(
                f"codes run from {int(codes.min())} to {int(codes.max())}; this codebook has 0 to {self.size - 1}"
            )
        _put(self.folder / "codes.npy", self.offset + start * self.row_bytes, codes.cpu().numpy().astype(self.dtype))
        _put(self.folder / "labels.npy", self.label_offset + start * 8, labels.astype(np.int64))

    def mark(self, chunk: int) -> None:
        """Mark a chunk whose rows are all written."""
        (self.progress / str(chunk)).touch()

    def finish(self) -> Path:
        """Wait for the chunks of other processes, write ``meta.json`` and return the folder.

        Raises:
            RuntimeError: the other processes have made no progress for half an hour.
        """
        wait_until(
            lambda: len(self.done()) == self.chunks, "other processes have made no progress", lambda: len(self.done())
        )
        try:
            os.replace(self.plan, self.folder / "meta.json")
        except FileNotFoundError:  # another process was faster
            assert self.complete()
        shutil.rmtree(self.progress, ignore_errors=True)
        return self.folder


def write_token_cache(
    path: str | Path,
    batches: Iterable[Tensor],
    labels: np.ndarray,
    grid: tuple[int, ...],
    codebook_size: int,
    class_names: list[str],
    fingerprint: str,
) -> Path:
    """Write batches of codes, int64 (b, *grid), to a folder whose previous cache is replaced.

    Raises:
        ValueError: a code lies outside the codebook.
    """
    for name in ("meta.json", "plan.json"):
        (Path(path) / name).unlink(missing_ok=True)
    meta = {"codebook_size": codebook_size, "class_names": class_names, "tokenizer": fingerprint}
    writer = TokenCacheWriter(path, meta, len(labels), torch.zeros(grid, dtype=torch.int64), 1)
    start = 0
    for batch in batches:
        writer.write(start, batch, labels[start : start + len(batch)])
        start += len(batch)
    writer.mark(0)
    return writer.finish()


def _dtype(codebook_size: int, dtype: torch.dtype) -> Any:
    """The smallest dtype that holds the codes; continuous tokens in half precision keep it."""
    if codebook_size:
        return np.uint16 if codebook_size <= 2**16 else np.int32
    return np.float16 if dtype == torch.float16 else np.float32


def _put(file: Path, offset: int, values: np.ndarray) -> None:
    """Write at an offset and flush to disk, without a memory map: machines that share a folder share no pages."""
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(values.tobytes())
        stream.flush()
        os.fsync(stream.fileno())


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + "..."


def wait_until(condition: Callable[[], bool], problem: str, sign_of_life: Callable[[], int]) -> None:
    """Wait until `condition()`; RuntimeError if `sign_of_life()` stays the same for `PATIENCE` seconds."""
    last, since = sign_of_life(), time.monotonic()
    while not condition():
        time.sleep(0.2)
        if (now := sign_of_life()) != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise RuntimeError(f"{problem} for {PATIENCE} seconds; start the same command again to resume")
