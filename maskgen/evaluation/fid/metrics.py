"""Metrics of features and logits: torch-fidelity's functions with stated settings, and the uncertainty of FID.

FID is computed by :func:`.statistics.frechet_distance`, since with fewer images than features torch-fidelity's function
takes roots of rounding errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64

from maskgen.evaluation.fid.statistics import Gaussian, fit, frechet_distance, root

SEED = 2020  # torch-fidelity's seed for its shuffles and subsets
SPLITS, SUBSETS, SUBSET, NEIGHBOURS = 10, 100, 1000, 3
POINTS = 15

Result = dict[str, Any]  # value, its spread and its settings


def inception_score(logits: Float32[np.ndarray, "n k"], splits: int = SPLITS) -> Result:
    """exp of the mean KL(p(y|x) | p(y)) (Salimans et al. 2016, arXiv:1606.03498): mean and deviation over the splits.

    Raises:
        ValueError: there are fewer images than splits.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    if len(logits) < splits:
        raise ValueError(f"the score over {splits} splits needs at least {splits} images, got {len(logits)}")
    found = isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=True, rng_seed=SEED)
    return {"value": found["inception_score_mean"], "std": found["inception_score_std"], "splits": splits}


def kernel_distance(
    a: Float32[np.ndarray, "n d"], b: Float32[np.ndarray, "m d"], subsets: int = SUBSETS, subset_size: int = SUBSET
) -> Result:
    """KID: the unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018, arXiv:1801.01401).

    The result is the mean and deviation over random subsets; `subset_size` is at most the number of images.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(subset_size, len(a), len(b))
    found = kid_features_to_metric(
        torch.from_numpy(a),
        torch.from_numpy(b),
        kid_subsets=subsets,
        kid_subset_size=size,
        kid_kernel="poly",
        rng_seed=SEED,
        verbose=False,
    )
    mean, std = (found[f"kernel_inception_distance_{what}"] for what in ("mean", "std"))
    return {"value": mean, "std": std, "subsets": subsets, "subset_size": size}


def precision_recall(
    samples: Float32[np.ndarray, "n d"], reference: Float32[np.ndarray, "m d"], neighbours: int = NEIGHBOURS
) -> tuple[Result, Result]:
    """The share of samples in the manifold of the reference, and the reverse (Kynkäänniemi et al. 2019, 1904.06991).

    A manifold is the union of balls around its points, with the distance to the `neighbours`-th nearest as radius.

    Raises:
        ValueError: a side has no more images than `neighbours`.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    if (few := min(len(samples), len(reference))) <= neighbours:
        raise ValueError(
            f"precision and recall with {neighbours} neighbours need more than {neighbours} images on each side, got "
            f"{few}"
        )
    found = prc_features_to_metric(
        torch.from_numpy(samples),
        torch.from_numpy(reference),
        prc_neighborhood=neighbours,
        prc_batch_size=10_000,
        save_cpu_ram=True,
        verbose=False,
    )
    precision, recall = ({"value": found[name], "neighbours": neighbours} for name in ("precision", "recall"))
    return precision, recall


def deviation(features: Float[np.ndarray, "n d"], reference: Gaussian, resamples: int, seed: int = 0) -> float:
    """The standard deviation of FID over sets of as many new samples, estimated by `resamples` bootstrap resamples.

    A resample repeats samples, so its distance is higher; only the spread is used, not the level.
    """
    n = len(features)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return float(resampled(features, reference, counts).std(ddof=1))


def resampled(
    features: Float[np.ndarray, "n d"], reference: Gaussian, counts: Int64[np.ndarray, "r n"]
) -> Float64[np.ndarray, "r"]:
    """FID of resamples in which sample i occurs counts[., i] times, n in total.

    Let R be the root of the reference's covariance. The trace of the root of the product of both covariances is the sum
    of the singular values of (features - mean) R, so a resample costs one product and one set of eigenvalues.
    """
    n = len(features)
    center = features.mean(axis=0, dtype=np.float64)
    x = features - center
    seen, lengths = x @ root(reference), (x**2).sum(axis=1)
    found = []
    for weights in counts.astype(np.float64):
        mean = weights @ x / n
        shift = center + mean - reference.mu
        trace = (weights @ lengths - n * mean @ mean) / (n - 1)
        part = (seen - weights @ seen / n) * np.sqrt(weights / (n - 1))[:, None]
        gram = part.T @ part if n > part.shape[1] else part @ part.T
        overlap = np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum()
        found.append(shift @ shift + trace + np.trace(reference.sigma) - 2 * overlap)
    return np.array(found)


def frechet_infinity(
    features: Float[np.ndarray, "n d"], reference: Gaussian, points: int = POINTS, seed: int = 0
) -> Result:
    """FID at infinitely many samples (Chong & Forsyth 2020, arXiv:1911.07023): the intercept of a line
    fitted to FID over 1 / n, for `points` random parts of the samples with sizes from n / 10 to n.

    Raises:
        ValueError: n / 10 is at most the number of features, where FID is not linear.
    """
    n, d = features.shape
    if n // 10 <= d:
        raise ValueError(
            f"extrapolation starts at a tenth of the samples and needs more than {d} there; give over {10 * d}, got {n}"
        )
    rng = np.random.default_rng(seed)
    sizes = np.linspace(n // 10, n, points).astype(int)
    found = [frechet_distance(fit(features[rng.choice(n, size, replace=False)]), reference) for size in sizes.tolist()]
    _, intercept = np.polyfit(1 / sizes, found, 1)
    return {"value": float(intercept), "points": points}
