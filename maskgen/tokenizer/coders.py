"""Encoders (pixels -> latents) and decoders (latents -> pixels): convolutions, and raw patches.

The children of the convolutional coders have the names of taming-transformers' checkpoints: ``conv_in``,
``down.I.block.J.conv1``, ``down.I.attn.J.q``, ``down.I.downsample.conv``, ``mid.block_1``, ``mid.attn_1``,
``norm_out``, ``conv_out``, with ``up`` in decoders. Level 0 has the finest resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.registry import Part
from maskgen.tokenizer.causal import CausalDecoder, CausalEncoder
from maskgen.tokenizer.layers import (
    AttentionBlock,
    Downsample,
    Level,
    Middle,
    Residual,
    ResidualBlock,
    Upsample,
    group_norm,
    make_norm,
    normed,
    token_grid,
)
from maskgen.tokenizer.vit import ViTDecoder, ViTEncoder


@dataclass(frozen=True)
class MiddleSpec:
    """The layers at the coarsest level, between the levels and the latents.

    Args:
        blocks: number of residual blocks.
        attention: whether self-attention follows the first of them.
    """

    blocks: int = 2
    attention: bool = False


class ConvEncoder(nn.Module):
    """The VQGAN encoder (Esser et al. 2021, arXiv:2012.09841).

    Each level has residual blocks, and each but the last ends with a halving of height and width. The middle and the
    output layers follow.

    Args:
        latent_dim: channels of the latents (given by the quantizer).
        channels: channels of the image.
        width: channels after the first convolution.
        multipliers: one per level; level i has ``width * multipliers[i]`` channels.
        blocks: number of residual blocks per level.
        attention: the levels (0 is the finest) with self-attention. taming-transformers has it at the coarsest level,
            MaskGIT's VQGAN at none.
        middle: the layers after the coarsest level.
        patch: the side of the patches of pixels that are first folded into channels; 2 makes small images 4 times
            cheaper.
        residual: ``taming`` or ``maskgit``, see :class:`~maskgen.tokenizer.layers.ResidualBlock`.
        downsample: ``conv`` (3x3, stride 2), ``conv4`` (4x4, MaskGIT's ``conv_downsample``) or ``pool`` (the mean of
            2x2, as in MaskGIT's published VQGAN).
        hidden_dim: taming's ``z_channels``: a 3x3 ``conv_out`` to this number of channels and a 1x1 ``quant_conv`` to
            the latents. With 0 a 1x1 ``conv_out`` gives the latents.
        norm_groups: groups of GroupNorm, whose statistics depend on the whole image. With 0 each position is
            normalised on its own, and a code depends only on the pixels around it.
        kernel: odd side of the convolutions, except the downsampling ones. With 1, one level and `norm_groups` 0 each
            patch is encoded on its own: the code of an unchanged patch stays the same.

    Raises:
        ValueError: `kernel` is not odd and positive.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        width: int = 128,
        multipliers: list[int] = [1, 1, 2, 2, 4],  # noqa: B006
        blocks: int = 2,
        attention: list[int] = [],  # noqa: B006
        middle: MiddleSpec = MiddleSpec(),
        patch: int = 1,
        residual: Residual = "taming",
        downsample: Literal["conv", "conv4", "pool"] = "conv",
        hidden_dim: int = 0,
        norm_groups: int = 32,
        kernel: int = 3,
    ):
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} must be odd and at least 1")
        self.channels, self.patch = channels, patch
        self.downsampling = patch * 2 ** (len(multipliers) - 1)
        widths, halving = [width * m for m in multipliers], 4 if downsample == "conv4" else 3
        around: Any = {"kernel_size": kernel, "padding": kernel // 2}
        block = {"residual": residual, "norm_groups": norm_groups, "kernel": kernel}
        self.conv_in = nn.Conv2d(channels * patch**2, width, **around, bias=residual == "taming")
        self.down = nn.ModuleList()
        for i, (before, w) in enumerate(zip([width, *widths], widths)):
            level = _level(before, w, blocks, i in attention, block)
            if i < len(widths) - 1:
                level.downsample = nn.AvgPool2d(2) if downsample == "pool" else Downsample(w, halving)
            self.down.append(level)
        self.mid = _middle(widths[-1], middle, block)
        self.norm_out = group_norm(widths[-1], norm_groups)
        out: Any = around if hidden_dim else {"kernel_size": 1}
        self.conv_out = nn.Conv2d(widths[-1], hidden_dim or latent_dim, **out)
        self.quant_conv = nn.Conv2d(hidden_dim, latent_dim, 1) if hidden_dim else nn.Identity()

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The token grid (h, w) of an image (H, W).

        Raises:
            ValueError: a side is not a positive multiple of the downsampling factor.
        """
        return token_grid(size, self.downsampling)

    def forward(self, pixels: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        h = self.conv_in(F.pixel_unshuffle(pixels, self.patch))
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(h))))


class ConvDecoder(nn.Module):
    """The VQGAN decoder, which mirrors :class:`ConvEncoder`; the arguments of the same name mean the same.

    Args:
        hidden_dim: taming's ``z_channels``: a 1x1 ``post_quant_conv`` from the latents to this number of channels
            comes first. 0 has none.
        norm: ``group`` is GroupNorm; ``spatial`` predicts scale and shift of every norm from the latents at each
            position (MoVQ, arXiv:2209.09002).
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        width: int = 128,
        multipliers: list[int] = [1, 1, 2, 2, 4],  # noqa: B006
        blocks: int = 2,
        attention: list[int] = [],  # noqa: B006
        middle: MiddleSpec = MiddleSpec(),
        patch: int = 1,
        residual: Residual = "taming",
        hidden_dim: int = 0,
        norm_groups: int = 32,
        norm: Literal["group", "spatial"] = "group",
    ):
        super().__init__()
        self.patch = patch
        widths = [width * m for m in multipliers]
        spatial_dim = latent_dim if norm == "spatial" else None
        block = {"residual": residual, "norm_groups": norm_groups, "spatial_dim": spatial_dim}
        self.post_quant_conv = nn.Conv2d(latent_dim, hidden_dim, 1) if hidden_dim else nn.Identity()
        self.conv_in = nn.Conv2d(hidden_dim or latent_dim, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1], middle, block)
        self.up = nn.ModuleDict()  # from the coarsest level to the finest, each under its number
        for i in reversed(range(len(widths))):
            level = _level(widths[min(i + 1, len(widths) - 1)], widths[i], blocks, i in attention, block)
            if i > 0:
                level.upsample = Upsample(widths[i])
            self.up[str(i)] = level
        self.norm_out = make_norm(widths[0], norm_groups, spatial_dim)
        self.conv_out = nn.Conv2d(widths[0], channels * patch**2, 3, padding=1)

    @property
    def last_layer(self) -> nn.Module:
        """The layer that gives the pixels."""
        return self.conv_out

    def forward(self, latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        h = self.conv_in(self.post_quant_conv(latents))
        h = self.mid(h, latents)
        for level in self.up.values():
            h = level(h, latents)
        h = self.conv_out(F.silu(normed(self.norm_out, h, latents)))
        return F.pixel_shuffle(h, self.patch)


def _level(in_channels: int, out_channels: int, count: int, attention: bool, block: dict[str, Any]) -> Level:
    """`count` residual blocks, each followed by attention if `attention` is set."""
    blocks: list[nn.Module] = []
    attentions: list[nn.Module] = []
    for i in range(count):
        blocks.append(ResidualBlock(in_channels if i == 0 else out_channels, out_channels, **block))
        if attention:
            attentions.append(AttentionBlock(out_channels, block["norm_groups"], block.get("spatial_dim")))
    return Level(blocks, attentions)


def _middle(width: int, spec: MiddleSpec, block: dict[str, Any]) -> Middle:
    blocks: list[nn.Module] = [ResidualBlock(width, width, **block) for _ in range(spec.blocks)]
    attention = AttentionBlock(width, block["norm_groups"], block.get("spatial_dim")) if spec.attention else None
    return Middle(blocks, attention)


class PatchEncoder(nn.Module):
    """Raw patches: a token is the ``channels * patch**2`` values of ``patch x patch`` pixels.

    Args:
        latent_dim: the dimension of a token (given by the quantizer).
        frames: with more than 1, a token is a cube of so many frames of a video (VideoMAE, arXiv:2203.12602) and has as
            many times more values.

    Raises:
        ValueError: the quantizer has another dimension.
    """

    def __init__(self, latent_dim: int, channels: int = 3, patch: int = 4, frames: int = 1):
        super().__init__()
        numbers = channels * frames * patch**2
        if latent_dim != numbers:
            cube = f"{frames} frames of " if frames > 1 else ""
            raise ValueError(
                f"a patch of {cube}{patch}x{patch} pixels and {channels} channels has {numbers} numbers, the "
                f"quantizer's dim is {latent_dim}; set it to {numbers}"
            )
        self.channels, self.patch, self.downsampling, self.frames = channels, patch, patch, frames
        self.takes_videos = frames > 1

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The token grid (h, w) of an image (H, W), or (t, h, w) of a video (T, H, W).

        Raises:
            ValueError: a side is not a positive multiple of `patch`, or the number of frames not one of `frames`.
        """
        *times, height, width = size
        if self.takes_videos and (not times or times[0] % self.frames):
            raise ValueError(
                f"tokens of {self.frames} frames need a video whose number of frames is a multiple of {self.frames}; "
                f"the size given is {size}"
            )
        return (*(t // self.frames for t in times), *token_grid((height, width), self.patch))

    def size(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The size (T, H, W) of the video with this token grid: the inverse of :meth:`grid`."""
        t, h, w = grid
        return t * self.frames, h * self.patch, w * self.patch

    def forward(self, pixels: Float[Tensor, "b c *t H W"]) -> Float[Tensor, "b d *t2 h w"]:
        if not self.takes_videos:
            return F.pixel_unshuffle(pixels, self.patch)
        sides = {"r": self.frames, "p": self.patch, "q": self.patch}
        return rearrange(pixels, "b c (t r) (h p) (w q) -> b (c r p q) t h w", **sides)


class PatchDecoder(nn.Module):
    """The inverse of :class:`PatchEncoder`, without weights."""

    def __init__(self, latent_dim: int, channels: int = 3, patch: int = 4, frames: int = 1):
        super().__init__()
        self.patch, self.frames, self.takes_videos = patch, frames, frames > 1

    def forward(self, latents: Float[Tensor, "b d *t h w"]) -> Float[Tensor, "b c *t2 H W"]:
        if not self.takes_videos:
            return F.pixel_shuffle(latents, self.patch)
        sides = {"r": self.frames, "p": self.patch, "q": self.patch}
        return rearrange(latents, "b (c r p q) t h w -> b c (t r) (h p) (w q)", **sides)


ENCODER = Part(
    {"conv": ConvEncoder, "causal": CausalEncoder, "vit": ViTEncoder, "patch": PatchEncoder},
    given=("latent_dim",),
    default="conv",
)
DECODER = Part(
    {"conv": ConvDecoder, "causal": CausalDecoder, "vit": ViTDecoder, "patch": PatchDecoder},
    given=("latent_dim",),
    default="conv",
)
