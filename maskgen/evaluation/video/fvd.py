"""Fréchet distances between sets of clips: FVD with I3D, and distances with other features under other names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maskgen.evaluation.fid.inception import sha256_of
from maskgen.evaluation.fid.statistics import fit, frechet_distance
from maskgen.frozen import rgb

Clips = Float[Tensor, "b c t h w"]

I3D_SIDE, I3D_FEATURES, I3D_FRAMES = 224, 400, 10
POOLED = 8  # side of the frames in PixelFeatures


class ScriptedFeatures:
    """The features of a TorchScript network: RGB clips (b, 3, t, 224, 224) in [-1, 1] -> (b, d).

    FVD (Unterthiner et al. 2018, arXiv:1812.01717) is the distance in the 400 logits of I3D, trained on Kinetics-400
    and averaged over time, between clips of at least 10 frames. Frames of any shape are resized bilinearly without
    antialiasing. If the network has the options `rescale`, `resize` and `return_features`, they are set to False,
    False and True, as the I3D of StyleGAN-V's authors requires.

    Args:
        path: the TorchScript file.
        name: the name of the distance. Use "fvd" only for the I3D above; it is checked by its number of outputs, and
            `facts` states the SHA-256 of the file.

    Raises:
        ValueError: the file does not exist or is no TorchScript file, or the name is empty.
    """

    def __init__(self, path: str | Path, name: str = "fvd") -> None:
        self.file, self.name = Path(path).expanduser(), name.strip()
        if not self.name or (self.name.lower() == "fvd" and self.name != "fvd"):
            raise ValueError(f"{name!r} cannot name a distance: use fvd for I3D, and another name for another network")
        if not self.file.is_file():
            raise ValueError(f"{self.file} does not exist; give I3D as a TorchScript file (torch.jit.save)")
        try:
            self.network = torch.jit.load(str(self.file), map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(f"{self.file} is no TorchScript file: {str(error).splitlines()[0]}") from error
        known = {argument.name for argument in self.network.forward.schema.arguments}
        wanted = {"rescale": False, "resize": False, "return_features": True}
        self.options = {key: value for key, value in wanted.items() if key in known}
        self.facts: dict[str, Any] = {
            "extractor": self.file.name,
            "sha256": sha256_of(self.file),
            "resize": f"bilinear to {I3D_SIDE}x{I3D_SIDE}, not antialiased",
            "options": self.options,
        }

    @torch.no_grad()
    def __call__(self, clips: Clips) -> Float[Tensor, "b d"]:
        """Features of clips.

        Raises:
            ValueError: the network fails; or, for "fvd", clips have fewer than 10 frames or features are not 400.
        """
        b, _, t = clips.shape[:3]
        if self.name == "fvd" and t < I3D_FRAMES:
            raise ValueError(f"FVD needs clips of at least {I3D_FRAMES} frames, got {t}")
        frames = rgb(clips.float().clamp(-1, 1).transpose(1, 2).flatten(0, 1))
        frames = F.interpolate(frames, (I3D_SIDE, I3D_SIDE), mode="bilinear", align_corners=False)
        try:
            found = self.network(frames.unflatten(0, (b, t)).transpose(1, 2).contiguous(), **self.options)
        except RuntimeError as error:
            raise ValueError(f"{self.file} fails on clips (b, 3, t, {I3D_SIDE}, {I3D_SIDE}): {error}") from error
        if found.ndim != 2 or (self.name == "fvd" and found.shape[1] != I3D_FEATURES):
            raise ValueError(
                f"{self.file} gives {tuple(found.shape)}, but FVD's I3D gives ({b}, {I3D_FEATURES}); "
                "measure with another network under another name: --extractor NAME FILE"
            )
        return found


class PixelFeatures:
    """All frames of a clip, averaged to 8 x 8 pixels: they show what is where and when, but no small detail."""

    name = "frechet_distance[pixels]"

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"extractor": "pixels", "resize": f"area mean to {POOLED}x{POOLED}"}

    def __call__(self, clips: Clips) -> Float[Tensor, "b d"]:
        return F.adaptive_avg_pool3d(clips.float().clamp(-1, 1), (clips.shape[2], POOLED, POOLED)).flatten(1)


class ClassifierFeatures:
    """A small classifier's features of frames: their mean over time, and their mean absolute change between frames.

    Args:
        folder: folder of a saved :class:`maskgen.evaluation.classifier.SmallClassifier`.
    """

    def __init__(self, folder: str | Path) -> None:
        from maskgen.evaluation.classifier import load_classifier

        self.network = load_classifier(folder)
        self.name = f"frechet_distance[{self.network.name}, mean and change]"
        self.facts: dict[str, Any] = {"extractor": self.network.name, "resize": "none"}

    @torch.no_grad()
    def __call__(self, clips: Clips) -> Float[Tensor, "b d"]:
        found = self.network.features(clips.transpose(1, 2).flatten(0, 1)).float()
        over_time = found.unflatten(0, (clips.shape[0], clips.shape[2]))
        return torch.cat([over_time.mean(1), over_time.diff(dim=1).abs().mean(1)], dim=1)


ClipFeatures = Callable[[Clips], Float[Tensor, "b d"]]


def clip_distance(made: Float[Tensor, "n d"], truth: Float[Tensor, "m d"]) -> float:
    """The Fréchet distance between two sets of features, in float64.

    Raises:
        ValueError: a side has fewer than 2 clips, or features are not finite.
    """
    return frechet_distance(fit(truth), fit(made))
