"""Vision-transformer encoders and decoders: ViT-VQGAN, TiTok's and TA-TiTok's 1-D tokens, VQ-KD."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.tokenizer.layers import token_grid
from maskgen.transformer.layers import Block
from maskgen.transformer.positions import sine_cosine
from maskgen.transformer.specs import BlockSpec


class Trunk(nn.Module):
    """Tokens on a grid, beside them any others, through pre-norm transformer blocks.

    Args:
        grid: of the tokens; learned positions are stretched (bicubic) to another one.
        positions: ``learned``, or ``sincos`` (fixed).
        registers: learned tokens beside the grid's; one is a class token.
        pre_norm: LayerNorm of the tokens before the first block, as CLIP and TiTok have.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        positions: Literal["learned", "sincos"],
        registers: int,
        pre_norm: bool,
        norm_eps: float,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.base, self.width = grid, width
        scale = width**-0.5
        learned = positions == "learned"
        self.position_embedding = nn.Parameter(scale * torch.randn(grid[0] * grid[1], width)) if learned else None
        self.register_tokens = nn.Parameter(scale * torch.randn(registers, width)) if registers else None
        self.pre_norm = nn.LayerNorm(width, eps=norm_eps) if pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, BlockSpec(heads=heads, mlp_ratio=mlp_ratio, mlp="gelu", qk_norm="none"), eps=norm_eps)
            for _ in range(depth)
        )
        self.post_norm = nn.LayerNorm(width, eps=norm_eps)

    def positions(self, grid: tuple[int, int], like: Tensor) -> Float[Tensor, "n w"]:
        """Position embeddings of the tokens of `grid`."""
        if self.position_embedding is None:
            return sine_cosine(grid, self.width, like.device).to(like.dtype)
        table: Tensor = self.position_embedding
        if grid != self.base:
            table = rearrange(table, "(h w) d -> 1 d h w", h=self.base[0]).float()
            table = F.interpolate(table, grid, mode="bicubic", align_corners=False)
            table = rearrange(table, "1 d h w -> (h w) d")
        return table.to(like.dtype)

    def forward(self, grid_tokens: Float[Tensor, "b n w"], others: Float[Tensor, "b m w"] | None = None) -> Tensor:
        """All tokens but the registers, normed: float (b, n + m, w)."""
        parts = [grid_tokens] if others is None else [grid_tokens, others]
        skipped = 0
        if self.register_tokens is not None:
            skipped = len(self.register_tokens)
            parts.insert(0, self.register_tokens.to(grid_tokens.dtype).expand(len(grid_tokens), -1, -1))
        x = self.pre_norm(torch.cat(parts, 1))
        for block in self.blocks:
            x = block(x, None, None)
        return self.post_norm(x[:, skipped:])


def _head(width: int, out: int, kind: Literal["linear", "tanh"]) -> nn.Sequential:
    hidden = [nn.Linear(width, width), nn.Tanh()] if kind == "tanh" else []
    return nn.Sequential(*hidden, nn.Linear(width, out))


def _pair(size: int | list[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class ViTEncoder(nn.Module):
    """Patches through a transformer to latents: at the patches' places, or in learned tokens without a place.

    Args:
        size: side, or (h, w), of the training images; learned positions are stretched to others.
        patch: side of a patch in pixels.
        tokens: 0 reads the latents at the patches (ViT-VQGAN, arXiv:2110.04627; VQ-KD, arXiv:2208.06366); n reads them
            from n learned latent tokens (TiTok, arXiv:2406.07550), and then only `size` can be encoded.
        positions, registers, pre_norm: see :class:`Trunk`; VQ-KD and TiTok have one register, the class token.
        head: ``linear``, or ``tanh`` (linear, tanh, linear: ViT-VQGAN and VQ-KD).
        latent_dim: channels of the latents.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        size: int | list[int] = 256,
        patch: int = 8,
        width: int = 512,
        depth: int = 8,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        tokens: int = 0,
        positions: Literal["learned", "sincos"] = "sincos",
        registers: int = 0,
        pre_norm: bool = False,
        head: Literal["linear", "tanh"] = "linear",
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.channels, self.patch, self.tokens, self.size = channels, patch, tokens, _pair(size)
        self.downsampling = patch
        self.trunk = Trunk(
            token_grid(self.size, patch), width, depth, heads, mlp_ratio, positions, registers, pre_norm, norm_eps
        )
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.latent_tokens = nn.Parameter(width**-0.5 * torch.randn(tokens, width)) if tokens else None
        self.head = _head(width, latent_dim, head)

    def grid(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Token grid (h, w), or (n,), of an image (H, W).

        Raises:
            ValueError: a size that this encoder cannot take.
        """
        if self.tokens and tuple(size) != self.size:
            raise ValueError(f"image size {tuple(size)} (h, w): 1-D tokens are made for {self.size} alone; resize")
        grid = token_grid(size, self.patch)
        return (self.tokens,) if self.tokens else grid

    def forward(self, pixels: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d *grid"]:
        x = self.embed(pixels)
        grid = (x.shape[2], x.shape[3])
        x = rearrange(x, "b w h1 w1 -> b (h1 w1) w")
        x = x + self.trunk.positions(grid, x)
        if self.latent_tokens is None:
            return self.head(self.trunk(x)).transpose(1, 2).unflatten(2, grid)
        latents = self.latent_tokens.to(x.dtype).expand(len(x), -1, -1)
        return self.head(self.trunk(x, latents)[:, x.shape[1] :]).transpose(1, 2)


class ViTDecoder(nn.Module):
    """Latents through a transformer to patches of pixels; the arguments are the encoder's. `output` is the last layer.

    Args:
        channels: of a pixel; with patch 1 and a teacher's dimension the pixels are its features (VQ-KD).
        refine: a last 3x3 convolution over the pixels, as TiTok has.
        text_dim: of text features that are given beside the latents (TA-TiTok, arXiv:2501.07730); 0 takes none.
        text_length: at most so many of them.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        size: int | list[int] = 256,
        patch: int = 8,
        width: int = 512,
        depth: int = 8,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        tokens: int = 0,
        positions: Literal["learned", "sincos"] = "sincos",
        registers: int = 0,
        pre_norm: bool = False,
        head: Literal["linear", "tanh"] = "linear",
        refine: bool = False,
        text_dim: int = 0,
        text_length: int = 77,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.channels, self.patch, self.tokens = channels, patch, tokens
        self.trunk = Trunk(
            token_grid(_pair(size), patch), width, depth, heads, mlp_ratio, positions, registers, pre_norm, norm_eps
        )
        scale = width**-0.5
        self.embed = nn.Linear(latent_dim, width)
        self.mask_token = nn.Parameter(scale * torch.randn(width)) if tokens else None
        self.latent_embedding = nn.Parameter(scale * torch.randn(tokens, width)) if tokens else None
        self.text = nn.Linear(text_dim, width) if text_dim else None
        self.text_embedding = nn.Parameter(scale * torch.randn(text_length, width)) if text_dim else None
        self.head = _head(width, patch**2 * channels, head)
        self.refine = nn.Conv2d(channels, channels, 3, padding=1) if refine else nn.Identity()

    @property
    def output(self) -> nn.Module:
        return self.head[-1] if isinstance(self.refine, nn.Identity) else self.refine

    def forward(
        self, latents: Float[Tensor, "b d *grid"], text: Float[Tensor, "b t e"] | None = None
    ) -> Float[Tensor, "b c H W"]:
        """Pixels; `text` are features, of a text encoder, that a decoder with `text_dim` needs.

        Raises:
            ValueError: text is missing, too long, of another dimension, or not wanted.
        """
        x = self.embed(latents.flatten(2).transpose(1, 2))
        others = self._text(text, x)
        if self.mask_token is None or self.latent_embedding is None:
            grid = (latents.shape[2], latents.shape[3])
        else:
            grid = self.trunk.base
            x = x + self.latent_embedding.to(x.dtype)
            others = x if others is None else torch.cat([x, others], 1)
            x = self.mask_token.to(x.dtype).expand(len(x), grid[0] * grid[1], -1)
        x = self.trunk(x + self.trunk.positions(grid, x), others)[:, : grid[0] * grid[1]]
        shape = {"h": grid[0], "p1": self.patch, "p2": self.patch}
        return self.refine(rearrange(self.head(x), "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", **shape))

    def _text(self, text: Tensor | None, x: Tensor) -> Tensor | None:
        if self.text is None or self.text_embedding is None:
            if text is not None:
                raise ValueError("this decoder takes no text; give decoder.text_dim, or leave the text out")
            return None
        most, dim = len(self.text_embedding), self.text.in_features
        if text is None or text.shape[1] > most or text.shape[2] != dim:
            given = "none" if text is None else f"shape {tuple(text.shape)}"
            raise ValueError(f"this decoder needs text features (b, at most {most}, {dim}), got {given}")
        return self.text(text.to(x.dtype)) + self.text_embedding[: text.shape[1]].to(x.dtype)
