"""A data set of images -> a token cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from maskgen.data.tokens import TokenCacheWriter
from maskgen.pipelines.store import fingerprint
from maskgen.tokenizer.model import Tokenizer

CHUNK = 4  # batches between two records of progress


@torch.no_grad()
def encode_dataset(
    tokenizer: Tokenizer,
    dataset: Any,
    path: str | Path,
    batch_size: int = 64,
    workers: int = 0,
    flips: bool = False,
) -> Path:
    """Encode every image of a map-style data set once and write the codes and labels to the folder `path`.

    The same call continues after an interruption, and returns a finished cache unchanged. The processes of one launch
    (``torchrun``, ``accelerate launch``) share the work; each returns when the cache is complete. Codes and labels do
    not depend on the number of processes or interruptions.

    Args:
        tokenizer: in evaluation mode, on the device to encode on.
        dataset: items ``{"pixels": (c, h, w) in [-1, 1], "label": int}``; ``class_names`` and ``labels``.
        path: see :mod:`maskgen.data.tokens`. Row i is image i.
        batch_size: images per batch. It is part of the plan, because another size may round differently.
        workers: processes that read images, for each process that encodes.
        flips: also encode the mirrored images: row n + i is the mirrored image i of n. The mirrored images of a
            held-out set may be in such a cache.

    Raises:
        ValueError: the tokenizer cannot take these images, or the folder holds a cache with other settings.
    """
    device = next((p.device for p in tokenizer.parameters()), torch.device("cpu"))  # patches have no weights
    item = tokenizer.encode(dataset[0]["pixels"][None].to(device))[0]
    rank, processes = launched()
    n, step = len(dataset), batch_size * CHUNK
    meta = {
        "codebook_size": tokenizer.codebook_size,
        "class_names": list(dataset.class_names),
        "tokenizer": fingerprint(tokenizer),
        "levels": tokenizer.codes_per_position,
        "tokens": f"{item.dtype} {tuple(item.shape)}",
        "flips": flips,
        "batch_size": batch_size,
        **describe(dataset),
    }
    chunks = -(-n // step)
    writer = TokenCacheWriter(path, meta, n * (2 if flips else 1), item, chunks, first=rank == 0)
    left = [chunk for chunk in range(rank, chunks, processes) if chunk not in writer.done()]
    batches = [
        list(range(start, min(start + batch_size, n)))
        for chunk in left
        for start in range(chunk * step, min((chunk + 1) * step, n), batch_size)
    ]
    loader: DataLoader = DataLoader(dataset, batch_sampler=batches, num_workers=workers)
    shown = tqdm(loader, desc="encode", unit="batch", disable=rank > 0)
    for indices, batch in zip(batches, shown):
        pixels, labels = batch["pixels"], batch["label"].numpy()  # an unreadable image has the label of its replacement
        for start, codes in _encode(tokenizer, pixels.to(device), indices, n, flips, dataset):
            writer.write(start, codes, labels)
        if (indices[-1] + 1) % step == 0 or indices[-1] + 1 == n:
            writer.mark(indices[0] // step)
    return writer.finish()


def _encode(
    tokenizer: Tokenizer, pixels: Tensor, indices: list[int], n: int, flips: bool, dataset: Any
) -> Iterator[tuple[int, Tensor]]:
    """The first row and the codes of a batch, and then those of the mirrored batch."""
    finite = pixels.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = indices[int(finite.logical_not().nonzero()[0])]
        name = dataset.names[bad] if hasattr(dataset, "names") else bad
        raise ValueError(f"image {name} holds NaN or infinity; remove it or replace it, with values in [-1, 1]")
    yield indices[0], tokenizer.encode(pixels)
    if flips:
        yield n + indices[0], tokenizer.encode(pixels.flip(-1))


def launched() -> tuple[int, int]:
    """The rank of this process and the number of processes of its launch; (0, 1) if it was started alone."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def describe(dataset: Any, samples: int = 8) -> dict[str, Any]:
    """The identity of a data set: the number of images, and digests of labels, names and a few images."""
    n = len(dataset)
    few = [dataset[i * n // min(n, samples)]["pixels"] for i in range(min(n, samples))]
    return {
        "images": n,
        "image_size": list(few[0].shape[1:]),
        "labels_digest": _digest(np.asarray(dataset.labels, np.int64).tobytes()),
        "names_digest": _digest("\n".join(map(str, getattr(dataset, "names", ()))).encode()),
        "samples_digest": _digest(*(pixels.contiguous().numpy().tobytes() for pixels in few)),
    }


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
