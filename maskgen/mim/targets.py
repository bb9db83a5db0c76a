"""Targets: what the network must predict, made of codes, tokens, pixels or a teacher's features.

A target is called with the input that its `source` names, and returns codes (b, n) or values (b, n, d).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from maskgen.mim.hog import HOG

Normalise = Literal["none", "patch", "patch_channel"]


class Codes:
    """The tokenizer's codes (BEiT, MaskGIT, MAGE)."""

    source = "codes"

    def __call__(self, tokens: Int[Tensor, "b *grid"]) -> Int[Tensor, "b n"]:
        return tokens.flatten(1)


class Bits:
    """The bits of the codes as 0 or 1, lowest bit first (MaskBit, arXiv:2409.16211).

    Args:
        bits: number of bits of a code; codes lie in [0, 2^bits).
    """

    source = "codes"

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(self, tokens: Int[Tensor, "b *grid"]) -> Float[Tensor, "b n bits"]:
        return ((tokens.flatten(1)[..., None] >> torch.arange(self.bits, device=tokens.device)) & 1).float()


class Latents:
    """Continuous tokens without change (GIVT)."""

    source = "tokens"

    def __call__(self, tokens: Float[Tensor, "b *grid d"]) -> Float[Tensor, "b n d"]:
        return tokens.flatten(1, -2)


# --- Pixels.


def patchify(pixels: Float[Tensor, "b c *size"], patch: int, frames: int = 1) -> Float[Tensor, "b n d"]:
    """Cuts pixels (b, c, H, W) or (b, c, t, H, W) into tokens in row-major order.

    The values of a token are ordered by (frame,) row, column and channel, as in MAE and VideoMAE.

    Raises:
        ValueError: the sides are not multiples of `patch`, or the number of frames is not a multiple of `frames`.
    """
    video = pixels if pixels.ndim == 5 else pixels[:, :, None]
    t, height, width = video.shape[2:]
    if t % frames or height % patch or width % patch:
        raise ValueError(
            f"pixels {tuple(pixels.shape)} are not whole tokens of {frames} frames and {patch} x {patch} pixels; "
            "resize or crop them"
        )
    return rearrange(video, "b c (t r) (h p) (w q) -> b (t h w) (r p q c)", r=frames, p=patch, q=patch)


def unpatchify(
    patches: Float[Tensor, "b n d"], grid: tuple[int, ...], patch: int, frames: int = 1
) -> Float[Tensor, "b c *size"]:
    """The inverse of :func:`patchify`. The `grid` is (h, w) for images and (t, h, w) for videos."""
    t, h, w = grid if len(grid) == 3 else (1, *grid)
    sizes = {"t": t, "h": h, "w": w, "r": frames, "p": patch, "q": patch}
    video = rearrange(patches, "b (t h w) (r p q c) -> b c (t r) (h p) (w q)", **sizes)
    return video if len(grid) == 3 else video[:, :, 0]


class Statistics(NamedTuple):
    """Mean and scale of each patch, float32 (b, n, k); k is 1, or the number of channels if each has its own."""

    mean: Tensor
    scale: Tensor


def statistics(patches: Float[Tensor, "b n d"], normalise: Normalise, channels: int = 3) -> Statistics:
    """The mean and scale by which `normalise` normalises each patch. Variances are unbiased.

    ``patch`` takes all pixels and channels of a patch together, with scale sqrt(variance + 1e-6) (MAE).
    ``patch_channel`` takes each channel, with scale sqrt(variance) + 1e-6 (VideoMAE). ``none`` is mean 0 and scale 1.
    """
    patches = patches.float()
    if normalise == "none":
        return Statistics(torch.zeros_like(patches[..., :1]), torch.ones_like(patches[..., :1]))
    variance, mean = torch.var_mean(patches.unflatten(-1, (-1, 1 if normalise == "patch" else channels)), dim=-2)
    return Statistics(mean, (variance + 1e-6).sqrt() if normalise == "patch" else variance.sqrt() + 1e-6)


def normalised(patches: Float[Tensor, "b n d"], by: Statistics) -> Float[Tensor, "b n d"]:
    """(patches - mean) / scale."""
    mean, scale = (x.repeat(1, 1, patches.shape[-1] // x.shape[-1]) for x in by)  # channels are last in a patch
    return (patches.float() - mean) / scale


def denormalised(patches: Float[Tensor, "b n d"], by: Statistics) -> Float[Tensor, "b n d"]:
    """patches * scale + mean, the inverse of :func:`normalised`."""
    mean, scale = (x.repeat(1, 1, patches.shape[-1] // x.shape[-1]) for x in by)
    return patches.float() * scale + mean


def guessed(by: Statistics, hidden: Bool[Tensor, "b n"], grid: tuple[int, ...]) -> Statistics:
    """The statistics of hidden patches, estimated from the visible patches, whose own statistics do not change.

    The estimate is the mean over the visible patches of the image with the weights 1 / distance^2 on the grid. It is
    mean 0 and scale 1 in images without visible patches.
    """
    axes = [torch.arange(n, dtype=torch.float32, device=hidden.device) for n in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    # Explicit differences, because the matrix product of cdist rounds.
    distance2 = (places[:, None] - places).square().sum(-1)
    weights = (~hidden)[:, None].float() / distance2.clamp(min=1)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)

    def spread(x: Tensor, where_nothing: float) -> Tensor:
        blind = hidden.all(1)[:, None, None]
        # Hidden values become 0 first; otherwise an infinite one would leak as 0 * inf.
        seen = weights @ x.masked_fill(hidden[..., None], 0.0)
        return torch.where(hidden[..., None], seen.masked_fill(blind, where_nothing), x)

    return Statistics(spread(by.mean, 0.0), spread(by.scale, 1.0))


class Pixels:
    """The pixels of each patch, float32 (b, n, frames * patch^2 * c) (MAE, SimMIM, VideoMAE).

    Without normalisation the target has the units of the pixels.

    Args:
        patch: side of a token in pixels.
        frames: frames per token (2 in VideoMAE).
        normalise: ``none`` (SimMIM), ``patch`` (MAE) or ``patch_channel`` (VideoMAE), see :func:`statistics`.
        first_frame: the target is only the first frame of each token, (b, n, patch^2 * c) (Hiera).
    """

    source = "pixels"

    def __init__(self, patch: int = 16, frames: int = 1, normalise: Normalise = "patch", first_frame: bool = False):
        self.patch, self.frames, self.normalise, self.first_frame = patch, frames, normalise, first_frame

    def __call__(self, pixels: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """
        Raises:
            ValueError: the size of `pixels` is not a multiple of the token's.
        """
        patches = self._wanted(patchify(pixels, self.patch, self.frames))
        return normalised(patches, statistics(patches, self.normalise, pixels.shape[1]))

    def _wanted(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        """The values that are predicted. The frames of a token follow one another."""
        return patches[..., : patches.shape[-1] // self.frames] if self.first_frame else patches

    def image(
        self,
        predictions: Float[Tensor, "b n d"],
        pixels: Float[Tensor, "b c *size"],
        hidden: Bool[Tensor, "b n"],
        peek: bool = False,
        everywhere: bool = False,
    ) -> Float[Tensor, "b c *size"]:
        """An image with the visible patches and, at the hidden ones (or `everywhere`), the predictions.

        A normalised prediction does not contain the mean and contrast of its patch. They are estimated from the visible
        patches, so that no hidden pixel reaches the image, or are the true ones with `peek` (as in MAE's demo). Frames
        that are not predicted show the first frame of their token.
        """
        patches = patchify(pixels, self.patch, self.frames).float()
        cells = [n // self.patch for n in pixels.shape[-2:]]
        grid = (pixels.shape[2] // self.frames, *cells) if pixels.ndim == 5 else tuple(cells)
        by = statistics(self._wanted(patches), self.normalise, pixels.shape[1])
        if not peek and self.normalise != "none":
            by = guessed(by, hidden, grid)
        made = denormalised(predictions, by)
        made = made.repeat(1, 1, patches.shape[-1] // made.shape[-1])
        filled = made if everywhere else torch.where(hidden[..., None], made, patches)
        return unpatchify(filled, grid, self.patch, self.frames)


# --- A teacher's features.


class Features:
    """The normalised features of a teacher's last layers, one vector per token.

    Args:
        normalise: of each layer, without learned parameters: ``none``; ``layer_norm`` per token (MaskDistill, the
            whitening of MaskAlign); ``instance_norm`` per channel over the tokens of the image (data2vec); ``l2`` to
            norm 1 per token.
        layers: number of last layers (5 in MaskAlign, arXiv:2211.15492).
        join: ``mean`` of the layers, or ``concatenate`` to predict each of them (MaskAlign).
    """

    source = "features"

    def __init__(
        self,
        normalise: Literal["none", "layer_norm", "instance_norm", "l2"] = "layer_norm",
        layers: int = 1,
        join: Literal["mean", "concatenate"] = "mean",
    ):
        self.normalise, self.layers, self.join = normalise, layers, join

    @torch.no_grad()
    def __call__(
        self, features: Float[Tensor, "b d *grid"] | Sequence[Float[Tensor, "b d *grid"]]
    ) -> Float[Tensor, "b n e"]:
        """
        Args:
            features: of the last layer, or of several layers in their order.

        Raises:
            ValueError: there are fewer than `layers` layers.
        """
        given = [features] if isinstance(features, Tensor) else list(features)
        if len(given) < self.layers:
            raise ValueError(
                f"target layers is {self.layers}, but the teacher gives {len(given)}; set stage.teacher.layers"
            )
        tokens = [self._normalised(x.float().flatten(2).transpose(1, 2)) for x in given[-self.layers :]]
        return torch.cat(tokens, -1) if self.join == "concatenate" else torch.stack(tokens).mean(0)

    def _normalised(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if self.normalise == "layer_norm":
            return F.layer_norm(x, x.shape[-1:])
        if self.normalise == "instance_norm":
            return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
        return F.normalize(x, dim=-1) if self.normalise == "l2" else x


class CentredSoftmax(nn.Module):
    """softmax((logits - centre) / temperature) of a teacher's head, which prevents collapse (iBOT, arXiv:2111.07832,
    section 3.2; DINO, arXiv:2104.14294, section 3.1).

    In training each call then moves the centre towards the mean of the logits over all tokens, rows and processes. The
    centre and the number of calls are buffers, so they are saved and resumed with the run.

    Args:
        dim: number of logits per token.
        temperature: temperature after the warm-up.
        first_temperature: temperature at the first call; it changes linearly during the warm-up.
        warmup: number of calls until `temperature` is reached (iBOT: 30 epochs).
        momentum: share of the old centre that is kept.

    Raises:
        ValueError: a temperature is not positive.
    """

    source = "features"

    centre: Tensor
    calls: Tensor

    def __init__(
        self,
        dim: int,
        temperature: float = 0.07,
        first_temperature: float = 0.04,
        warmup: int = 0,
        momentum: float = 0.9,
    ):
        super().__init__()
        if min(temperature, first_temperature) <= 0:
            raise ValueError(f"temperatures must be positive, got {first_temperature} and {temperature}")
        self.last, self.first, self.warmup, self.momentum = temperature, first_temperature, warmup, momentum
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def temperature(self) -> Float[Tensor, ""]:
        """The temperature of the next call, as a tensor, so that no step waits for the device."""
        progress = (self.calls / self.warmup).clamp(max=1) if self.warmup else torch.ones_like(self.calls)
        return self.first + (self.last - self.first) * progress

    @torch.no_grad()
    def forward(self, logits: Float[Tensor, "b d *grid"]) -> Float[Tensor, "b *n d"]:
        """Distributions (b, n, d) for the logits (b, d, *grid) of tokens, or (b, d) for those of class tokens."""
        tokens = logits.float() if logits.ndim == 2 else logits.float().flatten(2).transpose(1, 2)
        found = ((tokens - self.centre) / self.temperature()).softmax(-1)
        if self.training:
            self._update(tokens.flatten(0, -2).mean(0))
        return found

    def _update(self, mean: Float[Tensor, "d"]) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)
            mean = mean / dist.get_world_size()
        self.centre.lerp_(mean, 1 - self.momentum)
        self.calls.add_(1)


TARGETS = {
    "codes": Codes,
    "bits": Bits,
    "latents": Latents,
    "pixels": Pixels,
    "hog": HOG,
    "features": Features,
    "centred_softmax": CentredSoftmax,
}
