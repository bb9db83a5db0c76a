"""What a probe reports, and what all probes check."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskgen.evaluation.probes.features import Features

Number = int | float


@dataclass
class ProbeResult:
    """An accuracy with all that is needed to read and to repeat it.

    Args:
        protocol: "linear", "sweep", "knn", "lowshot" or "finetune".
        accuracy: ``top1`` and, of more than 5 classes, ``top5``: shares of the test images in [0, 1].
        chance: the share of the test set's commonest class, which always naming it would get.
        settings: every number of the protocol, and the features' facts.
        chosen: what was chosen on training images, and how; empty where nothing is.
        counts: ``train``, ``test``, ``classes``, ``features`` and what else was counted.
        notes: where this differs from the published protocol, and how to read it.
    """

    protocol: str
    accuracy: dict[str, float]
    chance: float
    settings: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        """A line of accuracies, one of counts, one of settings, what was chosen, the notes."""
        scores = ", ".join(f"{name} {value:.1%}" for name, value in self.accuracy.items())
        counts = ", ".join(f"{name} {count:,}" for name, count in self.counts.items())
        lines = [f"{self.protocol} probe: {scores} (chance {self.chance:.1%})", counts]
        for title, facts in (("settings", self.settings), ("chosen", self.chosen)):
            short = {key: value for key, value in facts.items() if not isinstance(value, (dict, list))}
            if short:
                lines.append(f"{title}: " + ", ".join(f"{key} {_said(value)}" for key, value in short.items()))
        for key, value in self.settings.items():
            if isinstance(value, dict):
                lines.append(f"{key}: " + ", ".join(f"{name} {_said(fact)}" for name, fact in value.items()))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check_pair(train: Features, test: Features) -> int:
    """The number of classes of two sets that belong together.

    Raises:
        ValueError: other features or classes on one side, or training images of a single class.
    """
    if train.values.shape[1] != test.values.shape[1]:
        raise ValueError(
            f"training features have {train.values.shape[1]} numbers and test features {test.values.shape[1]}; "
            "extract both by the same network, pool and image size"
        )
    if train.class_names != test.class_names:
        raise ValueError(
            f"training and test set name different classes ({_some(train.class_names)}; {_some(test.class_names)}); "
            "their labels must mean the same"
        )
    check_classes(train.labels)
    return len(train.class_names)


def check_classes(labels: Tensor) -> None:
    """
    Raises:
        ValueError: fewer than 2 classes occur.
    """
    if len(labels) == 0 or int(labels.min()) == int(labels.max()):
        raise ValueError(
            f"a probe needs training images of at least 2 classes; all {len(labels)} are of one. Give a data set "
            "with classes (a folder a class, or a labels file)"
        )


def _some(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def check_numbers(at_least: Number = 0, **numbers: Number | None) -> None:
    """
    Raises:
        ValueError: a number that is not above `at_least`.
    """
    wrong = {name: value for name, value in numbers.items() if value is not None and not value > at_least}
    if wrong:
        raise ValueError("; ".join(f"{name} must be above {at_least}, got {value}" for name, value in wrong.items()))


def hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is among the `k` best of its scores, float (..., n, classes): bool (..., n).

    A tie with a class beyond the k-th place counts as a miss, and so do NaN: a network that says the same of every
    image gets nothing for it.
    """
    own = scores.gather(-1, labels.expand(scores.shape[:-1])[..., None])
    return (scores < own).sum(dim=-1) >= max(1, scores.shape[-1] - k)


def score(scores: Tensor, labels: Tensor, top5: bool = True) -> dict[str, float]:
    """``top1`` and, of more than 5 classes (of 5 it is always 1), ``top5``; scores (n, classes)."""
    ks = [1, 5] if top5 and scores.shape[1] > 5 else [1]
    return {f"top{k}": float(hits(scores, labels, k).double().mean()) for k in ks}


def chance_of(labels: Tensor) -> float:
    return float(labels.bincount().max() / len(labels))


def counts_of(train: Features, test: Features) -> dict[str, int]:
    d = train.values.shape[1]
    return {"train": len(train), "test": len(test), "classes": len(train.class_names), "features": d}


def notes_of(train_labels: Tensor, test_labels: Tensor) -> list[str]:
    """What is to be said of any pair of sets."""
    unseen = ~torch.isin(test_labels, train_labels)
    if unseen.any():
        return [f"{int(unseen.sum())} test images are of classes without a training image, and count as misses"]
    return []


def differences(published: dict[str, tuple[Any, Any]]) -> list[str]:
    """One note of every number that is not the published one; name -> (used, published)."""
    changed = [f"{name} {used} (published {paper})" for name, (used, paper) in published.items() if used != paper]
    return [f"not as published: {', '.join(changed)}"] if changed else []
