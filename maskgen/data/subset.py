"""Some images of a data set, and one as training takes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Generator


class Subset:
    """Some images of a data set."""

    def __init__(self, dataset: Any, indices: list[int]):
        self.dataset, self.indices = dataset, indices
        self.class_names, self.labels = dataset.class_names, np.asarray(dataset.labels)[indices]
        if hasattr(dataset, "meta"):
            self.meta = dataset.meta

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[self.indices[index]]

    def draw(self, index: int, generator: Generator) -> dict[str, Any]:
        return draw(self.dataset, self.indices[index], generator)


def draw(dataset: Any, index: int, generator: Generator) -> dict[str, Any]:
    """An item to train on: of data sets that draw something of it themselves (where a clip begins), as drawn."""
    return dataset.draw(index, generator) if hasattr(dataset, "draw") else dataset[index]
