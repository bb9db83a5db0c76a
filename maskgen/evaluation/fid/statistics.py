"""Gaussians fitted to features, and the Fréchet distance between them (Heusel et al. 2017, arXiv:1706.08500, Eq. 6)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

logger = logging.getLogger(__name__)

# Relative to the largest eigenvalue: how negative rounding may make a zero one (about 1e-6 in float32 statistics).
NEGATIVE_TOLERANCE = 1e-4
BLOCK = 8192  # samples per partial sum; fixed, so that sums always round in the same way


@dataclass
class Gaussian:
    """A normal distribution over `d` features: `mu` (d,), `sigma` (d, d), and its number of samples if known.

    `factor` (d, r), if known, is a matrix L with L Lᵀ = sigma, with which no eigenvectors are needed.
    """

    mu: Float64[np.ndarray, "d"]
    sigma: Float64[np.ndarray, "d d"]
    count: int | None = None
    factor: Float64[np.ndarray, "d r"] | None = None


def fit(features: Float[Tensor, "n d"] | Float[np.ndarray, "n d"]) -> Gaussian:
    """The sample mean and the unbiased covariance of `features`, in float64.

    If n <= d it logs a warning: the covariance is then rank-deficient, and distances from it are biased upwards.

    Raises:
        ValueError: the shape is not (n, d), there are fewer than 2 samples, or features are NaN or infinite.
    """
    x = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    if x.ndim != 2:
        raise ValueError(f"features must be (samples, features), got shape {x.shape}")
    n, d = x.shape
    if n < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {n}; give more images")
    check_finite(x)
    if n <= d:
        logger.warning(
            "%d samples for %d features: the covariance is rank-deficient, the distance biased upwards", n, d
        )
    mu = x.mean(axis=0, dtype=np.float64)
    sigma = np.zeros((d, d))
    for start in range(0, n, BLOCK):  # in blocks: a million samples in float64 would not fit
        rows = x[start : start + BLOCK] - mu
        sigma += rows.T @ rows
    return Gaussian(mu, sigma / (n - 1), n, (x - mu).T / (n - 1) ** 0.5 if n < d else None)


def check_finite(features: Float[np.ndarray, "n d"]) -> None:
    """Raise a ValueError if a feature is NaN or infinite."""
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise ValueError(
            f"features of {bad.sum()} of {len(features)} samples are NaN or infinite (first at index {bad.argmax()}); "
            "check the images and the extractor's weights"
        )


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet (2-Wasserstein) distance |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^½), >= 0.

    With S = L Lᵀ, tr (S_a S_b)^½ is the sum of the singular values of L_aᵀ L_b (the nuclear norm). No root of a
    rounding error is taken and no imaginary part arises, which matters if a covariance is rank-deficient.

    Raises:
        ValueError: the dimensions differ, statistics are NaN, or a sigma is not symmetric and positive semi-definite.
    """
    if a.mu.shape != b.mu.shape:
        raise ValueError(
            f"the two sides have {a.mu.size} and {b.mu.size} features; both must come from the same extractor and layer"
        )
    root_a, root_b = root(a), root(b)
    overlap = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum() if root_a.size and root_b.size else 0.0
    difference = a.mu - b.mu
    distance = difference @ difference + np.trace(a.sigma) + np.trace(b.sigma) - 2 * overlap
    return max(0.0, float(distance))  # the distance is never negative; identical sides may round to -1e-16


def root(gaussian: Gaussian) -> Float64[np.ndarray, "d r"]:
    """L with L Lᵀ = sigma: the factor if known, else r columns for the directions with variance above rounding.

    Raises:
        ValueError: statistics are NaN, or sigma is not symmetric and positive semi-definite.
    """
    if gaussian.factor is not None:
        return gaussian.factor
    sigma = gaussian.sigma
    if not (np.isfinite(gaussian.mu).all() and np.isfinite(sigma).all()):
        raise ValueError("mu or sigma holds NaN or infinite numbers; compute the statistics again")
    if not np.allclose(sigma, sigma.T, rtol=1e-4, atol=1e-6 * np.abs(sigma).max(initial=0)):
        raise ValueError("sigma is not symmetric, so it is not a covariance; compute the statistics again")
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    largest = max(values[-1], 0.0)
    if values[0] < -NEGATIVE_TOLERANCE * largest:
        raise ValueError(
            f"sigma has a negative eigenvalue ({values[0]:.3g}, largest {values[-1]:.3g}), so it is not a covariance; "
            "compute the statistics again in float64"
        )
    kept = values > largest * len(values) * np.finfo(np.float64).eps  # the convention of numpy's matrix_rank
    return vectors[:, kept] * np.sqrt(values[kept])
