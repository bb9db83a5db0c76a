"""Encoders (pixels -> latents) and decoders (latents -> pixels): convolutions, and patches as they are."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.tokenizer.causal import CausalDecoder, CausalEncoder
from maskgen.tokenizer.layers import (
    AttentionBlock,
    Downsample,
    Residual,
    ResidualBlock,
    Stack,
    Upsample,
    group_norm,
    make_norm,
    token_grid,
)
from maskgen.tokenizer.vit import ViTDecoder, ViTEncoder


class ConvEncoder(nn.Module):
    """The VQGAN encoder: residual levels, each but the last followed by a halving; a middle; a head.

    Args:
        channels: of the image.
        width: channels after the first convolution.
        multipliers: one a level; level i has ``width * multipliers[i]`` channels.
        blocks: residual blocks a level.
        attention: levels (0 is the finest) with self-attention; taming-transformers has it at the coarsest,
            MaskGIT's VQGAN nowhere.
        middle_blocks: residual blocks of the middle.
        middle_attention: self-attention after the first of them.
        patch: pixels are first folded ``patch x patch`` into channels; 2 makes small images 4 times cheaper.
        residual: ``taming`` or ``maskgit``, see :class:`~maskgen.tokenizer.layers.ResidualBlock`.
        downsample: ``conv``, 3x3 of stride 2; ``conv4``, 4x4 (MaskGIT's ``conv_downsample``); or ``pool``, mean of 2x2,
            which MaskGIT's published VQGAN has.
        hidden_dim: the head goes through so many channels (3x3, then 1x1), as taming's ``z_channels``; 0 is one 1x1.
        groups: of the norms, whose statistics are of the whole image; with 0 each place is normed by itself, and a
            code depends on the pixels around it alone.
        kernel: odd side of the convolutions (but those that halve); 1 with one level and `groups` 0 codes each patch by
            itself: where nothing changes the code stays, whatever happens beside it.
        latent_dim: channels of the latents.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        width: int = 128,
        multipliers: list[int] = [1, 1, 2, 2, 4],  # noqa: B006
        blocks: int = 2,
        attention: list[int] = [],  # noqa: B006
        middle_blocks: int = 2,
        middle_attention: bool = False,
        patch: int = 1,
        residual: Residual = "taming",
        downsample: Literal["conv", "conv4", "pool"] = "conv",
        hidden_dim: int = 0,
        groups: int = 32,
        kernel: int = 3,
    ):
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} must be odd and at least 1")
        self.channels, self.patch = channels, patch
        self.downsampling = patch * 2 ** (len(multipliers) - 1)
        widths, halving = [width * m for m in multipliers], 4 if downsample == "conv4" else 3
        around: Any = {"kernel_size": kernel, "padding": kernel // 2}
        layers: list[nn.Module] = [nn.Conv2d(channels * patch**2, width, **around, bias=residual == "taming")]
        for i, (before, w) in enumerate(zip([width, *widths], widths)):
            layers.append(_level(before, w, blocks, i in attention, residual, groups, kernel=kernel))
            if i < len(widths) - 1:
                layers.append(nn.AvgPool2d(2) if downsample == "pool" else Downsample(w, halving))
        layers += _middle(widths[-1], middle_blocks, middle_attention, residual, groups, kernel=kernel)
        layers += [group_norm(widths[-1], groups), nn.SiLU()]
        if hidden_dim:
            layers.append(nn.Conv2d(widths[-1], hidden_dim, **around))
        layers.append(nn.Conv2d(hidden_dim or widths[-1], latent_dim, 1))
        self.layers = Stack(*layers)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Token grid (h, w) of an image (H, W).

        Raises:
            ValueError: a side is not a positive multiple of the downsampling factor.
        """
        return token_grid(size, self.downsampling)

    def forward(self, pixels: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        return self.layers(F.pixel_unshuffle(pixels, self.patch))


class ConvDecoder(nn.Module):
    """The encoder's mirror; its arguments are the encoder's. `output` is the last convolution.

    Args:
        norm: ``spatial`` reads scale and shift of every norm from the latents, place by place (MoVQ,
            arXiv:2209.09002); ``group`` is plain GroupNorm.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        width: int = 128,
        multipliers: list[int] = [1, 1, 2, 2, 4],  # noqa: B006
        blocks: int = 2,
        attention: list[int] = [],  # noqa: B006
        middle_blocks: int = 2,
        middle_attention: bool = False,
        patch: int = 1,
        residual: Residual = "taming",
        hidden_dim: int = 0,
        groups: int = 32,
        norm: Literal["group", "spatial"] = "group",
    ):
        super().__init__()
        self.patch = patch
        widths = [width * m for m in multipliers]
        spatial = latent_dim if norm == "spatial" else None
        layers: list[nn.Module] = [nn.Conv2d(latent_dim, hidden_dim, 1)] if hidden_dim else []
        layers.append(nn.Conv2d(hidden_dim or latent_dim, widths[-1], 3, padding=1))
        layers += _middle(widths[-1], middle_blocks, middle_attention, residual, groups, spatial)
        for i in reversed(range(len(widths))):
            before = widths[min(i + 1, len(widths) - 1)]
            layers.append(_level(before, widths[i], blocks, i in attention, residual, groups, spatial))
            if i > 0:
                layers.append(Upsample(widths[i]))
        layers += [make_norm(widths[0], groups, spatial), nn.SiLU()]
        self.layers = Stack(*layers)
        self.output = nn.Conv2d(widths[0], channels * patch**2, 3, padding=1)

    def forward(self, latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        return F.pixel_shuffle(self.output(self.layers(latents, latents)), self.patch)


def _level(
    in_channels: int,
    out_channels: int,
    blocks: int,
    attention: bool,
    residual: Residual,
    groups: int,
    spatial: int | None = None,
    kernel: int = 3,
) -> Stack:
    """`blocks` residual blocks, each followed by attention where asked."""
    layers: list[nn.Module] = []
    for i in range(blocks):
        before = in_channels if i == 0 else out_channels
        layers.append(ResidualBlock(before, out_channels, residual, groups, spatial, kernel))
        if attention:
            layers.append(AttentionBlock(out_channels, groups, spatial))
    return Stack(*layers)


def _middle(
    width: int,
    blocks: int,
    attention: bool,
    residual: Residual,
    groups: int,
    spatial: int | None = None,
    kernel: int = 3,
) -> list[nn.Module]:
    layers: list[nn.Module] = [ResidualBlock(width, width, residual, groups, spatial, kernel) for _ in range(blocks)]
    return layers[:1] + [AttentionBlock(width, groups, spatial)] + layers[1:] if attention else layers


class PatchEncoder(nn.Module):
    """Patches as they are: ``patch x patch`` pixels are one token of ``channels * patch**2`` numbers.

    With `frames` above 1 tokens are cubes of so many frames of a video (VideoMAE, arXiv:2203.12602), and there are as
    many times more numbers.

    Raises:
        ValueError: the quantizer's dim is another.
    """

    def __init__(self, latent_dim: int, channels: int = 3, patch: int = 4, frames: int = 1):
        super().__init__()
        numbers = channels * frames * patch**2
        if latent_dim != numbers:
            many = f"{frames} frames of " if frames > 1 else ""
            raise ValueError(
                f"a patch of {many}{patch}x{patch} pixels and {channels} channels has {numbers} numbers, the "
                f"quantizer's dim is {latent_dim}; set it to {numbers}"
            )
        self.channels, self.patch, self.downsampling, self.frames = channels, patch, patch, frames
        self.takes_videos = frames > 1

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Token grid (h, w) of an image (H, W); of cubes (t, h, w) of a video (T, H, W).

        Raises:
            ValueError: a side is not a positive multiple of the patch, or the frames are none of `frames`.
        """
        *times, height, width = size
        if self.takes_videos and (not times or times[0] % self.frames):
            raise ValueError(f"tokens of {self.frames} frames take videos of a multiple of them, got size {size}")
        return (*(t // self.frames for t in times), *token_grid((height, width), self.patch))

    def size(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of :meth:`grid`, of a video."""
        t, h, w = grid
        return t * self.frames, h * self.patch, w * self.patch

    def forward(self, pixels: Float[Tensor, "b c *t H W"]) -> Float[Tensor, "b d *t2 h w"]:
        if not self.takes_videos:
            return F.pixel_unshuffle(pixels, self.patch)
        sides = {"r": self.frames, "p": self.patch, "q": self.patch}
        return rearrange(pixels, "b c (t r) (h p) (w q) -> b (c r p q) t h w", **sides)


class PatchDecoder(nn.Module):
    """The inverse of :class:`PatchEncoder`; nothing is learned."""

    def __init__(self, latent_dim: int, channels: int = 3, patch: int = 4, frames: int = 1):
        super().__init__()
        self.patch, self.frames, self.takes_videos = patch, frames, frames > 1

    def forward(self, latents: Float[Tensor, "b d *t h w"]) -> Float[Tensor, "b c *t2 H W"]:
        if not self.takes_videos:
            return F.pixel_shuffle(latents, self.patch)
        sides = {"r": self.frames, "p": self.patch, "q": self.patch}
        return rearrange(latents, "b (c r p q) t h w -> b c (t r) (h p) (w q)", **sides)


ENCODERS = {"conv": ConvEncoder, "causal": CausalEncoder, "vit": ViTEncoder, "patch": PatchEncoder}
DECODERS = {"conv": ConvDecoder, "causal": CausalDecoder, "vit": ViTDecoder, "patch": PatchDecoder}
