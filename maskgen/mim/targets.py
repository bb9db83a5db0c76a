"""What is to be predicted: a target maps an image's codes, tokens, pixels or teacher features to (b, n, ...).

`source` says which of them it is called with.
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
    """The tokenizer's codes themselves (BEiT, MaskGIT, MAGE)."""

    source = "codes"

    def __call__(self, tokens: Int[Tensor, "b *grid"]) -> Int[Tensor, "b n"]:
        return tokens.flatten(1)


class Bits:
    """The bits of the codes, lowest first, 0 or 1 (MaskBit, arXiv:2409.16211).

    Args:
        bits: bits of a code; codes lie in [0, 2^bits).
    """

    source = "codes"

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(self, tokens: Int[Tensor, "b *grid"]) -> Float[Tensor, "b n bits"]:
        return ((tokens.flatten(1)[..., None] >> torch.arange(self.bits, device=tokens.device)) & 1).float()


class Latents:
    """Continuous tokens as they are (GIVT)."""

    source = "tokens"

    def __call__(self, tokens: Float[Tensor, "b *grid d"]) -> Float[Tensor, "b n d"]:
        return tokens.flatten(1, -2)


# --- Pixels.


def patchify(pixels: Float[Tensor, "b c *size"], patch: int, frames: int = 1) -> Float[Tensor, "b n d"]:
    """Pixels (b, c, H, W) or (b, c, t, H, W) to tokens in row-major order, values in MAE's: rows, columns, channels
    (VideoMAE's: frames first).

    Raises:
        ValueError: sides that are no multiples of `patch`, or frames that are none of `frames`.
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
    """The inverse of :func:`patchify`; `grid` is (h, w) of an image, (t, h, w) of a video."""
    t, h, w = grid if len(grid) == 3 else (1, *grid)
    sizes = {"t": t, "h": h, "w": w, "r": frames, "p": patch, "q": patch}
    video = rearrange(patches, "b (t h w) (r p q c) -> b c (t r) (h p) (w q)", **sizes)
    return video if len(grid) == 3 else video[:, :, 0]


class Statistics(NamedTuple):
    """Mean and scale of each patch, float32 (b, n, k): k is 1, or the channels where each has its own."""

    mean: Tensor
    scale: Tensor


def statistics(patches: Float[Tensor, "b n d"], normalise: Normalise, channels: int = 3) -> Statistics:
    """What `normalise` takes off each patch and divides it by; variances are unbiased.

    ``patch``: over a patch's pixels and channels together, sqrt(variance + 1e-6) (MAE). ``patch_channel``: of each
    channel, sqrt(variance) + 1e-6 (VideoMAE). ``none``: 0 and 1.
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
    """Statistics of the hidden patches from those of the visible ones alone, which are kept.

    Means over the image's visible patches, weighed by 1 / distance^2 on the grid; 0 and 1 where nothing is visible.
    """
    axes = [torch.arange(n, dtype=torch.float32, device=hidden.device) for n in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    # the explicit differences: cdist's matrix product rounds
    distance2 = (places[:, None] - places).square().sum(-1)
    weights = (~hidden)[:, None].float() / distance2.clamp(min=1)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)

    def spread(x: Tensor, where_nothing: float) -> Tensor:
        blind = hidden.all(1)[:, None, None]
        # hidden values are zeroed before the product, or one that is not finite would leak as 0 * inf
        seen = weights @ x.masked_fill(hidden[..., None], 0.0)
        return torch.where(hidden[..., None], seen.masked_fill(blind, where_nothing), x)

    return Statistics(spread(by.mean, 0.0), spread(by.scale, 1.0))


class Pixels:
    """The pixels of each patch, normalised or not (MAE, SimMIM, VideoMAE), float32 (b, n, frames patch^2 c).

    Of its frames Hiera predicts the first alone, (b, n, patch^2 c).

    The target is in the units of the pixels given.

    Args:
        patch: side of a token in pixels.
        frames: frames of a token (2 in VideoMAE).
        normalise: ``none`` (SimMIM), ``patch`` (MAE) or ``patch_channel`` (VideoMAE), see :func:`statistics`.
        first_frame: of a token's frames the first is predicted, the others are not.
    """

    source = "pixels"

    def __init__(self, patch: int = 16, frames: int = 1, normalise: Normalise = "patch", first_frame: bool = False):
        self.patch, self.frames, self.normalise, self.first_frame = patch, frames, normalise, first_frame

    def __call__(self, pixels: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """
        Raises:
            ValueError: pixels that are not whole tokens.
        """
        patches = self._wanted(patchify(pixels, self.patch, self.frames))
        return normalised(patches, statistics(patches, self.normalise, pixels.shape[1]))

    def _wanted(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        """Of all values of a token, whose frames stand one after another."""
        return patches[..., : patches.shape[-1] // self.frames] if self.first_frame else patches

    def image(
        self,
        predictions: Float[Tensor, "b n d"],
        pixels: Float[Tensor, "b c *size"],
        hidden: Bool[Tensor, "b n"],
        peek: bool = False,
        everywhere: bool = False,
    ) -> Float[Tensor, "b c *size"]:
        """The visible patches as they are and the predictions at the hidden ones, or `everywhere`, for looking at.

        A normalised prediction says nothing of its patch's mean and contrast. They come from the visible patches, so
        that no hidden pixel reaches the image; `peek` takes the true ones (MAE's demo). A frame that is not predicted
        shows its token's first.
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
    """A teacher's features as tokens, normalised, of its last layers.

    Args:
        normalise: of each layer, without learned parameters: ``none``; ``layer_norm`` of each token (MaskDistill;
            MaskAlign's whitening); ``instance_norm`` of each channel over the image's tokens (data2vec); ``l2``
            norm 1 of each token.
        layers: how many of the last layers there are (5 in MaskAlign, arXiv:2211.15492).
        join: ``mean`` of them, or ``concatenate`` for a prediction of each (MaskAlign).
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
            features: of the last layer, or of several from the first on.

        Raises:
            ValueError: fewer layers than are to be averaged.
        """
        given = [features] if isinstance(features, Tensor) else list(features)
        if len(given) < self.layers:
            raise ValueError(
                f"the last {self.layers} layers are asked for, the teacher gave {len(given)}; set its `layers`"
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
    """softmax((logits - centre) / temperature) of a teacher's head, against collapse (iBOT, arXiv:2111.07832, section
    3.2; DINO, arXiv:2104.14294, section 3.1).

    In training every call then moves the centre towards the logits' mean over all tokens, rows and processes. Centre
    and number of calls are buffers, so they resume with the run.

    Args:
        dim: logits of a token.
        temperature: after the warm-up.
        first_temperature: at the first call; from there on linearly.
        warmup: calls until `temperature` is reached (iBOT: 30 epochs).
        momentum: share of the old centre that is kept.
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
            raise ValueError(f"temperatures must be positive, got {first_temperature} to {temperature}")
        self.last, self.first, self.warmup, self.momentum = temperature, first_temperature, warmup, momentum
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def temperature(self) -> Float[Tensor, ""]:
        """Of the next call; a tensor, so that a GPU is not waited for."""
        progress = (self.calls / self.warmup).clamp(max=1) if self.warmup else torch.ones_like(self.calls)
        return self.first + (self.last - self.first) * progress

    @torch.no_grad()
    def forward(self, logits: Float[Tensor, "b d *grid"]) -> Float[Tensor, "b *n d"]:
        """Distributions (b, n, d) of tokens' logits (b, d, h, w), or (b, d) of class tokens' logits (b, d)."""
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
