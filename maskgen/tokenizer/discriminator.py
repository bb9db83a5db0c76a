"""The discriminator of the adversarial term."""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv:1611.07004): a map of real-or-fake logits, one per receptive field.

    GroupNorm replaces BatchNorm, because the statistics of real and fake images must not mix. The anchors of LeCAM are
    buffers, so checkpoints contain them.

    Args:
        channels: channels of the images.
        width: channels after the first layer, a multiple of 4.
        layers: number of halvings; with 1, 2 or 3 the receptive field of a logit has a side of 16, 34 or 70 pixels.

    Raises:
        ValueError: `width` or `layers` is not possible.
    """

    anchor_real: Tensor
    anchor_fake: Tensor

    def __init__(self, channels: int, width: int, layers: int):
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"the discriminator's width must be a multiple of 4 (GroupNorm), got {width}")
        if layers < 1:
            raise ValueError(f"the discriminator needs at least 1 layer, got {layers}")
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        stack: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            stack += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.depth = layers
        self.layers = nn.Sequential(*stack, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.register_buffer("anchor_real", torch.zeros(()))
        self.register_buffer("anchor_fake", torch.zeros(()))

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 p q"]:
        return self.layers(pixels)

    def check_size(self, size: tuple[int, int]) -> None:
        """Check that images of `size` (H, W) are large enough for at least one logit.

        Raises:
            ValueError: they are too small; the message gives the number of layers that they allow.
        """
        least = 3 * 2**self.depth  # `depth` halvings, then two layers that each remove one row and column
        if min(size) < least:
            fits = [n for n in range(1, self.depth) if min(size) >= 3 * 2**n]
            mend = f"give layers={fits[-1]}" if fits else "such small images have no discriminator here"
            raise ValueError(
                f"a discriminator of layers={self.depth} needs images of at least {least}x{least}, "
                f"got {size[0]}x{size[1]}; {mend}"
            )

    @torch.no_grad()
    def follow(self, real: Tensor, fake: Tensor, decay: float) -> None:
        """Move the anchors towards the mean logits of real and of reconstructed images, over all processes."""
        means = torch.stack([real.detach().float().mean(), fake.detach().float().mean()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        self.anchor_real.lerp_(means[0], 1 - decay)
        self.anchor_fake.lerp_(means[1], 1 - decay)
