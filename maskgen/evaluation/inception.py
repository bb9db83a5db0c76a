"""The feature extractors behind the Fréchet distances: torch-fidelity's networks and the care around their weights.

Only torch-fidelity's published Inception weights make a distance an "FID"; every other choice carries its own name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

STANDARD = "inception-v3-compat"
WEIGHTS_VARIABLE = "MASKGEN_INCEPTION_WEIGHTS"
# weights-inception-2015-12-05-6726825d.pth, release v0.2.0 of torch-fidelity (its name carries the first 8 digits).
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte


@dataclass
class Extractor:
    """A network from uint8 pictures to features, and what a report must say of it.

    Args:
        module: torch-fidelity's extractor, in eval mode, on `device`.
        name: its name in torch-fidelity.
        sha256: of the weights file; None where torch-fidelity fetched the weights itself.
    """

    module: Any
    name: str
    sha256: str | None
    device: torch.device

    @property
    def standard(self) -> bool:
        """Whether this is the network that "FID" means: Inception with the published weights."""
        return self.name == STANDARD and self.sha256 == PUBLISHED_SHA256

    @property
    def metric(self) -> str:
        """The name a distance in these features is reported under."""
        if self.standard:
            return "fid"
        return f"frechet_distance[{self.name}{'/' + self.sha256[:8] if self.sha256 else ''}]"

    @property
    def resize(self) -> str:
        """How pictures reach the network's input size."""
        if self.name == STANDARD:
            return "299x299, bilinear as in TensorFlow 1 (torch-fidelity), no anti-aliasing"
        return f"torch-fidelity's own for {self.name}"

    @torch.no_grad()
    def features(self, batches: Iterable[UInt8[Tensor, "b 3 h w"]]) -> Float32[np.ndarray, "n d"]:
        """The features of all pictures, in order; (0, 0) where there are none."""
        rows = [self.module(batch.to(self.device))[0].float().cpu().numpy() for batch in batches]
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)


def load_extractor(
    name: str = STANDARD,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
) -> Extractor:
    """One of torch-fidelity's feature extractors, at the layer it takes for FID.

    Args:
        name: "inception-v3-compat" or another of torch-fidelity's names ("vgg16", "clip-vit-b-32", ...).
        weights: a local file of Inception weights; see :func:`weights_file` for where they come from otherwise.
        device: default: CUDA where there is one.

    Raises:
        ValueError: unknown name, weights given for another extractor, or a file that holds other weights.
        RuntimeError: the weights are neither here nor to be downloaded.
    """
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as known

    if name not in known:
        raise ValueError(f"unknown feature extractor {name!r}; choose one of {', '.join(sorted(known))}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    layer = known[name].get_default_feature_layer_for_metric("fid")
    if name == STANDARD:
        path = weights_file(weights)
        sha256 = sha256_of(path)
        module = _inception(path, sha256, layer)
    elif weights is not None:
        raise ValueError(f"`weights` is for {STANDARD} only; {name} loads its own (leave `weights` out)")
    else:
        sha256 = None
        try:
            module = known[name](name, [layer])
        except OSError as error:
            raise RuntimeError(
                f"could not download the weights of {name} ({error}); run once with internet access, which caches them "
                f"under {torch.hub.get_dir()}, or use {STANDARD} with `weights`"
            ) from error
    return Extractor(module.eval().requires_grad_(False).to(device), name, sha256, device)


def weights_file(weights: str | Path | None = None) -> Path:
    """The Inception weights: `weights`, else $MASKGEN_INCEPTION_WEIGHTS, else torch hub's cache, else a download.

    Raises:
        ValueError: the file named does not exist, or the cached one is not the published one.
        RuntimeError: the download failed.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as url

    given = weights or os.environ.get(WEIGHTS_VARIABLE)
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            where = "`weights`" if weights else f"${WEIGHTS_VARIABLE}"
            raise ValueError(
                f"{where} names {path}, which is no file; give torch-fidelity's Inception weights, from {url}"
            )
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        _download(url, path)
    elif sha256_of(path) != PUBLISHED_SHA256:
        raise ValueError(
            f"{path} (torch hub's cache) is not the file published at {url}: its SHA-256 is {sha256_of(path)}, not "
            f"{PUBLISHED_SHA256}; delete it to download it again, or name it by `weights` to use it under its own name"
        )
    return path


def _download(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=PUBLISHED_SHA256)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise RuntimeError(
            f"could not download the Inception weights ({error}). Either run where the internet can be reached, which "
            f"keeps them in {path}; or fetch {url} elsewhere, copy it here, and give its path as `weights` "
            f"(--weights PATH) or in the environment variable {WEIGHTS_VARIABLE}"
        ) from error


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub's download has no timeout of its own; without one a silent network hangs for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _inception(path: Path, sha256: str, layer: str) -> Any:
    """torch-fidelity unpickles without restriction, so any file but the published one is first read with it."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    advice = "give torch-fidelity's weights-inception-2015-12-05-6726825d.pth or a state_dict of the same network"
    if sha256 != PUBLISHED_SHA256:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling fails in many ways
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path} cannot be read as a file of weights ({first}); {advice}") from error
        if not isinstance(state, dict):
            raise ValueError(f"{path} holds a {type(state).__name__}, not a state_dict; {advice}")
    try:
        return FeatureExtractorInceptionV3(STANDARD, [layer], feature_extractor_weights_path=str(path))
    except (RuntimeError, TypeError) as error:
        brief = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} holds the weights of another network ({brief} ...); {advice}") from error


def sha256_of(path: Path) -> str:
    """64 hexadecimal digits of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
