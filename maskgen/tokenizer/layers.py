"""Convolutional building blocks of VQGAN-family encoders and decoders (Esser et al. 2021, arXiv:2012.09841)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.transformer.attention import attend

Residual = Literal["taming", "maskgit"]


def token_grid(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """The grid (h, w) of tokens of ``factor x factor`` pixels in an image of `size` (H, W).

    Raises:
        ValueError: a side is not a positive multiple of `factor`.
    """
    if any(s <= 0 or s % factor for s in size):
        near = tuple(max(factor, round(s / factor) * factor) for s in size)
        raise ValueError(f"image size {tuple(size)} (h, w): each side must be a multiple of {factor}; resize to {near}")
    return size[0] // factor, size[1] // factor


class PlaceNorm(nn.LayerNorm):
    """LayerNorm over the channels of each place by itself: no place hears of what lies far from it."""

    def forward(self, x: Float[Tensor, "b c *grid"]) -> Float[Tensor, "b c *grid"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def group_norm(channels: int, groups: int = 32) -> nn.Module:
    """GroupNorm of `groups` groups where the channels allow it, else of the largest divisor below; PlaceNorm of 0."""
    if groups == 0:
        return PlaceNorm(channels, eps=1e-6)
    groups = next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift at each place are read from the latents (MoVQ, arXiv:2209.09002, eq. 4)."""

    def __init__(self, channels: int, latent_dim: int, groups: int = 32):
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.scale = nn.Conv2d(latent_dim, channels, 1)
        self.shift = nn.Conv2d(latent_dim, channels, 1)

    def forward(self, x: Float[Tensor, "b c H W"], latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        size = x.shape[2:]
        # a 1x1 convolution and nearest-neighbour enlargement commute; this order convolves the small map
        scale, shift = (F.interpolate(conv(latents), size, mode="nearest") for conv in (self.scale, self.shift))
        return torch.addcmul(shift, self.norm(x), scale)


def make_norm(channels: int, groups: int, spatial_dim: int | None) -> nn.Module:
    """GroupNorm, or where the dimension of latents is given SpatialNorm."""
    return group_norm(channels, groups) if spatial_dim is None else SpatialNorm(channels, spatial_dim, groups)


class Stack(nn.Sequential):
    """Layers in a row; `latents` go to those that take them."""

    def forward(self, x: Float[Tensor, "b c h w"], latents: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, latents) if isinstance(layer, CONDITIONED) else layer(x)
        return x


class ResidualBlock(nn.Module):
    """Norm - SiLU - conv, twice, beside a shortcut.

    Args:
        residual: ``taming`` has biases, and where the channels change a 1x1 convolution of the input as shortcut;
            ``maskgit`` has no biases, and there adds to the branch a 1x1 convolution *of the branch*, as MaskGIT's
            published VQGAN does.
        spatial_dim: channels of the latents for SpatialNorm; None for GroupNorm.
        kernel: odd side of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        residual: Residual = "taming",
        groups: int = 32,
        spatial_dim: int | None = None,
        kernel: int = 3,
    ):
        super().__init__()
        bias, self.of_branch = residual == "taming", residual == "maskgit" and in_channels != out_channels
        self.norm1 = make_norm(in_channels, groups, spatial_dim)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        self.norm2 = make_norm(out_channels, groups, spatial_dim)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(out_channels if self.of_branch else in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Float[Tensor, "b c h w"], latents: Tensor | None = None) -> Float[Tensor, "b d h w"]:
        h = self.conv1(F.silu(_normed(self.norm1, x, latents)))
        h = self.conv2(F.silu(_normed(self.norm2, h, latents)))
        return self.shortcut(h if self.of_branch else x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all places of the feature map."""

    def __init__(self, channels: int, groups: int = 32, spatial_dim: int | None = None):
        super().__init__()
        self.norm = make_norm(channels, groups, spatial_dim)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], latents: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        h = self.qkv(_normed(self.norm, x, latents))
        q, k, v = rearrange(h, "b (three c) h w -> three b (h w) 1 c", three=3)
        return x + self.out(rearrange(attend(q, k, v), "b (h w) 1 c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve height and width: convolution of stride 2, padded as "same" is.

    With a 3x3 kernel that is right and below, as in taming-transformers; with 4x4 all round.
    """

    def __init__(self, channels: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, stride=2)
        self.padding = ((kernel - 2) // 2, (kernel - 1) // 2) * 2

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


CONDITIONED = (Stack, ResidualBlock, AttentionBlock, SpatialNorm)


def _normed(norm: nn.Module, x: Tensor, latents: Tensor | None) -> Tensor:
    return norm(x, latents) if isinstance(norm, SpatialNorm) else norm(x)
