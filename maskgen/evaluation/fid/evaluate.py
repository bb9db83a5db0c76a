"""One evaluation: it compares samples with a reference in the features of one network and makes a report.

FID is from Heusel et al. 2017 (arXiv:1706.08500). The name "fid" is used only for features of torch-fidelity's
published Inception, which agrees with the original one in TensorFlow; see `inception.Extractor.metric_name`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from maskgen.evaluation.fid.extraction import Features, extract
from maskgen.evaluation.fid.inception import NAMES, Extractor, load_extractor
from maskgen.evaluation.fid.metrics import (
    Result,
    deviation,
    frechet_infinity,
    inception_score,
    kernel_distance,
    precision_recall,
)
from maskgen.evaluation.fid.opening import open_source
from maskgen.evaluation.fid.report import Report
from maskgen.evaluation.fid.sampling import Sampling, load_pipeline, of_pipeline
from maskgen.evaluation.fid.sources import Reading, Source
from maskgen.evaluation.fid.statistics import Gaussian, fit, frechet_distance
from maskgen.pipelines.encode import launched
from maskgen.registry import choose

METRICS = ("fid", "is", "kid", "precision", "recall")
FRECHET = {"fid", "fid_infinity"}
FEW = 10_000  # with fewer images FID is clearly biased (Chong & Forsyth 2020, arXiv:1911.07023); papers use 50,000


def evaluate(
    samples: Any,
    reference: Any = None,
    metrics: Sequence[str] = METRICS,
    extractor: Callable[[], Extractor] = load_extractor,
    *,
    sampling: Sampling | None = None,
    reading: Reading | None = None,
    few: bool = False,
    bootstrap: int = 20,
    batch_size: int = 64,
    work: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Report | None:
    """Compute metrics of images.

    Args:
        samples: a pipeline, a saved one (a folder with ``model_index.json``, or a run), "bundled", or a source for
            :func:`.opening.open_source`.
        reference: the same; it may be None for the Inception score alone.
        metrics: any of ``fid``, ``is``, ``kid``, ``precision``, ``recall`` and ``fid_infinity``.
        extractor: a function that returns the network; it is called only if images must be seen.
        sampling: how a pipeline generates samples.
        reading: how images are read.
        few: allow FID with no more images than features.
        bootstrap: number of resamples for the interval of FID; 0 leaves it out.
        batch_size: number of images that are generated, and of which features are extracted, at once.
        work: a folder that keeps features, see :func:`.extraction.extract`.
        device: device of a saved pipeline; the default is CUDA if available.
        progress: show progress bars.

    Returns:
        The report; None in all processes of a launch but the first.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there are no images, too few or unreadable ones, the weights are wrong, a metric is unknown, or
            statistics do not fit; the message gives the remedy.
        RuntimeError: the weights cannot be found or downloaded; the message explains how to get them.
    """
    for metric in metrics:
        choose(NAMES, metric, "metric")
    for name, number, least in (("batch_size", batch_size, 1), ("bootstrap", bootstrap, 0)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
    asked, sampling, reading = set(metrics), sampling or Sampling(), reading or Reading()
    if reference is None and asked != {"is"}:
        raise ValueError(f"{', '.join(sorted(asked - {'is'}))} need a reference: images or a file of statistics")
    right = None if reference is None else _open(reference, sampling, reading, None, device)
    left = _open(samples, sampling, reading, right, device)
    sides = [side for side in (left, right) if side is not None]
    network = extractor() if any(_needs_images(side, asked, side is left) for side in sides) else None
    if network is not None:
        _check(sides, network, asked, few)
    options = {"batch_size": batch_size, "work": work, "progress": progress}
    seen = [_see(side, network, asked, side is left, options) for side in sides]
    if launched()[0] > 0:
        return None
    results = _numbers(asked, seen, bootstrap)
    names = {m: network.metric_name(m) if network else f"{NAMES[m][1]}[statistics]" for m in results}
    return Report(
        metrics={names[metric]: results[metric] for metric in dict.fromkeys(metrics)},
        samples=seen[0].facts,
        reference=seen[1].facts if right else None,
        extractor=network.facts() if network else None,
        reading=vars(reading),
        batch_size=batch_size,
        device=network.device.type if network else None,
        warnings=_warnings(asked, seen),
    )


def _open(source: Any, sampling: Sampling, reading: Reading, reference: Source | None, device: Any) -> Source:
    if is_pipeline(source):
        if isinstance(source, (str, Path)):
            return of_pipeline(
                load_pipeline(None if source == "bundled" else source, device),
                str(source),
                sampling,
                reading,
                reference,
            )
        return of_pipeline(source, type(source).__name__, sampling, reading, reference)
    return open_source(source, reading)


def is_pipeline(source: Any) -> bool:
    """Whether `source` generates samples: it is a pipeline, a folder or run that holds one, or "bundled"."""
    if isinstance(source, (str, Path)):
        folders = (Path(source).expanduser(), Path(source).expanduser() / "pipeline")
        return source == "bundled" or any((folder / "model_index.json").is_file() for folder in folders)
    return callable(source) and hasattr(source, "class_names")


def _needs_images(side: Source, asked: set[str], sampled: bool) -> bool:
    """Whether the images of a side must be seen in spite of its ready-made statistics or features."""
    if sampled and "is" in asked:
        return True
    by_features = {"kid", "precision", "recall"} | ({"fid_infinity"} if sampled else set())
    ready = side.features is not None or (side.gaussian is not None and not asked & by_features)
    return bool(asked - {"is"}) and not ready


def _check(sides: list[Source], network: Extractor, asked: set[str], few: bool) -> None:
    """Check before the work that ready-made statistics fit the network and that there are enough images."""
    features, logits = network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    width = features.shape[1]
    if logits is None and "is" in asked:
        raise ValueError(
            f"{network.name} has no logits for the Inception score; use Inception or a classifier, or leave out `is`"
        )
    for side in sides:
        ready = side.gaussian is not None or side.features is not None
        if ready and not (network.standard and side.resize in (None, network.resize_mode)):
            if side.images is None:
                raise ValueError(
                    f"{side.name} holds only statistics or features, which are taken to be of the published Inception "
                    f"weights{f' and the resize {side.resize}' if side.resize else ''}, and cannot be compared in the "
                    f"features of {network.metric}; give its images, or use those weights and that resize"
                )
            side.gaussian, side.features = None, None
        count = len(side.features) if side.features is not None else side.images.count if side.images else None
        if asked & FRECHET and side.gaussian is None and count is not None and count <= width and not few:
            raise ValueError(
                f"{side.name} has {count:,} images for {width:,} features: the covariance is rank-deficient and the "
                f"distance strongly biased. Give more than {width:,}, or `few=True` (--few) to compute it anyway; "
                "compare it only with distances from as many images"
            )


@dataclass
class Seen:
    """One side as input of the metrics; `ready` if mu and sigma were ready-made."""

    values: Float32[np.ndarray, "n d"] | None
    logits: Float32[np.ndarray, "n k"] | None
    gaussian: Gaussian | None
    ready: bool
    facts: dict[str, Any]


def _see(side: Source, network: Extractor | None, asked: set[str], sampled: bool, options: dict[str, Any]) -> Seen:
    found: Features | None = None
    facts: dict[str, Any] = {"name": side.name, "kind": side.kind, "count": None, **side.facts}
    values, ready = side.features, side.gaussian is not None
    if network is not None and _needs_images(side, asked, sampled):
        if side.images is None:
            raise ValueError(f"{side.name} holds no images, which {', '.join(sorted(asked))} need; give the images too")
        found = extract(side.images, network, name=side.name, **options)
        if found is not None:
            values = found.values
            facts |= {"size": found.size, "pixels_sha256": found.sha256}
            facts["notes"] = [f"{count:,} {note}" for note, count in sorted(found.notes.items())]
    if ready and asked & FRECHET:
        facts["notes"] = [*facts.get("notes", []), "ready-made mu and sigma used for the Fréchet distance"]
    if values is not None:
        facts["count"] = len(values)
    gaussian = side.gaussian
    if gaussian is None and values is not None and asked & FRECHET:
        gaussian = fit(values)
    return Seen(values, found.logits if found else None, gaussian, ready, facts)


def _numbers(asked: set[str], seen: list[Seen], bootstrap: int) -> dict[str, Result]:
    left, results = seen[0], {}
    if "is" in asked:
        assert left.logits is not None
        results["is"] = inception_score(left.logits)
    if len(seen) < 2:
        return results
    right = seen[1]
    if "fid" in asked:
        assert left.gaussian is not None
        assert right.gaussian is not None
        results["fid"] = _fid(left, right.gaussian, bootstrap)
    if "fid_infinity" in asked:
        assert right.gaussian is not None
        results["fid_infinity"] = frechet_infinity(_values(left), right.gaussian)
    if "kid" in asked:
        results["kid"] = kernel_distance(_values(left), _values(right))
    if asked & {"precision", "recall"}:
        results["precision"], results["recall"] = precision_recall(_values(left), _values(right))
    return results


def _values(side: Seen) -> Float32[np.ndarray, "n d"]:
    if side.values is None:
        raise ValueError(f"{side.facts['name']} holds only mu and sigma; give its images or features, or ask for fid")
    return side.values


def _fid(left: Seen, reference: Gaussian, bootstrap: int) -> Result:
    assert left.gaussian is not None
    result: Result = {"value": frechet_distance(left.gaussian, reference)}
    if bootstrap > 1 and left.values is not None and not left.ready:
        half = 1.96 * deviation(left.values, reference, bootstrap)
        result["interval"] = [max(0.0, result["value"] - half), result["value"] + half]
        result |= {"confidence": 0.95, "resamples": bootstrap}
    return result


def _warnings(asked: set[str], seen: list[Seen]) -> list[str]:
    found = []
    counts = [side.facts["count"] for side in seen if side.facts["count"] is not None and not side.ready]
    width = next((side.gaussian.mu.size for side in seen if side.gaussian is not None), None)
    if counts and width and min(counts) <= width:
        found.append(f"{min(counts)} images for {width} features: strongly biased upwards, compare only equal counts")
    elif counts and min(counts) < FEW:
        found.append(
            f"fewer than {FEW:,} images ({min(counts):,}): FID is biased upwards and the score downwards, compare "
            "only equal counts"
        )
    sizes = [side.facts["size"] for side in seen if "size" in side.facts]
    if len(sizes) > 1 and sizes[0] != sizes[1]:
        found.append(f"samples of {sizes[0]} and a reference of {sizes[1]} (h, w): part of the distance is the resize")
    for side in seen:
        if side.ready and asked & FRECHET:
            found.append(f"{side.facts['name']}: ready-made statistics, taken to be of the published Inception weights")
    return found
