"""Feature extractors from torch-fidelity, with checks of their weights.

A distance is called "FID" only with torch-fidelity's published Inception weights; other choices have other names.
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
from PIL import Image
from torch import Tensor, nn

STANDARD = "inception-v3-compat"
WEIGHTS_VARIABLE = "MASKGEN_INCEPTION"
# weights-inception-2015-12-05-6726825d.pth, release v0.2.0 of torch-fidelity (its name has the first 8 digits).
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte


RESIZES = {
    "tensorflow": "299x299, bilinear as in TensorFlow 1 (torch-fidelity), no anti-aliasing",
    "clean": "299x299, PIL's bicubic with anti-aliasing on floats, clipped, not rounded (clean-fid)",
}
# The name of a metric for Inception with the published weights, and for other features.
NAMES = {
    "fid": ("fid", "frechet_distance"),
    "fid_infinity": ("fid_infinity", "frechet_distance_infinity"),
    "is": ("inception_score", "score"),
    "kid": ("kid", "kernel_distance"),
    "precision": ("precision", "precision"),
    "recall": ("recall", "recall"),
}


@dataclass
class Extractor:
    """A network from uint8 images to features, and the facts about it for a report.

    Args:
        module: uint8 (b, 3, h, w) -> features (b, d) and, if it has them, logits (b, k); in eval mode, on `device`.
        name: its name in torch-fidelity.
        sha256: digest of the weights file; None if torch-fidelity downloaded the weights itself.
        device: the device of `module`.
        layers: the layers of the features and of the logits.
        resize_mode: "tensorflow", or "clean" for the resize of clean-fid; networks other than Inception have their own.
    """

    module: Any
    name: str
    sha256: str | None
    device: torch.device
    layers: tuple[str, ...] = ()
    resize_mode: str = "tensorflow"

    @property
    def standard(self) -> bool:
        """Whether this is the network that "FID" means: Inception with the published weights."""
        return self.name == STANDARD and self.sha256 == PUBLISHED_SHA256

    @property
    def metric(self) -> str:
        """The name of a Fréchet distance in these features."""
        return self.metric_name("fid")

    def metric_name(self, metric: str) -> str:
        """The name of `metric` (``fid``, ``is``, ``kid`` ...) in a report; it states other weights."""
        published, other = NAMES[metric]
        if self.standard:
            return published if self.resize_mode == "tensorflow" else f"clean_{published}"
        digest = f"/{self.sha256[:8]}" if self.sha256 else ""
        return f"{other}[{self.name}{digest}{'/clean' if self.resize_mode == 'clean' else ''}]"

    @property
    def resize(self) -> str:
        """How images are resized to the input size of the network."""
        return RESIZES[self.resize_mode] if self.name == STANDARD else f"the network's own ({self.name})"

    def facts(self) -> dict[str, Any]:
        """The facts for a report; two results are comparable only if these are equal."""
        return {"name": self.name, "weights_sha256": self.sha256, "layers": list(self.layers), "resize": self.resize}

    @torch.no_grad()
    def __call__(
        self, batch: UInt8[Tensor, "b 3 h w"]
    ) -> tuple[Float32[np.ndarray, "b d"], Float32[np.ndarray, "b k"] | None]:
        """Features, and logits if the network has them; without TF32, whose rounding would change distances."""
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            outputs = self.module(batch.to(self.device))
        features, logits = (*(output.float().cpu().numpy() for output in outputs), None)[:2]
        return features, logits

    def features(self, batches: Iterable[UInt8[Tensor, "b 3 h w"]]) -> Float32[np.ndarray, "n d"]:
        """The features of all images, in order; (0, 0) without images."""
        rows = [self(batch)[0] for batch in batches]
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)


def load_extractor(
    name: str = STANDARD,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    resize: str = "tensorflow",
) -> Extractor:
    """A feature extractor of torch-fidelity, at its layers for FID and, if another, for the Inception score.

    Args:
        name: "inception-v3-compat" or another of torch-fidelity's names ("vgg16", "clip-vit-b-32", ...).
        weights: a local file of Inception weights; see :func:`weights_file` for the default.
        device: the default is CUDA if available.
        resize: how images are resized to 299x299 for Inception: "tensorflow" as in the papers, or "clean" as in
            clean-fid (Parmar et al. 2022, arXiv:2104.11222).

    Raises:
        ValueError: the name is unknown, `weights` or `resize` is given for another extractor, or the file holds the
            weights of another network.
        RuntimeError: the weights are not on this machine and cannot be downloaded.
    """
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as known

    if name not in known:
        raise ValueError(f"unknown feature extractor {name!r}; choose one of {', '.join(sorted(known))}")
    if resize not in RESIZES:
        raise ValueError(f"unknown resize {resize!r}; choose one of {', '.join(RESIZES)}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    layers = tuple(dict.fromkeys(known[name].get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")))
    if name == STANDARD:
        path = weights_file(weights)
        sha256 = sha256_of(path)
        module = _inception(path, sha256, layers)
        module = module if resize == "tensorflow" else CleanInception(module)
    elif weights is not None or resize != "tensorflow":
        raise ValueError(f"`weights` and `resize` are for {STANDARD} only; {name} has its own (leave them out)")
    else:
        sha256 = None
        try:
            module = known[name](name, list(layers))
        except OSError as error:
            raise RuntimeError(
                f"could not download the weights of {name} ({error}); run once with internet access, which caches them "
                f"under {torch.hub.get_dir()}, or use {STANDARD} with `weights`"
            ) from error
    return Extractor(module.eval().requires_grad_(False).to(device), name, sha256, device, layers, resize)


class CleanInception(nn.Module):
    """torch-fidelity's Inception after clean-fid's resize; the original resizes by itself and takes only integers."""

    def __init__(self, inception: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(*(child for name, child in inception.named_children() if name != "fc"))
        self.fc = inception.fc

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Float32[Tensor, "b 2048"], Float32[Tensor, "b 1008"]]:
        pixels = clean_resize(images).to(self.fc.weight.device)
        features = self.body((pixels - 128) / 128).flatten(1)
        return features, features @ self.fc.weight.T  # without the bias, as in the original Inception score


def clean_resize(images: UInt8[Tensor, "b c h w"], side: int = 299) -> Float32[Tensor, "b c s s"]:
    """PIL's anti-aliased bicubic filter on each channel as floats; clipped to [0, 255] and not rounded."""
    channels = images.cpu().flatten(0, 1).numpy().astype(np.float32)
    resized = [np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC)) for x in channels]
    return torch.from_numpy(np.stack(resized).clip(0, 255)).unflatten(0, images.shape[:2])


def weights_file(weights: str | Path | None = None) -> Path:
    """The file of Inception weights: `weights`, else $MASKGEN_INCEPTION, else torch hub's cache, else a download.

    Raises:
        ValueError: the named file does not exist, or the cached file is not the published one.
        RuntimeError: the download failed.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as url

    given = weights or os.environ.get(WEIGHTS_VARIABLE)
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            where = "`weights`" if weights else f"${WEIGHTS_VARIABLE}"
            raise ValueError(
                f"{where} names {path}, which is not a file; give torch-fidelity's Inception weights, from {url}"
            )
        return path
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        _download(url, path)
    elif sha256_of(path) != PUBLISHED_SHA256:
        raise ValueError(
            f"{path} (torch hub's cache) is not the file published at {url}: its SHA-256 is {sha256_of(path)}, not "
            f"{PUBLISHED_SHA256}; delete it to download it again, or give it as `weights` to use it under its own name"
        )
    return path


def _download(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=PUBLISHED_SHA256)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise RuntimeError(
            f"could not download the Inception weights ({error}). Either run where the internet can be reached; they "
            f"are then kept in {path}; or fetch {url} elsewhere, copy it here, and give its path as `weights` "
            f"(--weights PATH) or in the environment variable {WEIGHTS_VARIABLE}"
        ) from error


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """A timeout for torch.hub's download, which has none: without it, a silent network hangs for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _inception(path: Path, sha256: str, layers: tuple[str, ...]) -> Any:
    """torch-fidelity's Inception. It unpickles without restriction, so files other than the published are checked."""
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
        return FeatureExtractorInceptionV3(STANDARD, list(layers), feature_extractor_weights_path=str(path))
    except (RuntimeError, TypeError) as error:
        brief = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} holds the weights of another network ({brief} ...); {advice}") from error


def sha256_of(path: Path) -> str:
    """The SHA-256 digest of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
