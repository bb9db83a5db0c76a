"""Some pictures of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np


class Subset:
    """Some pictures of a data set."""

    def __init__(self, dataset: Any, indices: list[int]):
        self.dataset, self.indices = dataset, indices
        self.class_names, self.labels = dataset.class_names, np.asarray(dataset.labels)[indices]
        if hasattr(dataset, "meta"):
            self.meta = dataset.meta

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[self.indices[index]]
