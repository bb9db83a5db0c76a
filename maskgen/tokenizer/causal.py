"""Causal 3-D convolutions for videos: the VQGAN of MAGVIT-v2 (Yu et al. 2023, arXiv:2310.05737, section 3.2).

A latent frame depends on the frames up to its own last one and on none after it. The first frame is encoded alone, so
an image is a video of one frame: with time shortened f times, 1 + f m frames become 1 + m latent frames.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.tokenizer.layers import Level, Middle, group_norm, token_grid


class CausalConv(nn.Module):
    """A 3-D convolution padded with zeros before the first frame, and with "same" padding within each frame.

    With a stride of 2 a frame is padded at the right and below, as in :class:`maskgen.tokenizer.layers.Downsample`.

    Args:
        kernel, stride: (time, space).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int] = (3, 3), stride: tuple[int, int] = (1, 1)
    ):
        super().__init__()
        (t, s), (step, stride_s) = kernel, stride
        self.conv = nn.Conv3d(in_channels, out_channels, (t, s, s), (step, stride_s, stride_s))
        first = (s - stride_s) // 2
        self.padding = (first, s - stride_s - first) * 2 + (t - 1, 0)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        return self.conv(F.pad(x, self.padding))


class FrameNorm(nn.Module):
    """GroupNorm of each frame on its own: statistics over time would let a frame depend on later ones."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.norm = group_norm(channels, norm_groups)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        frames = x.transpose(1, 2)
        return self.norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


class CausalBlock(nn.Module):
    """Norm, SiLU and convolution, twice, with a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int):
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(in_channels, norm_groups), CausalConv(in_channels, out_channels)
        self.norm2, self.conv2 = FrameNorm(out_channels, norm_groups), CausalConv(out_channels, out_channels)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class CausalUpsample(nn.Module):
    """Double height and width, followed by a convolution.

    With `time` the time is doubled too: each frame but the first becomes two.
    """

    def __init__(self, channels: int, time: bool):
        super().__init__()
        self.time, self.conv = time, CausalConv(channels, channels, (3 if time else 1, 3))

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        if self.time:
            x = x.repeat_interleave(2, 2)[:, :, 1:]
        return self.conv(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))


class CausalEncoder(nn.Module):
    """The encoder of MAGVIT-v2: levels of residual blocks, each but the last with a halving of height and width.

    The last `temporal` halvings also halve the time.

    Args:
        latent_dim: channels of the latents (given by the quantizer).
        channels: channels of a frame.
        width: channels after the first convolution.
        multipliers: one per level; level i has ``width * multipliers[i]`` channels.
        blocks: number of residual blocks per level.
        temporal: the number of halvings that also halve the time, which becomes 2^temporal times shorter.
        middle_blocks: number of residual blocks after the coarsest level.
        patch: the side of the patches of pixels that are first folded into channels, in each frame.
        norm_groups: groups of GroupNorm; 0 normalises each position on its own.

    Raises:
        ValueError: `temporal` is larger than the number of halvings.
    """

    takes_videos = True

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        width: int = 128,
        multipliers: list[int] = [1, 2, 2, 4],  # noqa: B006
        blocks: int = 2,
        temporal: int = 2,
        middle_blocks: int = 2,
        patch: int = 1,
        norm_groups: int = 32,
    ):
        super().__init__()
        halvings = _halvings(multipliers, temporal)
        self.channels, self.patch = channels, patch
        self.downsampling, self.temporal_downsampling = patch * 2 ** len(halvings), 2**temporal
        widths = [width * m for m in multipliers]
        self.conv_in = CausalConv(channels * patch**2, width)
        self.down = nn.ModuleList()
        for i, (before, w) in enumerate(zip([width, *widths], widths)):
            level = _level(before, w, blocks, norm_groups)
            if i < len(halvings):
                level.downsample = CausalConv(w, w, *(((3, 3), (2, 2)) if halvings[i] else ((1, 3), (1, 2))))
            self.down.append(level)
        self.mid = _middle(widths[-1], middle_blocks, norm_groups)
        self.norm_out = FrameNorm(widths[-1], norm_groups)
        self.conv_out = nn.Conv3d(widths[-1], latent_dim, 1)

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The token grid (h, w) of an image (H, W), or (t, h, w) of a video (T, H, W).

        Raises:
            ValueError: a side is not a positive multiple of the downsampling factor, or T is not 1 + f m.
        """
        *frames, height, width = size
        if any((t - 1) % self.temporal_downsampling for t in frames):
            (t,), f = frames, self.temporal_downsampling
            raise ValueError(
                f"{t} frames: this tokenizer takes 1 + {f} m of them (the first alone, then {f} per token); give "
                f"{1 + (t - 1) // f * f} or {1 + -(-(t - 1) // f) * f}"
            )
        return (
            *(1 + (t - 1) // self.temporal_downsampling for t in frames),
            *token_grid((height, width), self.downsampling),
        )

    def size(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The size of the image or video with this token grid: the inverse of :meth:`grid`."""
        *frames, h, w = grid
        times = (1 + (t - 1) * self.temporal_downsampling for t in frames)
        return (*times, h * self.downsampling, w * self.downsampling)

    def forward(self, pixels: Float[Tensor, "b c *t H W"]) -> Float[Tensor, "b d *t2 h w"]:
        if pixels.ndim == 4:
            return self(pixels[:, :, None])[:, :, 0]
        frames = F.pixel_unshuffle(pixels.transpose(1, 2), self.patch)
        h = self.conv_in(frames.transpose(1, 2))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class CausalDecoder(nn.Module):
    """The decoder of MAGVIT-v2, which mirrors :class:`CausalEncoder`; its arguments mean the same.

    Frame j depends on no latent frame after its own, so the beginning of a video can be decoded before its end is
    known.
    """

    takes_videos = True

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        width: int = 128,
        multipliers: list[int] = [1, 2, 2, 4],  # noqa: B006
        blocks: int = 2,
        temporal: int = 2,
        middle_blocks: int = 2,
        patch: int = 1,
        norm_groups: int = 32,
    ):
        super().__init__()
        halvings = _halvings(multipliers, temporal)
        self.patch, self.temporal_downsampling = patch, 2**temporal
        widths = [width * m for m in multipliers]
        self.conv_in = CausalConv(latent_dim, widths[-1])
        self.mid = _middle(widths[-1], middle_blocks, norm_groups)
        self.up = nn.ModuleDict()  # from the coarsest level to the finest, each under its number
        for i in reversed(range(len(widths))):
            level = _level(widths[min(i + 1, len(widths) - 1)], widths[i], blocks, norm_groups)
            if i > 0:
                level.upsample = CausalUpsample(widths[i], halvings[i - 1])
            self.up[str(i)] = level
        self.norm_out = FrameNorm(widths[0], norm_groups)
        self.conv_out = CausalConv(widths[0], channels * patch**2)

    @property
    def last_layer(self) -> nn.Module:
        """The layer that gives the pixels."""
        return self.conv_out.conv

    def forward(self, latents: Float[Tensor, "b d *t h w"]) -> Float[Tensor, "b c *t2 H W"]:
        if latents.ndim == 4:
            return self(latents[:, :, None])[:, :, 0]
        h = self.mid(self.conv_in(latents))
        for level in self.up.values():
            h = level(h)
        pixels = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(pixels.transpose(1, 2), self.patch).transpose(1, 2)


def _level(in_channels: int, out_channels: int, count: int, norm_groups: int) -> Level:
    widths = [in_channels, *[out_channels] * count]
    return Level([CausalBlock(before, after, norm_groups) for before, after in pairwise(widths)], [])


def _middle(width: int, count: int, norm_groups: int) -> Middle:
    return Middle([CausalBlock(width, width, norm_groups) for _ in range(count)], None)


def _halvings(multipliers: list[int], temporal: int) -> list[bool]:
    """For each halving of height and width, whether it also halves the time."""
    count = len(multipliers) - 1
    if not 0 <= temporal <= count:
        raise ValueError(f"temporal {temporal} must lie between 0 and the {count} halvings of {multipliers}")
    return [i >= count - temporal for i in range(count)]
