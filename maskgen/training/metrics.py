"""The metrics of a run: a file with one JSON object per line, and an image of their curves."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Means:
    """Running means of scalar tensors, which are read from the device only on request."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def add(self, prefix: str, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            key = f"{prefix}/{name}"
            value = value.detach().float()
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] += 1

    def read(self) -> dict[str, float]:
        """The means since the last :meth:`take`."""
        return {key: float(total) / self.counts[key] for key, total in self.sums.items()}

    def take(self) -> dict[str, float]:
        """The means since the last call; the sums are then reset."""
        means = self.read()
        self.__init__()  # type: ignore[misc]
        return means


class MetricsFile:
    """The append-only file ``metrics.jsonl``. A resumed run first removes the lines after its checkpoint."""

    def __init__(self, path: Path, step: int):
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(part, path)  # atomic, so that a kill here loses no line

    def write(self, step: int, values: dict[str, float]) -> None:
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without a last line that a kill cut short."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def plot_curves(metrics: Path, image: Path) -> None:
    """Plot each metric against the step, in a panel of its own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = read_metrics(metrics)
    names = [n for n in dict.fromkeys(k for line in lines for k in line) if n not in ("step", "seconds")]
    if not names:
        return
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axis.plot(*zip(*points), marker="." if len(points) < 10 else None)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    figure.supxlabel("step", fontsize=10)
    figure.tight_layout()
    figure.savefig(image, dpi=110)
    plt.close(figure)


def all_finite(values: dict[str, float]) -> bool:
    return all(torch.isfinite(torch.tensor(v)) for v in values.values())
