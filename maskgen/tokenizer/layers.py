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


class PositionNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position, so that no position depends on another through its statistics."""

    def forward(self, x: Float[Tensor, "b c *grid"]) -> Float[Tensor, "b c *grid"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def group_norm(channels: int, norm_groups: int = 32) -> nn.Module:
    """GroupNorm with `norm_groups` groups, or with the largest number below that divides `channels`.

    `norm_groups` 0 gives :class:`PositionNorm`.
    """
    if norm_groups == 0:
        return PositionNorm(channels, eps=1e-6)
    groups = next(g for g in range(min(norm_groups, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift at each position are predicted from the latents (MoVQ, arXiv:2209.09002, eq. 4).

    The children have the names of MoVQ's checkpoints.
    """

    def __init__(self, channels: int, latent_dim: int, norm_groups: int = 32):
        super().__init__()
        self.norm_layer = group_norm(channels, norm_groups)
        self.conv_y = nn.Conv2d(latent_dim, channels, 1)
        self.conv_b = nn.Conv2d(latent_dim, channels, 1)

    def forward(self, x: Float[Tensor, "b c H W"], latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        size = x.shape[2:]
        # A 1x1 convolution and nearest-neighbour upsampling commute; this order convolves the small map.
        scale, shift = (F.interpolate(conv(latents), size, mode="nearest") for conv in (self.conv_y, self.conv_b))
        return torch.addcmul(shift, self.norm_layer(x), scale)


def make_norm(channels: int, norm_groups: int, spatial_dim: int | None) -> nn.Module:
    """SpatialNorm where `spatial_dim` gives the dimension of the latents, else :func:`group_norm`."""
    if spatial_dim is None:
        return group_norm(channels, norm_groups)
    return SpatialNorm(channels, spatial_dim, norm_groups)


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, with a skip connection.

    Args:
        residual: ``taming`` has biases, and where the number of channels changes its shortcut is a 1x1 convolution of
            the input; ``maskgit`` has no biases, and there its shortcut is a 1x1 convolution *of the branch*, as in
            MaskGIT's published VQGAN.
        spatial_dim: channels of the latents that SpatialNorm reads; None gives GroupNorm.
        kernel: odd side of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        residual: Residual = "taming",
        norm_groups: int = 32,
        spatial_dim: int | None = None,
        kernel: int = 3,
    ):
        super().__init__()
        bias, self.of_branch = residual == "taming", residual == "maskgit" and in_channels != out_channels
        self.norm1 = make_norm(in_channels, norm_groups, spatial_dim)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        self.norm2 = make_norm(out_channels, norm_groups, spatial_dim)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels if self.of_branch else in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Float[Tensor, "b c h w"], latents: Tensor | None = None) -> Float[Tensor, "b d h w"]:
        h = self.conv1(F.silu(normed(self.norm1, x, latents)))
        h = self.conv2(F.silu(normed(self.norm2, h, latents)))
        return self.nin_shortcut(h if self.of_branch else x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of the feature map."""

    def __init__(self, channels: int, norm_groups: int = 32, spatial_dim: int | None = None):
        super().__init__()
        self.norm = make_norm(channels, norm_groups, spatial_dim)
        self.q, self.k, self.v = _split(nn.Conv2d(channels, 3 * channels, 1), 3)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], latents: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        weight, bias = (torch.cat([getattr(m, part) for m in (self.q, self.k, self.v)]) for part in ("weight", "bias"))
        h = F.conv2d(normed(self.norm, x, latents), weight, bias)  # one product for all three
        q, k, v = rearrange(h, "b (three c) h w -> three b (h w) 1 c", three=3)
        return x + self.proj_out(rearrange(attend(q, k, v), "b (h w) 1 c -> b c h w", h=x.shape[2]))


def _split(joined: nn.Conv2d, count: int) -> list[nn.Conv2d]:
    """A 1x1 convolution as `count` convolutions to equal shares of its channels: one random draw initialises all."""
    parts = []
    for weight, bias in zip(joined.weight.detach().chunk(count), joined.bias.detach().chunk(count)):  # type: ignore[union-attr]
        part = nn.Conv2d(joined.in_channels, len(weight), 1, device="meta")  # draws no random numbers
        part.weight, part.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        parts.append(part)
    return parts


class Middle(nn.Module):
    """``block_1``, ``attn_1`` if `attention` is set, ``block_2``, ...: the layers at the coarsest level."""

    def __init__(self, blocks: list[nn.Module], attention: nn.Module | None):
        super().__init__()
        for i, block in enumerate(blocks, start=1):
            self.add_module(f"block_{i}", block)
            if i == 1 and attention is not None:
                self.attn_1 = attention
        if not blocks and attention is not None:
            self.attn_1 = attention

    def forward(self, x: Tensor, *latents: Tensor | None) -> Tensor:
        for layer in self.children():
            x = layer(x, *latents)
        return x


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where there is any.

    The owner adds ``downsample`` or ``upsample``, if any, as a child, after the blocks.
    """

    def __init__(self, blocks: list[nn.Module], attentions: list[nn.Module]):
        super().__init__()
        self.block, self.attn = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor, *latents: Tensor | None) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x, *latents)
            if self.attn:
                x = self.attn[i](x, *latents)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class Downsample(nn.Module):
    """Halve height and width by a convolution of stride 2 with "same" padding.

    A 3x3 kernel is padded at the right and below, as in taming-transformers; a 4x4 kernel at all sides.
    """

    def __init__(self, channels: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, stride=2)
        self.padding = ((kernel - 2) // 2, (kernel - 1) // 2) * 2

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Double height and width by nearest-neighbour interpolation, followed by a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def normed(norm: nn.Module, x: Tensor, latents: Tensor | None) -> Tensor:
    """`norm` of `x`; SpatialNorm also reads the latents."""
    return norm(x, latents) if isinstance(norm, SpatialNorm) else norm(x)
