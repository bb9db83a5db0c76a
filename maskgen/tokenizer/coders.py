"""Encoders (pixels -> latents) and decoders (latents -> pixels)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.tokenizer.layers import AttentionBlock, Downsample, ResidualBlock, Upsample, group_norm, level


class ConvEncoder(nn.Module):
    """The VQGAN encoder: residual levels, each but the last followed by a halving; a middle; a head.

    Args:
        channels: of the picture.
        width: channels of the first level.
        multipliers: one a level; level i has ``width * multipliers[i]`` channels.
        blocks: residual blocks a level.
        attention: levels (0 is the finest) with self-attention; taming-transformers has it at the coarsest,
            MaskGIT's VQGAN nowhere.
        middle_attention: self-attention between the two middle blocks.
        patch: pixels are first folded ``patch x patch`` into channels; 2 makes small pictures 4 times cheaper.
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
        middle_attention: bool = False,
        patch: int = 1,
    ):
        super().__init__()
        self.channels, self.patch = channels, patch
        self.downsampling = patch * 2 ** (len(multipliers) - 1)
        widths = [width * m for m in multipliers]
        layers: list[nn.Module] = [nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)]
        for i, w in enumerate(widths):
            layers.append(level(widths[max(i - 1, 0)], w, blocks, i in attention))
            if i < len(widths) - 1:
                layers.append(Downsample(w))
        layers += _middle(widths[-1], middle_attention)
        layers += [group_norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], latent_dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        return self.layers(F.pixel_unshuffle(pixels, self.patch))


class ConvDecoder(nn.Module):
    """The encoder's mirror; its arguments are the encoder's. `output` is the last convolution."""

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        width: int = 128,
        multipliers: list[int] = [1, 1, 2, 2, 4],  # noqa: B006
        blocks: int = 2,
        attention: list[int] = [],  # noqa: B006
        middle_attention: bool = False,
        patch: int = 1,
    ):
        super().__init__()
        self.patch = patch
        widths = [width * m for m in multipliers]
        layers: list[nn.Module] = [nn.Conv2d(latent_dim, widths[-1], 3, padding=1)]
        layers += _middle(widths[-1], middle_attention)
        for i in reversed(range(len(widths))):
            layers.append(level(widths[min(i + 1, len(widths) - 1)], widths[i], blocks, i in attention))
            if i > 0:
                layers.append(Upsample(widths[i]))
        layers += [group_norm(widths[0]), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Conv2d(widths[0], channels * patch**2, 3, padding=1)

    def forward(self, latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        return F.pixel_shuffle(self.output(self.layers(latents)), self.patch)


def _middle(width: int, attention: bool) -> list[nn.Module]:
    return [ResidualBlock(width, width), *([AttentionBlock(width)] if attention else []), ResidualBlock(width, width)]


ENCODERS = {"conv": ConvEncoder}
DECODERS = {"conv": ConvDecoder}
