"""The augmentation of fine-tuning by torchvision: mixup, CutMix and random erasing, with torch's random numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from maskgen.evaluation.probes.result import Number

Pixels = Float[Tensor, "b c h w"]
NOISE = 0.5  # standard deviation of the noise in an erased box


def soft_targets(labels: Int64[Tensor, "b"], classes: int, smoothing: Number) -> Float[Tensor, "b k"]:
    """One-hot labels with label smoothing; rows sum to 1."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def mix(
    pixels: Pixels,
    labels: Int64[Tensor, "b"],
    classes: int,
    *,
    mixup: Number = 0.8,
    cutmix: Number = 1.0,
    smoothing: Number = 0.1,
) -> tuple[Pixels, Float[Tensor, "b k"]]:
    """Mix each image with the one before it; return the images and their targets, whose rows sum to 1.

    The share of the mixture is sampled once per batch from Beta(a, a). Mixup (arXiv:1710.09412, a = `mixup`) averages
    images; CutMix (arXiv:1905.04899, a = `cutmix`) replaces a box, whose exact area sets the targets. If both are above
    0, each is used for half of the batches; if both are 0, only label smoothing is applied.
    """
    from torchvision.transforms import v2

    targets = soft_targets(labels, classes, smoothing)
    if mixup <= 0 and cutmix <= 0:
        return pixels, targets
    cut = cutmix > 0 and (mixup <= 0 or float(torch.rand(())) < 0.5)
    transform = v2.CutMix(alpha=float(cutmix)) if cut else v2.MixUp(alpha=float(mixup))
    mixed, mixed_targets = transform(pixels, targets)
    return mixed, mixed_targets


def erase(pixels: Pixels, probability: Number) -> Pixels:
    """Replace a box of each image by noise with the given `probability` (random erasing, arXiv:1708.04896).

    The box has 2% to 33% of the area and an aspect of 0.3 to 3.3. The noise is normal per pixel with standard deviation
    0.5, clipped to [-1, 1].
    """
    from torchvision.transforms import v2

    erasing = v2.RandomErasing(p=float(probability), value="random")
    return torch.stack([(erasing(image / NOISE) * NOISE).clamp(-1, 1) for image in pixels])
