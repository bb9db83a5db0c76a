"""Token caches: a data set encoded once, so that the transformer's training never runs the tokenizer.

A cache is a folder: ``codes.npy`` (n, *grid), also (n, *grid, levels) or, of continuous tokens, (n, *grid, d);
``labels.npy`` int64 (n,); and ``meta.json``, which is written last. While it is made, ``plan.json`` (what will be
``meta.json``) and ``progress/``, an empty file a finished chunk, stand in its place.
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

PATIENCE = 1800  # seconds without a sign of the other processes


class TokenCache:
    """A token cache, memory-mapped.

    Items are ``{"codes": int64 (*grid) or (*grid, levels), or float32 (*grid, d); "label": int}``. `meta` has
    codebook_size (0 where tokens are continuous), class_names, the fingerprint of the tokenizer that made it, and what
    else its maker wrote down. `levels` is the number of codes a place.

    Raises:
        FileNotFoundError: no token cache there.
        ValueError: when read, a code outside the codebook.
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
        self.levels: int = self.meta.get("levels", 1)  # caches of before there were levels
        beside = self.levels > 1 or self.codebook_size == 0
        self.grid: tuple[int, ...] = tuple(self.codes.shape[1:-1] if beside else self.codes.shape[1:])

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        codes = torch.from_numpy(self.codes[index].astype(np.int64 if self.codebook_size else np.float32))
        if self.codebook_size and int(codes.max()) >= self.codebook_size:
            raise ValueError(
                f"row {index} of {self.folder} holds code {int(codes.max())}; the codebook it was made with has 0 to "
                f"{self.codebook_size - 1}, so the cache is damaged: remove it and encode again"
            )
        return {"codes": codes, "label": int(self.labels[index])}


class TokenCacheWriter:
    """Makes a token cache in chunks, by any number of processes and over any number of interrupted runs.

    The first process lays out the files; each process writes chunks and marks them done; whichever finds all of them
    done writes ``meta.json``. Chunks are written by their place in the file, flushed, then marked, so that a chunk
    without its mark is simply done again.

    Args:
        path: the folder.
        meta: what ``meta.json`` will hold; a run goes on with a cache begun with exactly this.
        rows: of the cache.
        item: shape and dtype of one row of codes, as :meth:`Tokenizer.encode` gives it.
        chunks: number of chunks; what they are is the caller's affair.
        first: whether this process lays out the files, or waits for the one that does.

    Raises:
        ValueError: the folder holds a cache, whole or begun, of another making; the message says what differs.
    """

    def __init__(
        self, path: str | Path, meta: Mapping[str, Any], rows: int, item: Tensor, chunks: int, first: bool = True
    ):
        self.folder, self.chunks = Path(path), chunks
        self.meta = json.loads(json.dumps(meta))  # as it will be read
        self.size = int(meta["codebook_size"])
        self.plan, self.progress = self.folder / "plan.json", self.folder / "progress"
        if first and not self._begun():
            self._lay_out(rows, item)
        wait_until(self._begun, "the first process has not laid out its files", lambda: 0)
        self._refuse_another()
        codes = np.load(self.folder / "codes.npy", mmap_mode="r")
        self.dtype, self.row_bytes, self.offset = codes.dtype, codes[:1].nbytes, codes.offset
        self.label_offset = np.load(self.folder / "labels.npy", mmap_mode="r").offset

    def _begun(self) -> bool:
        return self.plan.is_file() or self.complete()

    def complete(self) -> bool:
        """Whether the cache is whole."""
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
        except FileNotFoundError:  # finished since, or long ago
            found = json.loads((self.folder / "meta.json").read_text())
        differing = [
            f"{key} was {_short(found.get(key))}, is {_short(self.meta.get(key))}"
            for key in {**found, **self.meta}
            if found.get(key) != self.meta.get(key)
        ]
        if differing:
            raise ValueError(
                f"{self.folder} holds a token cache of another making: {'; '.join(differing)}. Give another folder, "
                "or remove this one to encode anew"
            )

    def done(self) -> set[int]:
        """The chunks that are done."""
        found = {int(p.name) for p in self.progress.iterdir()} if self.progress.is_dir() else set()
        return set(range(self.chunks)) if self.complete() else found

    def write(self, start: int, codes: Tensor, labels: np.ndarray) -> None:
        """Put codes and labels at the rows from `start`.

        Raises:
            ValueError: a code outside the codebook.
        """
        if self.size and not (int(codes.min()) >= 0 and int(codes.max()) < self.size):
            raise ValueError(
                f"codes run from {int(codes.min())} to {int(codes.max())}; this codebook has 0 to {self.size - 1}"
            )
        _put(self.folder / "codes.npy", self.offset + start * self.row_bytes, codes.cpu().numpy().astype(self.dtype))
        _put(self.folder / "labels.npy", self.label_offset + start * 8, labels.astype(np.int64))

    def mark(self, chunk: int) -> None:
        """Say that all rows of a chunk are written."""
        (self.progress / str(chunk)).touch()

    def finish(self) -> Path:
        """Wait for the chunks of other processes, write ``meta.json``, give the folder.

        Raises:
            RuntimeError: the other processes have done nothing for half an hour.
        """
        wait_until(lambda: len(self.done()) == self.chunks, "other processes do nothing", lambda: len(self.done()))
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
    """Write codes as they come, int64 (b, *grid) a batch, over whatever cache the folder holds.

    Raises:
        ValueError: a code outside the codebook.
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
    """The smallest that holds the codes; continuous tokens keep half precision where they come in it."""
    if codebook_size:
        return np.uint16 if codebook_size <= 2**16 else np.int32
    return np.float16 if dtype == torch.float16 else np.float32


def _put(file: Path, offset: int, values: np.ndarray) -> None:
    """Write at a place, safely on disk on return. No memory map: machines that share a folder share no pages."""
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(values.tobytes())
        stream.flush()
        os.fsync(stream.fileno())


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + "..."


def wait_until(condition: Callable[[], bool], problem: str, sign_of_life: Callable[[], int]) -> None:
    """Poll until `condition()`; RuntimeError where `sign_of_life()` stays the same for `PATIENCE` seconds."""
    last, since = sign_of_life(), time.monotonic()
    while not condition():
        time.sleep(0.2)
        if (now := sign_of_life()) != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise RuntimeError(f"{problem} for {PATIENCE} seconds; start the same command again, which goes on")
