"""A part of a data set, and the items that training reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Generator


class Subset:
    """The items of a data set at some indices."""

    def __init__(self, dataset: Any, indices: list[int]):
        self.dataset, self.indices = dataset, indices
        self.class_names, self.labels = dataset.class_names, np.asarray(dataset.labels)[indices]
        if hasattr(dataset, "meta"):
            self.meta = dataset.meta

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[self.indices[index]]

    def sample(self, index: int, generator: Generator) -> dict[str, Any]:
        return training_item(self.dataset, self.indices[index], generator)


def training_item(dataset: Any, index: int, generator: Generator) -> dict[str, Any]:
    """An item for training; a data set with a ``sample`` method makes some of it at random (where a clip begins)."""
    return dataset.sample(index, generator) if hasattr(dataset, "sample") else dataset[index]
