"""Vision-transformer encoders and decoders: ViT-VQGAN, the 1-D tokens of TiTok and TA-TiTok, VQ-KD.

The children have the names of timm's and BEiT v2's checkpoints: ``patch_embed``, ``blocks.I.norm1``,
``blocks.I.attn.qkv``, ``blocks.I.mlp.fc1``, ``norm``.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class TransformerSpec:
    """The transformer of a ViT coder.

    Args:
        width: dimension of a token.
        depth: number of blocks.
        heads: number of attention heads; it divides `width`.
        mlp_ratio: hidden width of the MLP over `width`.
        positions: ``learned`` position embeddings, or fixed ``sincos`` ones.
        num_registers: learned tokens before all others, whose outputs are not used. VQ-KD and TiTok have one, which
            they call the class token.
        pre_norm: a LayerNorm of the tokens before the first block, as in CLIP and TiTok.
        norm_eps: epsilon of the LayerNorms.
    """

    width: int = 512
    depth: int = 8
    heads: int = 8
    mlp_ratio: float = 4.0
    positions: Literal["learned", "sincos"] = "sincos"
    num_registers: int = 0
    pre_norm: bool = False
    norm_eps: float = 1e-6


class Transformer(nn.Module):
    """What the ViT encoder and decoder share: positions, registers and blocks.

    Args:
        base: grid of the tokens in training; learned positions are interpolated (bicubic) to other grids.
        spec: the sizes.

    Raises:
        ValueError: the width is not a multiple of the number of heads.
    """

    def __init__(self, base: tuple[int, int], spec: TransformerSpec):
        super().__init__()
        if spec.width % spec.heads:
            raise ValueError(f"width {spec.width} is not a multiple of heads {spec.heads}")
        self.base, self.width = base, spec.width
        scale = spec.width**-0.5
        self.position_embedding, self.register_tokens = None, None
        if spec.positions == "learned":
            self.position_embedding = nn.Parameter(scale * torch.randn(base[0] * base[1], spec.width))
        if spec.num_registers:
            self.register_tokens = nn.Parameter(scale * torch.randn(spec.num_registers, spec.width))
        self.norm_pre = nn.LayerNorm(spec.width, eps=spec.norm_eps) if spec.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                spec.width,
                BlockSpec(heads=spec.heads, mlp_ratio=spec.mlp_ratio, mlp="gelu", qk_norm="none"),
                eps=spec.norm_eps,
            )
            for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.width, eps=spec.norm_eps)

    def positions(self, grid: tuple[int, int], like: Tensor) -> Float[Tensor, "n w"]:
        """The position embeddings of the tokens of `grid`, with the device and the dtype of `like`."""
        if self.position_embedding is None:
            return sine_cosine(grid, self.width, like.device).to(like.dtype)
        table: Tensor = self.position_embedding
        if grid != self.base:
            table = rearrange(table, "(h w) d -> 1 d h w", h=self.base[0]).float()
            table = F.interpolate(table, grid, mode="bicubic", align_corners=False)
            table = rearrange(table, "1 d h w -> (h w) d")
        return table.to(like.dtype)

    def transform(self, *tokens: Float[Tensor, "b _ w"]) -> Float[Tensor, "b n w"]:
        """The tokens, joined, after all blocks and the last norm; the registers are left out."""
        parts, skipped = list(tokens), 0
        if self.register_tokens is not None:
            skipped = len(self.register_tokens)
            parts.insert(0, self.register_tokens.to(parts[0].dtype).expand(len(parts[0]), -1, -1))
        x = self.norm_pre(torch.cat(parts, 1))
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, skipped:])


class Head(nn.Module):
    """The output layer: ``linear``, or ``tanh`` for a hidden linear layer with tanh before it."""

    def __init__(self, width: int, out: int, kind: Literal["linear", "tanh"]):
        super().__init__()
        self.hidden = nn.Linear(width, width) if kind == "tanh" else None
        self.out = nn.Linear(width, out)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n d"]:
        return self.out(x if self.hidden is None else self.hidden(x).tanh())


def _pair(size: int | list[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class ViTEncoder(Transformer):
    """A transformer from patches to latents: one per patch, or a number of learned tokens without a position.

    Args:
        latent_dim: channels of the latents (given by the quantizer).
        channels: channels of the image.
        size: side, or (h, w), of the training images; learned positions are interpolated for other sizes.
        patch: side of a patch in pixels.
        tokens: 0 reads the latents at the patches (ViT-VQGAN, arXiv:2110.04627; VQ-KD, arXiv:2208.06366). With n they
            are read at n learned latent tokens (TiTok, arXiv:2406.07550), and only images of `size` can be encoded.
        transformer: the sizes of the transformer.
        head: ``linear``, or ``tanh`` (linear, tanh, linear: ViT-VQGAN and VQ-KD).
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        size: int | list[int] = 256,
        patch: int = 8,
        tokens: int = 0,
        transformer: TransformerSpec = TransformerSpec(),
        head: Literal["linear", "tanh"] = "linear",
    ):
        super().__init__(token_grid(_pair(size), patch), transformer)
        width = transformer.width
        self.channels, self.patch, self.tokens, self.size = channels, patch, tokens, _pair(size)
        self.downsampling = patch
        self.patch_embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.latent_tokens = nn.Parameter(width**-0.5 * torch.randn(tokens, width)) if tokens else None
        self.head = Head(width, latent_dim, head)

    def grid(self, size: tuple[int, int]) -> tuple[int, ...]:
        """The token grid (h, w), or (n,), of an image (H, W).

        Raises:
            ValueError: this encoder cannot take the size.
        """
        if self.tokens and tuple(size) != self.size:
            raise ValueError(f"image size {tuple(size)} (h, w): 1-D tokens are made for {self.size} alone; resize")
        grid = token_grid(size, self.patch)
        return (self.tokens,) if self.tokens else grid

    def forward(self, pixels: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d *grid"]:
        x = self.patch_embed(pixels)
        grid = (x.shape[2], x.shape[3])
        x = rearrange(x, "b w h1 w1 -> b (h1 w1) w")
        x = x + self.positions(grid, x)
        if self.latent_tokens is None:
            return self.head(self.transform(x)).transpose(1, 2).unflatten(2, grid)
        latents = self.latent_tokens.to(x.dtype).expand(len(x), -1, -1)
        return self.head(self.transform(x, latents)[:, x.shape[1] :]).transpose(1, 2)


class ViTDecoder(Transformer):
    """A transformer from latents to patches of pixels; the arguments of :class:`ViTEncoder` mean the same.

    Args:
        channels: channels of a pixel. With patch 1 and the dimension of a teacher's features, the pixels are features
            (VQ-KD).
        refine: a 3x3 convolution over the pixels comes last, as in TiTok.
        text_dim: dimension of the text features that the decoder also reads (TA-TiTok, arXiv:2501.07730); 0 reads none.
        text_length: the largest number of text features.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        size: int | list[int] = 256,
        patch: int = 8,
        tokens: int = 0,
        transformer: TransformerSpec = TransformerSpec(),
        head: Literal["linear", "tanh"] = "linear",
        refine: bool = False,
        text_dim: int = 0,
        text_length: int = 77,
    ):
        super().__init__(token_grid(_pair(size), patch), transformer)
        width = transformer.width
        scale = width**-0.5
        self.channels, self.patch, self.tokens = channels, patch, tokens
        self.decoder_embed = nn.Linear(latent_dim, width)
        self.mask_token = nn.Parameter(scale * torch.randn(width)) if tokens else None
        self.latent_embedding = nn.Parameter(scale * torch.randn(tokens, width)) if tokens else None
        self.text = nn.Linear(text_dim, width) if text_dim else None
        self.text_embedding = nn.Parameter(scale * torch.randn(text_length, width)) if text_dim else None
        self.head = Head(width, patch**2 * channels, head)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1) if refine else None

    @property
    def last_layer(self) -> nn.Module:
        """The layer that gives the pixels."""
        return self.head.out if self.conv_out is None else self.conv_out

    def forward(
        self, latents: Float[Tensor, "b d *grid"], text: Float[Tensor, "b t e"] | None = None
    ) -> Float[Tensor, "b c H W"]:
        """Decode latents to pixels, with the features `text` of a text encoder if the decoder has `text_dim`.

        Raises:
            ValueError: `text` is missing, too long, of another dimension, or given to a decoder that reads none.
        """
        x = self.decoder_embed(latents.flatten(2).transpose(1, 2))
        others = self._text(text, x)
        if self.mask_token is None or self.latent_embedding is None:
            grid = (latents.shape[2], latents.shape[3])
        else:
            grid = self.base
            others = [x + self.latent_embedding.to(x.dtype), *others]
            x = self.mask_token.to(x.dtype).expand(len(x), grid[0] * grid[1], -1)
        x = self.transform(x + self.positions(grid, x), *others)[:, : grid[0] * grid[1]]
        shape = {"h": grid[0], "p1": self.patch, "p2": self.patch}
        pixels = rearrange(self.head(x), "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", **shape)
        return pixels if self.conv_out is None else self.conv_out(pixels)

    def _text(self, text: Tensor | None, x: Tensor) -> list[Tensor]:
        """The tokens of the text features; none where the decoder reads no text."""
        if self.text is None or self.text_embedding is None:
            if text is not None:
                raise ValueError("this decoder takes no text; give decoder.text_dim, or leave the text out")
            return []
        most, dim = len(self.text_embedding), self.text.in_features
        if text is None or text.shape[1] > most or text.shape[2] != dim:
            given = "none" if text is None else f"shape {tuple(text.shape)}"
            raise ValueError(f"this decoder needs text features (b, at most {most}, {dim}), got {given}")
        return [self.text(text.to(x.dtype)) + self.text_embedding[: text.shape[1]].to(x.dtype)]
