"""Probes on 1% or 10% of the labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from maskgen.evaluation.probes.features import Features
from maskgen.evaluation.probes.heads import sweep
from maskgen.evaluation.probes.result import (
    Number,
    ProbeResult,
    chance_of,
    check_classes,
    check_numbers,
    check_pair,
    counts_of,
    notes_of,
    score,
)

METHODS = ("logistic", "sweep")


def few_labels(labels: Int64[Tensor, "n"], share: Number, seed: int = 0) -> Int64[Tensor, "m"]:
    """Indices, in ascending order, of a subset with the same number of images of every class that occurs.

    The number per class is `share` of all images, divided by the number of classes and rounded, but at least 1. A
    class with fewer images gives all of them. With the same seed, a smaller share is a subset of a larger one.

    Raises:
        ValueError: `share` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1 (0.01 is 1%), got {share}")
    present = labels.unique()
    each = max(1, round(share * len(labels) / len(present)))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == number][:each] for number in present]).sort().values


def centred(values: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Subtract its mean from each row, and scale the row to unit length."""
    return F.normalize(values - values.mean(dim=1, keepdim=True))


def logistic(
    x: Float[Tensor, "n d"], y: Int64[Tensor, "n"], classes: int, penalty: Number, iterations: int = 300
) -> Float[Tensor, "d k"]:
    """Weights of multinomial logistic regression without an intercept, by L-BFGS in float64.

    The objective is the mean cross-entropy + penalty / 2 |W|². It has one minimum, so the result needs no seed.
    """
    x = x.double()
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=iterations, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight, y) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach().float()


def lowshot(
    train: Features,
    test: Features,
    share: Number = 0.01,
    method: str = "logistic",
    *,
    penalty: Number = 2.5e-4,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    **options: Any,
) -> ProbeResult:
    """A probe that trains on a class-balanced share of the training images and evaluates on the whole test set.

    Args:
        share: the share of the training images, in (0, 1]; papers use 0.01 and 0.1. See :func:`few_labels`.
        method: "logistic" is MSN's (Assran et al. 2022, arXiv:2204.07141): rows are centred and scaled to unit length,
            then logistic regression without an intercept has the L2 penalty `penalty` / images; nothing is tuned.
            "sweep" holds some images out and needs at least 10 of them.
        options: further options of :func:`.heads.sweep`, where that is the method.

    Raises:
        ValueError: the two sets do not belong together, training has a single class, the method is unknown, or it has
            too few images.
    """
    classes = check_pair(train, test)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; give one of {', '.join(METHODS)}")
    if options and method != "sweep":
        raise ValueError(f"{', '.join(options)}: only method='sweep' has these options; the method is {method!r}")
    few = train.select(few_labels(train.labels, share, seed))
    check_classes(few.labels)
    sizes = few.labels.bincount()
    sizes = sizes[sizes > 0]
    notes = []
    if int(sizes.min()) < int(sizes.max()):
        notes.append(f"classes have {int(sizes.min())} to {int(sizes.max())} images, because some have no more")
    if method == "sweep":
        result = sweep(few, test, seed=seed, device=device, progress=progress, **options)
        accuracy, settings, chosen, notes = result.accuracy, result.settings, result.chosen, [*notes, *result.notes]
        counts = result.counts
    else:
        check_numbers(penalty=penalty)
        x, y = centred(few.values.to(device)), few.labels.to(device)
        weight = logistic(x, y, classes, penalty / len(few))
        scores = torch.cat([centred(part.to(device)) @ weight for part in test.values.split(4096)]).cpu()
        accuracy, chosen, counts = score(scores, test.labels), {}, counts_of(few, test)
        settings = {
            "head": "logistic regression without intercept, rows centred and of unit length",
            "optimizer": "L-BFGS, at most 300 iterations (published: cyanure's, at most 300 epochs)",
            "penalty": penalty / len(few),
            "features": train.facts,
        }
        notes += notes_of(few.labels, test.labels)
    settings = {
        "share": share,
        "method": method,
        "split": "class-balanced, at least one per class",
        "seed": seed,
    } | settings
    counts = {**counts, "of": len(train), "least_a_class": int(sizes.min()), "most_a_class": int(sizes.max())}
    return ProbeResult("lowshot", accuracy, chance_of(test.labels), settings, chosen, counts, notes)
