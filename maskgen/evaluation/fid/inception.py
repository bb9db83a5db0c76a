"""The networks that evaluation looks through: torch-fidelity's, and the care around their weights.

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
from PIL import Image
from torch import Tensor, nn

STANDARD = "inception-v3-compat"
WEIGHTS_VARIABLE = "MASKGEN_INCEPTION"
# weights-inception-2015-12-05-6726825d.pth, release v0.2.0 of torch-fidelity (its name carries the first 8 digits).
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte


RESIZES = {
    "tensorflow": "299x299, bilinear as in TensorFlow 1 (torch-fidelity), no anti-aliasing",
    "clean": "299x299, PIL's bicubic with anti-aliasing on floats, clipped, not rounded (clean-fid)",
}
# How a metric is called where the network is Inception with the published weights, and in other features.
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
    """A network from uint8 images to features, and what a report must say of it.

    Args:
        module: uint8 (b, 3, h, w) -> features (b, d), and logits (b, k) behind them where it has them; in eval mode,
            on `device`.
        name: its name in torch-fidelity.
        sha256: of the weights file; None where torch-fidelity fetched the weights itself.
        layers: of the features and of the logits.
        resize_mode: "tensorflow", or "clean" for clean-fid's; other networks than Inception have their own.
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
        """The name a Fréchet distance in these features is reported under."""
        return self.metric_name("fid")

    def metric_name(self, metric: str) -> str:
        """The name that `metric`, of ``fid``, ``is``, ``kid`` ..., is reported under: of other weights it says so."""
        published, other = NAMES[metric]
        if self.standard:
            return published if self.resize_mode == "tensorflow" else f"clean_{published}"
        digest = f"/{self.sha256[:8]}" if self.sha256 else ""
        return f"{other}[{self.name}{digest}{'/clean' if self.resize_mode == 'clean' else ''}]"

    @property
    def resize(self) -> str:
        """How images reach the network's input size."""
        return RESIZES[self.resize_mode] if self.name == STANDARD else f"the network's own ({self.name})"

    def facts(self) -> dict[str, Any]:
        """What a report says of it; two numbers are comparable only where these are equal."""
        return {"name": self.name, "weights_sha256": self.sha256, "layers": list(self.layers), "resize": self.resize}

    @torch.no_grad()
    def __call__(
        self, batch: UInt8[Tensor, "b 3 h w"]
    ) -> tuple[Float32[np.ndarray, "b d"], Float32[np.ndarray, "b k"] | None]:
        """Features, and logits where the network has them; without TF32, whose rounding shows in a distance."""
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            outputs = self.module(batch.to(self.device))
        features, logits = (*(output.float().cpu().numpy() for output in outputs), None)[:2]
        return features, logits

    def features(self, batches: Iterable[UInt8[Tensor, "b 3 h w"]]) -> Float32[np.ndarray, "n d"]:
        """The features of all images, in order; (0, 0) where there are none."""
        rows = [self(batch)[0] for batch in batches]
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)


def load_extractor(
    name: str = STANDARD,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    resize: str = "tensorflow",
) -> Extractor:
    """One of torch-fidelity's feature extractors, at the layers it takes for FID and, where another, for IS.

    Args:
        name: "inception-v3-compat" or another of torch-fidelity's names ("vgg16", "clip-vit-b-32", ...).
        weights: a local file of Inception weights; see :func:`weights_file` for where they come from otherwise.
        device: default: CUDA where there is one.
        resize: how images reach Inception's 299x299: "tensorflow" as in the papers, or "clean" as in clean-fid
            (Parmar et al. 2022, arXiv:2104.11222).

    Raises:
        ValueError: unknown name, weights or a resize given for another extractor, or a file that holds other weights.
        RuntimeError: the weights are neither here nor to be downloaded.
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
    """torch-fidelity's Inception behind clean-fid's resize; its own takes whole numbers only and resizes by itself."""

    def __init__(self, inception: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(*(child for name, child in inception.named_children() if name != "fc"))
        self.fc = inception.fc

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Float32[Tensor, "b 2048"], Float32[Tensor, "b 1008"]]:
        pixels = clean_resize(images).to(self.fc.weight.device)
        features = self.body((pixels - 128) / 128).flatten(1)
        return features, features @ self.fc.weight.T  # without the bias, as the original Inception score


def clean_resize(images: UInt8[Tensor, "b c h w"], side: int = 299) -> Float32[Tensor, "b c s s"]:
    """PIL's bicubic filter, anti-aliased, on each channel in floats; clipped to [0, 255] and not rounded."""
    channels = images.cpu().flatten(0, 1).numpy().astype(np.float32)
    resized = [np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC)) for x in channels]
    return torch.from_numpy(np.stack(resized).clip(0, 255)).unflatten(0, images.shape[:2])


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


def _inception(path: Path, sha256: str, layers: tuple[str, ...]) -> Any:
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
        return FeatureExtractorInceptionV3(STANDARD, list(layers), feature_extractor_weights_path=str(path))
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
