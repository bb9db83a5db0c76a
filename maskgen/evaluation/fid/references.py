"""Files of statistics, features or images from other programs: ADM, clean-fid and torch-fidelity.

- A reference batch of ADM, ``.npz``, has ``mu`` and ``sigma`` for FID, and for other metrics images, ``arr_0``, which
  may be alone. ``mu_s`` and ``sigma_s`` (for sFID) are not used.
- clean-fid has ``mu`` and ``sigma`` in ``*_clean_*.npz`` and ``*_legacy_tensorflow_*.npz``, and features, ``feats``, in
  ``*_kid.npz``. The name of the file gives the resize.
- torch-fidelity has ``mu`` and ``sigma`` in ``*-stat-fid-2048.pt``, and features in ``*-features-2048.pt``.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskgen.evaluation.fid.inception import STANDARD, sha256_of
from maskgen.evaluation.fid.sources import Reading, Source, of_array
from maskgen.evaluation.fid.statistics import Gaussian, check_finite

# The mode in the name of a clean-fid file -> the resize of its features. "legacy_pytorch" is another network.
CLEAN_FID = {"_clean_": "clean", "_legacy_tensorflow_": "tensorflow"}
# Pickled numpy arrays need these names (those before and since numpy 2); torch-fidelity's caches hold nothing else.
RECONSTRUCT = np.zeros(0).__reduce__()[0]
NUMPY: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64")),
    *((RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def read_npz(path: Path, reading: Reading) -> Source:
    """The source in an `.npz` file.

    Raises:
        ValueError: the file does not exist or holds something else.
    """
    try:
        file = np.load(path, allow_pickle=False)
        keys = list(file.files)  # a bare .npy array has no names
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an .npz file ({error}); give a folder of images, an .npz or a saved pipeline"
        ) from error
    if "_legacy_pytorch_" in path.name:
        raise ValueError(
            f"{path} was made by clean-fid in its mode legacy_pytorch, with another network's weights; give the file "
            "of the mode clean (with --resize clean) or legacy_tensorflow"
        )
    resize = next((resize for mode, resize in CLEAN_FID.items() if mode in path.name), None)
    source = Source(str(path), "npz", resize=resize, facts={"file_sha256": sha256_of(path)})
    if {"mu", "sigma"} <= set(keys):
        source.gaussian = _gaussian(path, file["mu"], file["sigma"])
    if "feats" in keys:
        source.features = _features(path, file["feats"])
    key = next((key for key in ("arr_0", "images") if key in keys), None)
    if key is not None:
        images = file[key]
        identity = {"file_sha256": source.facts["file_sha256"]}
        source.images = of_array(images, f"{path}: `{key}`", reading, identity)
    if source.gaussian is None and source.features is None and source.images is None:
        raise ValueError(
            f"{path} holds {', '.join(keys) or 'nothing'}; expected `arr_0` or `images`, `mu` and `sigma`, or `feats`"
        )
    return source


def read_torch_cache(path: Path) -> Source:
    """The statistics or features in a cache of torch-fidelity, whose pickle may hold only arrays.

    Raises:
        ValueError: the file holds something else, or is for another layer or network.
    """
    wanted = (f"{STANDARD}-stat-fid-2048", f"{STANDARD}-features-2048")
    if not path.stem.endswith(wanted):
        raise ValueError(
            f"{path} is not a cache of torch-fidelity for FID, whose names end in {wanted[0]}.pt or {wanted[1]}.pt"
        )
    try:
        with torch.serialization.safe_globals(NUMPY):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        brief = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a cache of torch-fidelity ({brief}); make it again") from error
    source = Source(str(path), "torch-fidelity cache", resize="tensorflow", facts={"file_sha256": sha256_of(path)})
    if isinstance(held, dict) and {"mu", "sigma"} <= set(held):
        source.gaussian = _gaussian(path, held["mu"], held["sigma"])
    elif isinstance(held, torch.Tensor):
        source.features = _features(path, held.numpy())
    else:
        raise ValueError(f"{path} holds a {type(held).__name__}, neither statistics nor features; make it again")
    return source


def _gaussian(path: Path, mu: Any, sigma: Any) -> Gaussian:
    mu, sigma = np.asarray(mu, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
        raise ValueError(f"{path}: mu must be (d,) and sigma (d, d), got {mu.shape} and {sigma.shape}")
    return Gaussian(mu, sigma)


def _features(path: Path, features: Any) -> np.ndarray:
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"{path}: features must be (n, d) of at least 2 images, got {features.shape}")
    check_finite(features)
    return features
