"""The augmentation of fine-tuning: mixup, CutMix and random erasing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.random import Generator
from torch import Tensor

from maskgen.evaluation.probes.result import Number

Pixels = Float[Tensor, "b c h w"]


def soft_targets(labels: Int64[Tensor, "b"], classes: int, smoothing: Number) -> Float[Tensor, "b k"]:
    """One-hot labels with label smoothing; rows sum to 1."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def cut_box(h: int, w: int, share: Number, generator: Generator) -> tuple[int, int, int, int]:
    """A random box with the aspect of the image and about `share` of its area, as (top, bottom, left, right).

    The centre is anywhere in the image and the box is cut at the borders (CutMix, arXiv:1905.04899, eq. 2).
    """
    high, wide = int(h * math.sqrt(share)), int(w * math.sqrt(share))
    y, x = int(generator.integers(h)), int(generator.integers(w))
    top, left = y - high // 2, x - wide // 2
    return max(0, top), min(h, top + high), max(0, left), min(w, left + wide)


def mix(
    pixels: Pixels,
    labels: Int64[Tensor, "b"],
    classes: int,
    generator: Generator,
    *,
    mixup: Number = 0.8,
    cutmix: Number = 1.0,
    smoothing: Number = 0.1,
) -> tuple[Pixels, Float[Tensor, "b k"]]:
    """Mix a batch with itself in reverse order; return the images and their targets, whose rows sum to 1.

    The share of the mixture is sampled once per batch from Beta(a, a). Mixup (arXiv:1710.09412, a = `mixup`) averages
    images; CutMix (a = `cutmix`) replaces a box, whose exact area sets the targets. If both are above 0, each is used
    for half of the batches; if both are 0, only label smoothing is applied.
    """
    targets = soft_targets(labels, classes, smoothing)
    if mixup <= 0 and cutmix <= 0:
        return pixels, targets
    cut = cutmix > 0 and (mixup <= 0 or generator.random() < 0.5)
    alpha = cutmix if cut else mixup
    kept = float(generator.beta(alpha, alpha))
    if cut:
        h, w = pixels.shape[2:]
        top, bottom, left, right = cut_box(h, w, 1 - kept, generator)
        kept = 1 - (bottom - top) * (right - left) / (h * w)
        mixed = pixels.clone()
        mixed[:, :, top:bottom, left:right] = pixels.flip(0)[:, :, top:bottom, left:right]
    else:
        mixed = kept * pixels + (1 - kept) * pixels.flip(0)
    return mixed, kept * targets + (1 - kept) * targets.flip(0)


def erase(pixels: Pixels, probability: Number, generator: Generator) -> Pixels:
    """Replace a box of each image by noise with the given `probability` (random erasing, arXiv:1708.04896).

    The box has 2% to a third of the area and an aspect of 0.3 to 1/0.3; a box that does not fit is sampled again, at
    most ten times. The noise is normal per pixel with standard deviation 0.5, clipped to [-1, 1].
    """
    pixels = pixels.clone()
    h, w = pixels.shape[2:]
    for image in pixels:
        if generator.random() >= probability:
            continue
        for _ in range(10):
            area = generator.uniform(0.02, 1 / 3) * h * w
            aspect = math.exp(generator.uniform(math.log(0.3), -math.log(0.3)))
            high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < high < h and 0 < wide < w:
                top, left = int(generator.integers(h - high + 1)), int(generator.integers(w - wide + 1))
                noise = generator.normal(0, 0.5, (len(image), high, wide)).clip(-1, 1)
                image[:, top : top + high, left : left + wide] = torch.from_numpy(noise).to(image)
                break
    return pixels
