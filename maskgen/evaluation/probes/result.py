"""The result of a probe, and the checks and accuracies that all probes share."""

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
    """Accuracies, with everything needed to read and repeat them.

    Args:
        protocol: "linear", "sweep", "knn", "lowshot" or "finetune".
        accuracy: ``top1`` and, with more than 5 classes, ``top5``, in [0, 1].
        chance: the accuracy of always naming the most frequent class of the test set.
        settings: every setting of the protocol, and the facts of the features.
        chosen: what was chosen on training images, and how; empty where nothing was.
        counts: ``train``, ``test``, ``classes``, ``features`` and other counts.
        notes: how the protocol differs from the published one, and how to read the accuracies.
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
        """Lines of accuracies, counts, settings and choices, then the notes."""
        scores = ", ".join(f"{name} {value:.1%}" for name, value in self.accuracy.items())
        counts = ", ".join(f"{name} {count:,}" for name, count in self.counts.items())
        lines = [f"{self.protocol} probe: {scores} (chance {self.chance:.1%})", counts]
        for title, facts in (("settings", self.settings), ("chosen", self.chosen)):
            short = {key: value for key, value in facts.items() if not isinstance(value, (dict, list))}
            if short:
                lines.append(f"{title}: " + ", ".join(f"{key} {_text(value)}" for key, value in short.items()))
        for key, value in self.settings.items():
            if isinstance(value, dict):
                lines.append(f"{key}: " + ", ".join(f"{name} {_text(fact)}" for name, fact in value.items()))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check_pair(train: Features, test: Features) -> int:
    """Check that two sets belong together; return their number of classes.

    Raises:
        ValueError: the sets differ in the number of features or in class names, or training has a single class.
    """
    if train.values.shape[1] != test.values.shape[1]:
        raise ValueError(
            f"training has {train.values.shape[1]} features per image and the test set {test.values.shape[1]}; "
            "extract both with the same network, pool and image size"
        )
    if train.class_names != test.class_names:
        raise ValueError(
            f"training and test set have different class names ({_some(train.class_names)}; "
            f"{_some(test.class_names)}); their labels must mean the same"
        )
    check_classes(train.labels)
    return len(train.class_names)


def check_classes(labels: Tensor) -> None:
    """Check that at least 2 classes occur.

    Raises:
        ValueError: a single class occurs, or none.
    """
    if len(labels) == 0 or int(labels.min()) == int(labels.max()):
        raise ValueError(
            f"a probe needs training images of at least 2 classes, but all {len(labels)} are of one; give a data set "
            "with classes (one folder per class, or a labels file)"
        )


def _some(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def check_numbers(at_least: Number = 0, **numbers: Number | None) -> None:
    """Check that numbers are above `at_least`; None is allowed.

    Raises:
        ValueError: a number is not.
    """
    wrong = {name: value for name, value in numbers.items() if value is not None and not value > at_least}
    if wrong:
        raise ValueError("; ".join(f"{name} must be above {at_least}, got {value}" for name, value in wrong.items()))


def hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is among the `k` highest of its scores, float (..., n, classes); returns bool (..., n).

    NaN and ties with a class beyond rank k count as misses, so a network that returns the same scores for every class
    gets no hits.
    """
    own = scores.gather(-1, labels.expand(scores.shape[:-1])[..., None])
    return (scores < own).sum(dim=-1) >= max(1, scores.shape[-1] - k)


def score(scores: Tensor, labels: Tensor, top5: bool = True) -> dict[str, float]:
    """``top1`` and, with more than 5 classes, ``top5`` of scores (n, classes)."""
    ks = [1, 5] if top5 and scores.shape[1] > 5 else [1]
    return {f"top{k}": float(hits(scores, labels, k).double().mean()) for k in ks}


def chance_of(labels: Tensor) -> float:
    return float(labels.bincount().max() / len(labels))


def counts_of(train: Features, test: Features) -> dict[str, int]:
    d = train.values.shape[1]
    return {"train": len(train), "test": len(test), "classes": len(train.class_names), "features": d}


def notes_of(train_labels: Tensor, test_labels: Tensor) -> list[str]:
    """Notes that apply to any pair of training and test set."""
    unseen = ~torch.isin(test_labels, train_labels)
    if unseen.any():
        return [f"{int(unseen.sum())} test images have classes without a training image, and count as misses"]
    return []


def differences(published: dict[str, tuple[Any, Any]]) -> list[str]:
    """One note that lists all settings that differ from the published ones, given as name -> (used, published)."""
    changed = [f"{name} {used} (published {paper})" for name, (used, paper) in published.items() if used != paper]
    return [f"not as published: {', '.join(changed)}"] if changed else []
