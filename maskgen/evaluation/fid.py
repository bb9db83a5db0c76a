"""FID, and Fréchet distances in other features under their own names (Heusel et al. 2017, arXiv:1706.08500).

Features come from torch-fidelity, whose Inception agrees with the original TensorFlow one. "fid" is said only of
features by its published weights; see `inception.Extractor.metric`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from maskgen.evaluation.inception import STANDARD, Extractor, load_extractor
from maskgen.evaluation.sources import Pictures, open_pictures
from maskgen.evaluation.statistics import Gaussian, fit, frechet_distance

FEW = 10_000  # below this FID's bias is plain (Chong & Forsyth 2020, arXiv:1911.07023); papers use 50,000


@dataclass
class Report:
    """A distance with all that is needed to read it; counts are None where a file of statistics does not say."""

    metric: str
    value: float
    a: str
    b: str
    count_a: int | None
    count_b: int | None
    extractor: str
    weights_sha256: str | None
    resize: str
    torch_fidelity: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        counts = " and ".join("an unknown number of" if n is None else f"{n:,}" for n in (self.count_a, self.count_b))
        line = f"{self.metric} = {self.value:.4f} ({counts} pictures; extractor {self.extractor})"
        return line + (f"; careful: {'; '.join(self.warnings)}" if self.warnings else "")


def fid(
    a: Any,
    b: Any,
    weights: str | Path | None = None,
    extractor: str = STANDARD,
    *,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    limit: int | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    pipeline_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Report:
    """The Fréchet distance between the features of two sets of pictures.

    Args:
        a: a folder, an `.npz`, a saved pipeline or uint8 batches: see :func:`.sources.open_pictures`.
        b: the same; the distance is symmetric.
        weights: a local file of Inception weights; default: $MASKGEN_INCEPTION_WEIGHTS, torch hub's cache, a download.
        extractor: "inception-v3-compat", or another of torch-fidelity's, which is reported under its own name.
        batch_size: pictures at once, when drawing and when extracting.
        device: for the extractor and a saved pipeline; default: CUDA where there is one.
        limit: use at most so many pictures of each side.
        num_samples: how many pictures a pipeline draws.
        seed: picture i of a pipeline is drawn with seed + i.
        pipeline_options: more arguments for the pipeline's call (`num_inference_steps`, `guidance_scale`, ...).

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: no or unreadable pictures, wrong weights, an unknown extractor, statistics that do not fit.
        RuntimeError: the weights can be found nowhere; the message says how to get them.
    """
    for name, number in (("batch_size", batch_size), ("num_samples", num_samples), ("limit", limit)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    sides = [
        open_pictures(
            source,
            batch_size=batch_size,
            limit=limit,
            num_samples=num_samples,
            seed=seed,
            pipeline_options=pipeline_options,
            device=device,
        )
        for source in (a, b)
    ]
    # Two files of statistics need no network; what network made them, nobody knows.
    unneeded = all(side.statistics for side in sides)
    network = None if unneeded else load_extractor(extractor, weights, device)
    gaussians = [_gaussian(side, network, progress) for side in sides]
    return _report(frechet_distance(gaussians[0], gaussians[1]), network, sides, gaussians)


def _gaussian(side: Pictures, network: Extractor | None, progress: bool) -> Gaussian:
    """Ready-made statistics where the features they are made of can be the network's; else from the pictures."""
    if side.statistics is not None and (network is None or network.standard):
        side.notes["ready-made mu and sigma used, not the pictures"] = 0
        return side.statistics
    if side.read is None or network is None:
        raise ValueError(
            f"{side.name} holds only mu and sigma, which are taken to be of the published Inception weights, and "
            f"cannot be compared in the features of {network.metric if network else 'another network'}; give its "
            "pictures, or use the published weights"
        )
    features = network.features(_with_progress(side.read(), side.name, progress))
    if len(features) < 2:
        raise ValueError(f"{side.name} gave {len(features)} pictures; a distance needs at least 2 on each side")
    return fit(features)


def _with_progress(batches: Iterator[UInt8[Tensor, "b 3 h w"]], name: str, progress: bool) -> Iterator[Tensor]:
    with tqdm(desc=f"features of {name}", unit=" pictures", disable=not progress) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def _report(value: float, network: Extractor | None, sides: list[Pictures], gaussians: list[Gaussian]) -> Report:
    from torch_fidelity import __version__ as version

    return Report(
        metric=network.metric if network else "frechet_distance[statistics]",
        value=value,
        a=sides[0].name,
        b=sides[1].name,
        count_a=gaussians[0].count,
        count_b=gaussians[1].count,
        extractor=network.name if network else "unknown (both sides are ready-made statistics)",
        weights_sha256=network.sha256 if network else None,
        resize=network.resize if network else "unknown",
        torch_fidelity=version,
        notes=[f"{side.name}: {f'{n} ' if n else ''}{note}" for side in sides for note, n in side.notes.items()],
        warnings=_warnings(sides, gaussians),
    )


def _warnings(sides: list[Pictures], gaussians: list[Gaussian]) -> list[str]:
    found = []
    counts = [gaussian.count for gaussian in gaussians if gaussian.count is not None]
    d = gaussians[0].mu.size
    if counts and min(counts) <= d:
        found.append(f"{min(counts)} pictures for {d} features: strongly biased upwards, compare only equal counts")
    elif counts and min(counts) < FEW:
        found.append(f"fewer than {FEW:,} pictures ({min(counts):,}): biased upwards, compare only equal counts")
    for side, gaussian in zip(sides, gaussians):
        if gaussian is side.statistics:
            found.append(f"{side.name}: ready-made statistics, taken to be of the published Inception weights")
    return found
