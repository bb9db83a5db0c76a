"""Files of statistics, features or images that others made: ADM's `.npz`, clean-fid's and torch-fidelity's caches.

- ADM's reference batch, ``.npz``: ``mu``, ``sigma`` for FID; for the rest the images ``arr_0``, which may be alone.
  ``mu_s``, ``sigma_s`` (of sFID) are not used.
- clean-fid, ``*_clean_*.npz``, ``*_legacy_tensorflow_*.npz``: ``mu``, ``sigma``; of ``*_kid.npz`` the features,
  ``feats``. The file's name tells the resize.
- torch-fidelity, ``*-stat-fid-2048.pt``: ``mu``, ``sigma``; ``*-features-2048.pt``: the features.
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

# By the mode in the name of clean-fid's files: the resize their features were made with. "legacy_pytorch" is another
# network's.
CLEAN_FID = {"_clean_": "clean", "_legacy_tensorflow_": "tensorflow"}
# What numpy arrays are pickled with, by the names before and since numpy 2: torch-fidelity's caches hold no more.
RECONSTRUCT = np.zeros(0).__reduce__()[0]
NUMPY: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64")),
    *((RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def read_npz(path: Path, reading: Reading) -> Source:
    """The source that an `.npz` file holds.

    Raises:
        ValueError: no such file, or one that holds something else.
    """
    try:
        file = np.load(path, allow_pickle=False)
        keys = list(file.files)  # a bare .npy array has no names
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is no .npz file ({error}); give a folder of images, an .npz or a saved pipeline"
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
    """The statistics or the features of one of torch-fidelity's caches; its pickle may hold arrays and nothing else.

    Raises:
        ValueError: something else is in it, or it is of another layer or network.
    """
    wanted = (f"{STANDARD}-stat-fid-2048", f"{STANDARD}-features-2048")
    if not path.stem.endswith(wanted):
        raise ValueError(
            f"{path} is no cache of torch-fidelity for FID: their names end in {wanted[0]}.pt or {wanted[1]}.pt"
        )
    try:
        with torch.serialization.safe_globals(NUMPY):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        brief = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a cache of torch-fidelity ({brief}); make it anew") from error
    source = Source(str(path), "torch-fidelity cache", resize="tensorflow", facts={"file_sha256": sha256_of(path)})
    if isinstance(held, dict) and {"mu", "sigma"} <= set(held):
        source.gaussian = _gaussian(path, held["mu"], held["sigma"])
    elif isinstance(held, torch.Tensor):
        source.features = _features(path, held.numpy())
    else:
        raise ValueError(f"{path} holds a {type(held).__name__}, neither statistics nor features; make it anew")
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
