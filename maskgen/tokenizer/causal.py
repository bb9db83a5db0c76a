"""Videos whose time goes one way: the causal 3-D VQGAN (MAGVIT-v2, Yu et al. 2023, arXiv:2310.05737, section 3.2).

A latent frame sees the frames up to its own last one and none after. The first frame stands alone, so that an image is
a video of one frame: with time shortened f times, 1 + f m frames are 1 + m latent frames.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.tokenizer.layers import group_norm, token_grid


class CausalConv(nn.Module):
    """A 3-D convolution padded with zeros before the first frame, and around each frame as "same" is.

    With a stride of 2 a frame is padded right and below, as :class:`maskgen.tokenizer.layers.Downsample` does.

    Args:
        kernel, stride: (time, space).
    """

    def __init__(self, before: int, after: int, kernel: tuple[int, int] = (3, 3), stride: tuple[int, int] = (1, 1)):
        super().__init__()
        (t, s), (step, stride_s) = kernel, stride
        self.conv = nn.Conv3d(before, after, (t, s, s), (step, stride_s, stride_s))
        first = (s - stride_s) // 2
        self.padding = (first, s - stride_s - first) * 2 + (t - 1, 0)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        return self.conv(F.pad(x, self.padding))


class FrameNorm(nn.Module):
    """GroupNorm of each frame by itself: statistics over time would show the past what comes after."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = group_norm(channels, groups)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        frames = x.transpose(1, 2)
        return self.norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


class CausalBlock(nn.Module):
    """Norm - SiLU - convolution, twice, beside a shortcut."""

    def __init__(self, before: int, after: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(before, groups), CausalConv(before, after)
        self.norm2, self.conv2 = FrameNorm(after, groups), CausalConv(after, after)
        self.shortcut = nn.Identity() if before == after else nn.Conv3d(before, after, 1)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class CausalUpsample(nn.Module):
    """Double height and width, with `time` also time: each frame but the first becomes two; then a convolution."""

    def __init__(self, channels: int, time: bool):
        super().__init__()
        self.time, self.conv = time, CausalConv(channels, channels, (3 if time else 1, 3))

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        if self.time:
            x = x.repeat_interleave(2, 2)[:, :, 1:]
        return self.conv(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))


class CausalEncoder(nn.Module):
    """Residual levels, each but the last followed by a halving of height and width; the last `temporal` halvings also
    halve time.

    Args:
        channels: of a frame.
        width: channels after the first convolution.
        multipliers: one a level; level i has ``width * multipliers[i]`` channels.
        blocks: residual blocks a level.
        temporal: how many of the halvings are of time too; time is shortened 2^temporal times.
        middle_blocks: residual blocks at the coarsest level, after it.
        patch: frames are first folded ``patch x patch`` into channels.
        groups: of the norms.
        latent_dim: channels of the latents.

    Raises:
        ValueError: more halvings of time than there are halvings.
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
        groups: int = 32,
    ):
        super().__init__()
        halvings = _halvings(multipliers, temporal)
        self.channels, self.patch = channels, patch
        self.downsampling, self.temporal_downsampling = patch * 2 ** len(halvings), 2**temporal
        widths = [width * m for m in multipliers]
        layers: list[nn.Module] = [CausalConv(channels * patch**2, width)]
        for i, (before, w) in enumerate(zip([width, *widths], widths)):
            layers += [CausalBlock(before if j == 0 else w, w, groups) for j in range(blocks)]
            if i < len(halvings):
                layers.append(CausalConv(w, w, *(((3, 3), (2, 2)) if halvings[i] else ((1, 3), (1, 2)))))
        layers += [CausalBlock(widths[-1], widths[-1], groups) for _ in range(middle_blocks)]
        layers += [FrameNorm(widths[-1], groups), nn.SiLU(), nn.Conv3d(widths[-1], latent_dim, 1)]
        self.layers = nn.Sequential(*layers)

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Token grid (h, w) of an image (H, W), (t, h, w) of a video (T, H, W).

        Raises:
            ValueError: a side is not a positive multiple of the downsampling factor, or T is not 1 + f m.
        """
        *frames, height, width = size
        if any((t - 1) % self.temporal_downsampling for t in frames):
            (t,), f = frames, self.temporal_downsampling
            raise ValueError(
                f"{t} frames: this tokenizer takes 1 + {f} m of them (the first alone, then {f} a token); give "
                f"{1 + (t - 1) // f * f} or {1 + -(-(t - 1) // f) * f}"
            )
        return (
            *(1 + (t - 1) // self.temporal_downsampling for t in frames),
            *token_grid((height, width), self.downsampling),
        )

    def size(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of :meth:`grid`."""
        *frames, h, w = grid
        times = (1 + (t - 1) * self.temporal_downsampling for t in frames)
        return (*times, h * self.downsampling, w * self.downsampling)

    def forward(self, pixels: Float[Tensor, "b c *t H W"]) -> Float[Tensor, "b d *t2 h w"]:
        if pixels.ndim == 4:
            return self(pixels[:, :, None])[:, :, 0]
        frames = F.pixel_unshuffle(pixels.transpose(1, 2), self.patch)
        return self.layers(frames.transpose(1, 2))


class CausalDecoder(nn.Module):
    """The encoder's mirror; its arguments are the encoder's. `output` is the last convolution.

    Frame j too sees no later latents than its own, so the beginning of a video can be decoded before the rest is made.
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
        groups: int = 32,
    ):
        super().__init__()
        halvings = _halvings(multipliers, temporal)
        self.patch, self.temporal_downsampling = patch, 2**temporal
        widths = [width * m for m in multipliers]
        layers: list[nn.Module] = [CausalConv(latent_dim, widths[-1])]
        layers += [CausalBlock(widths[-1], widths[-1], groups) for _ in range(middle_blocks)]
        for i in reversed(range(len(widths))):
            before = widths[min(i + 1, len(widths) - 1)]
            layers += [CausalBlock(before if j == 0 else widths[i], widths[i], groups) for j in range(blocks)]
            if i > 0:
                layers.append(CausalUpsample(widths[i], halvings[i - 1]))
        self.layers = nn.Sequential(*layers, FrameNorm(widths[0], groups), nn.SiLU())
        last = CausalConv(widths[0], channels * patch**2)
        self.last_padding, self.output = last.padding, last.conv

    def forward(self, latents: Float[Tensor, "b d *t h w"]) -> Float[Tensor, "b c *t2 H W"]:
        if latents.ndim == 4:
            return self(latents[:, :, None])[:, :, 0]
        made = self.output(F.pad(self.layers(latents), self.last_padding))
        return F.pixel_shuffle(made.transpose(1, 2), self.patch).transpose(1, 2)


def _halvings(multipliers: list[int], temporal: int) -> list[bool]:
    """Of each halving whether it halves time too."""
    count = len(multipliers) - 1
    if not 0 <= temporal <= count:
        raise ValueError(f"temporal {temporal} must lie between 0 and the {count} halvings of {multipliers}")
    return [i >= count - temporal for i in range(count)]
