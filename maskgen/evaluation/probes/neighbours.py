"""Weighted nearest neighbours (Wu et al. 2018, arXiv:1805.01978), as DINO reports them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from maskgen.evaluation.probes.features import Features
from maskgen.evaluation.probes.result import (
    Number,
    ProbeResult,
    chance_of,
    check_numbers,
    check_pair,
    counts_of,
    differences,
    hits,
    notes_of,
)

KS = (10, 20, 100, 200)
QUERIES = 10_000  # the largest number of training images that choose k
CHUNK = 2**26  # number of similarities in memory, 256 MiB


def vote(
    similarity: Float[Tensor, "b n"], labels: Int64[Tensor, "n"], classes: int, ks: Sequence[int], temperature: Number
) -> Float[Tensor, "s b k"]:
    """Scores of the classes for each of `ks`: exp(similarity / temperature), summed over the neighbours of a class."""
    nearest, index = similarity.topk(max(ks), dim=1)
    weights, voters = (nearest / temperature).exp(), labels[index]
    empty = similarity.new_zeros(len(similarity), classes)
    return torch.stack([empty.scatter_add(1, voters[:, :k], weights[:, :k]) for k in ks])


def knn(
    train: Features,
    test: Features,
    *,
    ks: Sequence[int] = KS,
    temperature: Number = 0.07,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ProbeResult:
    """DINO's k-NN (Caron et al. 2021, arXiv:2104.14294): neighbours by cosine similarity s, weighted by exp(s / T).

    The result has the test accuracy of every k (``top1@20``). ``top1`` and ``top5`` are those of the k that classifies
    the training images best, each from its neighbours without itself. DINO reports the best k of the test set instead.

    Args:
        ks: numbers of neighbours.
        temperature: T above.
        seed: seed of the choice of 10,000 training images, where there are more.

    Raises:
        ValueError: the two sets do not belong together, training has a single class, or it has fewer images than
            neighbours.
    """
    classes = check_pair(train, test)
    check_numbers(temperature=temperature)
    available = len(train) - (len(set(ks)) > 1)  # to choose, an image is not its own neighbour
    if not ks or min(ks) < 1 or max(ks) > available:
        raise ValueError(
            f"ks are {list(ks)}, but {len(train)} training images have at most {available} neighbours; give smaller "
            "ks of at least 1, or more images"
        )
    ks = sorted(set(ks))
    x = F.normalize(train.values.to(device))
    y, y_test = train.labels.to(device), test.labels.to(device)
    x_test = F.normalize(test.values.to(device))
    chunk = max(1, CHUNK // len(x))
    queries = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:QUERIES].to(device)
    if len(ks) == 1:
        queries = queries[:0]
    correct = {name: torch.zeros(len(ks), dtype=torch.float64) for name in ("top1", "top5", "left out")}

    def count(scores: Tensor, labels: Tensor, top: int) -> Tensor:
        return found(scores, labels, top).sum(dim=1).double().cpu()

    with tqdm(total=len(queries) + len(x_test), desc="k-NN", unit=" images", disable=not progress) as bar:
        for part in queries.split(chunk):
            similarity = x[part] @ x.T
            similarity[torch.arange(len(part)), part] = -torch.inf
            correct["left out"] += count(vote(similarity, y, classes, ks, temperature), y[part], 1)
            bar.update(len(part))
        for part, labels in zip(x_test.split(chunk), y_test.split(chunk)):
            scores = vote(part @ x.T, y, classes, ks, temperature)
            correct["top1"] += count(scores, labels, 1)
            correct["top5"] += count(scores, labels, 5)
            bar.update(len(part))
    best = int(correct["left out"].argmax())
    chosen: dict[str, object] = {"k": ks[best], "by": "it is the only one given"}
    if len(queries):
        chosen["left_out_top1"] = float(correct["left out"][best]) / len(queries)
        chosen["by"] = f"top-1 of {len(queries)} training images, each without itself among its neighbours"
    top5 = classes > 5 and ks[best] >= 5
    top1 = {f"top1@{k}": float(value) / len(x_test) for k, value in zip(ks, correct["top1"])}
    accuracy = {"top1": top1[f"top1@{ks[best]}"]}
    accuracy |= {"top5": float(correct["top5"][best]) / len(x_test)} if top5 else {}
    settings = {
        "ks": list(ks),
        "temperature": temperature,
        "similarity": "cosine",
        "weights": "exp(similarity / temperature)",
        "ties": "count as misses",
        "seed": seed,
        "features": train.facts,
    }
    notes = differences({"ks": (tuple(ks), KS), "temperature": (temperature, 0.07)})
    return ProbeResult(
        "knn",
        {**accuracy, **top1},
        chance_of(test.labels),
        settings,
        chosen,
        counts_of(train, test),
        [*notes, *notes_of(train.labels, test.labels)],
    )


def found(scores: Float[Tensor, "s b k"], labels: Int64[Tensor, "b"], top: int) -> Bool[Tensor, "s b"]:
    """:func:`.result.hits`, where a class without a neighbour is never hit."""
    own = scores.gather(-1, labels.expand(scores.shape[:-1])[..., None])[..., 0]
    return hits(scores, labels, top) & (own > 0)
