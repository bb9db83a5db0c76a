"""Token caches: a data set encoded once, so that the transformer's training never runs the tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor


class TokenCache:
    """A folder with ``codes.npy`` (n, *grid) and ``labels.npy`` (n,), memory-mapped, and ``meta.json``.

    Items are ``{"codes": int64 (*grid), "label": int}``. `meta` has codebook_size, class_names and the fingerprint of
    the tokenizer that made it.

    Raises:
        FileNotFoundError: no token cache there.
    """

    def __init__(self, path: str):
        folder = Path(path)
        if not (folder / "meta.json").is_file():
            raise FileNotFoundError(f"{folder} holds no token cache (meta.json); make one with `maskgen encode`")
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self.codes = np.load(folder / "codes.npy", mmap_mode="r")
        self.labels = np.load(folder / "labels.npy")
        self.class_names: list[str] = self.meta["class_names"]
        self.grid: tuple[int, ...] = tuple(self.codes.shape[1:])

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"codes": torch.from_numpy(self.codes[index].astype(np.int64)), "label": int(self.labels[index])}


def write_token_cache(
    path: str | Path,
    batches: Iterable[Tensor],
    labels: np.ndarray,
    grid: tuple[int, ...],
    codebook_size: int,
    class_names: list[str],
    fingerprint: str,
) -> Path:
    """Write codes as they come, int64 (b, *grid) a batch.

    ``meta.json`` is written last, so that a broken run leaves no cache that loads.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    dtype = np.uint16 if codebook_size <= 2**16 else np.int32
    codes = open_memmap(folder / "codes.npy", mode="w+", dtype=dtype, shape=(len(labels), *grid))
    done = 0
    for batch in batches:
        codes[done : done + len(batch)] = batch.cpu().numpy()
        done += len(batch)
    codes.flush()
    np.save(folder / "labels.npy", labels)
    meta = {"codebook_size": codebook_size, "class_names": class_names, "tokenizer": fingerprint}
    part = folder / "meta.json.part"
    part.write_text(json.dumps(meta))
    os.replace(part, folder / "meta.json")
    return folder
