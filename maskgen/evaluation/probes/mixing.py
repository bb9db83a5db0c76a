"""What fine-tuning does to a batch: MixUp, CutMix and random erasing, by torchvision's transforms (v2).

All of them take their random numbers from PyTorch's default generator, since torchvision's transforms have no other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from maskgen.evaluation.probes.result import Number

Pixels = Float[Tensor, "b c h w"]
NOISE = 0.5  # standard deviation of the noise in an erased box, for pixels in [-1, 1]


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
    """A batch in which each image is mixed with the one before it, and its targets, whose rows sum to 1.

    The whole batch has one ratio, from Beta(a, a): MixUp (arXiv:1710.09412, a = `mixup`) averages two images, CutMix
    (arXiv:1905.04899, a = `cutmix`) replaces a box, and the targets follow the exact area of the box. If both are above
    0, each is used for half of the batches; if both are 0, nothing is mixed.
    """
    from torchvision.transforms import v2

    targets = soft_targets(labels, classes, smoothing)
    kinds = [kind(alpha=alpha) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha > 0]
    return v2.RandomChoice(kinds)(pixels, targets) if kinds else (pixels, targets)


def erase(pixels: Pixels, probability: Number) -> Pixels:
    """A copy of images in [-1, 1] in which, with `probability`, a box of an image is noise (arXiv:1708.04896).

    The box has 2% to a third of the area and an aspect ratio of 0.3 to 1/0.3; one that does not fit is sampled again,
    at most ten times. The noise is normal with standard deviation `NOISE`, independent per value, clipped to [-1, 1].
    """
    from torchvision.transforms import v2

    erasing = v2.RandomErasing(p=probability, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random")
    # torchvision's noise has the standard deviation 1; each image has its own box, so they go one by one.
    return torch.stack([(erasing(image / NOISE) * NOISE).clamp(-1, 1) for image in pixels])
