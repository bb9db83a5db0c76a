"""The images of each batch, as a pure function of the seed and the step, so that a resumed run sees the same ones."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from maskgen.data.augment import Augmentation, Views
from maskgen.data.subset import training_item


@runtime_checkable
class MapDataset(Protocol):
    """A map-style data set whose items are dicts with ``label`` and with ``pixels`` or ``codes``."""

    class_names: list[str]
    labels: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def mix(*numbers: int) -> int:
    """A 63-bit seed made from integers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class BatchPlan:
    """The samples of each micro-batch of one process, from step `start` to step `steps`.

    A sample is (index, seed), where the seed is that of its augmentation. Every epoch is a new permutation, and epochs
    follow each other without a gap. The global batch of a step does not depend on the number of processes.
    """

    data: Sized
    batch_size: int
    start: int
    steps: int
    seed: int
    accumulation: int = 1
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        n, epoch, order = len(self.data), -1, torch.empty(0)
        micro = self.batch_size // (self.accumulation * self.processes)
        for step in range(self.start, self.steps):
            samples = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // n != epoch:
                    epoch = position // n
                    order = torch.randperm(n, generator=torch.Generator().manual_seed(mix(self.seed, epoch)))
                samples.append((int(order[position % n]), mix(self.seed, 1, position)))
            for a in range(self.accumulation):
                first = (a * self.processes + self.rank) * micro
                yield samples[first : first + micro]


class _Sampled(Dataset[dict[str, Any]]):
    """A data set indexed by (index, seed)."""

    def __init__(self, dataset: MapDataset, augmentation: Augmentation | Views):
        self.dataset, self.augmentation = dataset, augmentation

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Any]:
        index, seed = sample
        generator = torch.Generator().manual_seed(seed)
        item = training_item(self.dataset, index, generator)
        if "actions" in item and self.augmentation.flip:
            raise ValueError("a flip would mirror the frames but not their actions; set augment.flip=0")
        if "pixels" in item:
            item |= self.augmentation.item(item["pixels"], generator)
        return item


def loader(
    dataset: MapDataset, augmentation: Augmentation | Views, plan: BatchPlan, workers: int, pin: bool
) -> DataLoader[dict[str, Any]]:
    """A data loader for the batches of `plan`, which do not depend on the number of workers."""
    return DataLoader(
        _Sampled(dataset, augmentation),
        batch_sampler=plan,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_leave_signals,
    )


def _leave_signals(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach the whole process group: the trainer saves and then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
