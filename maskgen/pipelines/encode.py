"""A data set of pictures -> a token cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from maskgen.data.tokens import write_token_cache
from maskgen.pipelines.store import fingerprint
from maskgen.tokenizer.model import Tokenizer


@torch.no_grad()
def encode_dataset(
    tokenizer: Tokenizer,
    dataset: torch.utils.data.Dataset | object,
    path: str | Path,
    batch_size: int = 64,
    workers: int = 0,
) -> Path:
    """Encode every picture of a map-style data set once and write the codes and labels to the folder `path`.

    Args:
        tokenizer: in evaluation mode, on the device to encode on.
        dataset: items ``{"pixels": (c, h, w) in [-1, 1], "label": int}``; ``class_names`` and ``labels``.

    Raises:
        ValueError: the tokenizer cannot take these pictures.
    """
    device = next(tokenizer.parameters()).device
    loader: DataLoader = DataLoader(dataset, batch_size, num_workers=workers)  # type: ignore[arg-type]
    labels = np.array(dataset.labels)  # type: ignore[union-attr]

    def batches() -> Iterator[Tensor]:
        for i, batch in enumerate(tqdm(loader, desc="encode", unit="batch")):
            labels[i * batch_size :][: len(batch["label"])] = batch["label"]  # an unreadable picture has a stand-in
            yield tokenizer.encode(batch["pixels"].to(device))

    grid = tokenizer.grid(tuple(dataset[0]["pixels"].shape[1:]))  # type: ignore[index]
    return write_token_cache(
        path,
        batches(),
        labels,
        grid,
        tokenizer.codebook_size,
        list(dataset.class_names),  # type: ignore[union-attr]
        fingerprint(tokenizer),
    )
