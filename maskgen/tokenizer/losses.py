"""Losses that train a tokenizer: reconstruction, perceptual, adversarial."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PERCEPTUAL_HELP = (
    "the perceptual loss needs torchvision's VGG-16 weights: either let torchvision download them (internet), "
    "or give a local copy of vgg16-397923af.pth as perceptual_weights=PATH, or set perceptual=0"
)


class PerceptualLoss(nn.Module):
    """LPIPS on VGG-16 (Zhang et al. 2018, arXiv:1801.03924); the linear layers come with torchmetrics.

    Args:
        weights: a local copy of torchvision's VGG-16 weights; None downloads them.

    Raises:
        RuntimeError: the weights are neither given nor to be had.
    """

    def __init__(self, weights: str | None = None):
        super().__init__()
        from torchmetrics.functional.image.lpips import _LPIPS
        from torchvision.models import VGG16_Weights

        try:
            state = (
                torch.load(Path(weights).expanduser(), map_location="cpu", weights_only=True)
                if weights
                else VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=True)
            )
        except OSError as error:
            raise RuntimeError(f"{PERCEPTUAL_HELP} ({error})") from error
        self.lpips = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
        _fill(self.lpips.net, state)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        return self.lpips(a, b).mean()


def _fill(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Put VGG's convolutions into torchmetrics' network: its layers keep VGG's numbers, below five slices."""
    for key, value in net.state_dict().items():
        name = f"features.{key.split('.', 1)[1]}"
        if name not in state or state[name].shape != value.shape:
            raise RuntimeError(f"{PERCEPTUAL_HELP} (the file has no fitting {name}: it is not VGG-16's)")
        value.copy_(state[name])


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv:1611.07004): a map of real-or-fake logits, one a receptive field.

    GroupNorm in place of BatchNorm: batch statistics of real and fake pictures may not mix.
    """

    def __init__(self, channels: int, width: int, layers: int):
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        stack: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            stack += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*stack, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 p q"]:
        return self.layers(pixels)


def discriminator_loss(real: Tensor, fake: Tensor, kind: Literal["hinge", "non_saturating"]) -> Float[Tensor, ""]:
    """Loss of the discriminator from its logits on real and on reconstructed pictures."""
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(fake: Tensor, kind: Literal["hinge", "non_saturating"]) -> Float[Tensor, ""]:
    """Adversarial loss of the autoencoder from the discriminator's logits on its reconstructions."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def adaptive_weight(
    reconstruction: Tensor, last_layer: Tensor, grad_loss: Tensor, grad_adversarial: Tensor, maximum: float = 1e4
) -> Float[Tensor, ""]:
    """|d loss / d last layer| / |d adversarial / d last layer| (Esser et al. 2021, eq. 7), clipped.

    Args:
        reconstruction: pixels with their graph; it is kept.
        last_layer: weight of the decoder's last layer.
        grad_loss, grad_adversarial: gradients of the two losses *at the reconstruction*, so that only the last
            layer is differentiated here, never the two losses a second time.
    """
    norms = [
        torch.autograd.grad(reconstruction, last_layer, g, retain_graph=True)[0].norm()
        for g in (grad_loss, grad_adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, maximum)
