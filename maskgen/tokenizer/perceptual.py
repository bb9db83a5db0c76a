"""Perceptual losses: distances between images in the features of a frozen network.

All take reconstructions and images, float32 (b, c, h, w) in [-1, 1], and return a scalar.
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
    """LPIPS on VGG-16 (Zhang et al. 2018, arXiv:1801.03924); torchmetrics provides its linear layers.

    Args:
        weights: a local copy of torchvision's VGG-16 weights; None downloads them.

    Raises:
        ValueError: the weights cannot be loaded.
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
        """The distance for each image of the batch."""
        return self.lpips(rgb(made), rgb(pixels)).flatten()

    def forward(self, made: Pixels, pixels: Pixels) -> Scalar:
        return self.each(made, pixels).mean()


def _fill(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy VGG's convolutions into torchmetrics' network, whose five slices keep the layer numbers of VGG."""
    for key, value in net.state_dict().items():
        name = f"features.{key.split('.', 1)[1]}"
        if name not in state or state[name].shape != value.shape:
            raise ValueError(f"the weights given to lpips are not VGG-16's: {name} is missing or has another shape")
        value.copy_(state[name])


class Logits(Frozen):
    """Mean squared difference of an ImageNet classifier's logits.

    ConvNeXt-S in TiTok (arXiv:2406.07550) and TA-TiTok (arXiv:2501.07730), ResNet-50 in MaskBit (arXiv:2409.16211).

    Args:
        model: the classifier; its weights are torchvision's IMAGENET1K_V1.
        weights: a local copy of these weights; None downloads them.
        size: images are resized to this side.

    Raises:
        ValueError: the weights cannot be loaded.
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
    """``first + weight * second``; TA-TiTok uses LPIPS + 0.1 * the distance of ConvNeXt-S's logits."""

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
