"""Perceptual losses: how far two images are apart for a network that is not trained.

All take reconstructions and images in [-1, 1], float32 (b, c, h, w), and give a scalar.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.frozen import Frozen, imagenet_input, imagenet_network, read_weights, rgb
from maskgen.registry import Part, build

Pixels = Float[Tensor, "b c h w"]
Scalar = Float[Tensor, ""]


class Lpips(Frozen):
    """LPIPS on VGG-16 (Zhang et al. 2018, arXiv:1801.03924); the linear layers come with torchmetrics.

    Args:
        weights: a local copy of torchvision's VGG-16 weights; None downloads them.

    Raises:
        ValueError: the weights are not to be had.
    """

    def __init__(self, weights: str | None = None):
        super().__init__()
        from torchmetrics.functional.image.lpips import _LPIPS
        from torchvision.models import VGG16_Weights

        state = read_weights(VGG16_Weights.IMAGENET1K_V1, weights, "lpips")
        self.lpips = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
        _fill(self.lpips.net, state)
        self.freeze()

    def each(self, made: Pixels, pixels: Pixels) -> Float[Tensor, "b"]:
        """The distance of each image."""
        return self.lpips(rgb(made), rgb(pixels)).flatten()

    def forward(self, made: Pixels, pixels: Pixels) -> Scalar:
        return self.each(made, pixels).mean()


def _fill(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Put VGG's convolutions into torchmetrics' network: its layers keep VGG's numbers, below five slices."""
    for key, value in net.state_dict().items():
        name = f"features.{key.split('.', 1)[1]}"
        if name not in state or state[name].shape != value.shape:
            raise ValueError(f"the weights given to lpips have no fitting {name}: they are not VGG-16's")
        value.copy_(state[name])


class Logits(Frozen):
    """Mean squared difference of an ImageNet classifier's logits.

    ConvNeXt-S in TiTok (arXiv:2406.07550) and TA-TiTok (arXiv:2501.07730), ResNet-50 in MaskBit (arXiv:2409.16211).

    Args:
        model: the classifier, with torchvision's weights IMAGENET1K_V1.
        weights: a local copy of them; None downloads them.
        size: images are resized to this side.

    Raises:
        ValueError: the weights are not to be had.
    """

    def __init__(
        self,
        model: Literal["convnext_small", "resnet50"] = "convnext_small",
        weights: str | None = None,
        size: int = 224,
    ):
        super().__init__()
        self.network = imagenet_network(model, weights, "IMAGENET1K_V1")
        self.size = size
        self.freeze()

    def forward(self, made: Pixels, pixels: Pixels) -> Scalar:
        with torch.no_grad():
            wanted = self.network(imagenet_input(pixels, self.size))
        return F.mse_loss(self.network(imagenet_input(made, self.size)), wanted)


class Both(nn.Module):
    """``first + weight * second``; TA-TiTok's is LPIPS + 0.1 of ConvNeXt-S's logits."""

    def __init__(
        self,
        first: Annotated[Any, PERCEPTUAL] = "lpips",
        second: Annotated[Any, PERCEPTUAL] = "logits",
        weight: float = 0.1,
    ):
        super().__init__()
        self.first, self.second, self.weight = build(PERCEPTUAL, first), build(PERCEPTUAL, second), weight

    def forward(self, made: Pixels, pixels: Pixels) -> Scalar:
        return self.first(made, pixels) + self.weight * self.second(made, pixels)


PERCEPTUAL = Part({"lpips": Lpips, "logits": Logits, "both": Both})
