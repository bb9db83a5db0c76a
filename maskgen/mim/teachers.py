"""Teachers: frozen networks whose features are to be predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.frozen import Frozen, imagenet_input, imagenet_network
from maskgen.parts import Part

Pixels = Float[Tensor, "b c H W"]


class Teacher(Frozen):
    """Pixels in [-1, 1] to a feature for each token; a subclass says which features."""

    def features(self, pixels: Pixels) -> Float[Tensor, "b d p q"]:
        """A feature map in the teacher's own resolution."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, pixels: Pixels, grid: tuple[int, int]) -> Float[Tensor, "b d h w"]:
        """Features in float32, resized bilinearly (antialiased where they shrink) to `grid`."""
        found = self.features(pixels).float()
        if found.shape[2:] == grid:
            return found
        return F.interpolate(found, grid, mode="bilinear", antialias=True)


class TorchvisionTeacher(Teacher):
    """An ImageNet classifier of torchvision: a ViT's patch tokens, another network's last feature map.

    Args:
        model: torchvision's name, e.g. ``vit_b_16`` (768 features), ``resnet50`` (2048), ``convnext_small`` (768).
        weights: a local copy of torchvision's default weights; None downloads them.
        size: pictures are resized to this side.

    Raises:
        ValueError: no such model, a model without such features, or weights that are not to be had.
    """

    def __init__(self, model: str = "vit_b_16", weights: str | None = None, size: int = 224):
        super().__init__()
        self.network, self.size = imagenet_network(model, weights, "DEFAULT"), size
        if not any(hasattr(self.network, name) for name in ("conv_proj", "layer4", "features")):
            raise ValueError(
                f"teacher {model!r} has no feature map that we know; take a ViT, ResNet, ConvNeXt, Swin, EfficientNet, "
                "MobileNet, DenseNet or VGG"
            )
        self.freeze()

    def features(self, pixels: Pixels) -> Float[Tensor, "b d p q"]:
        net: Any = self.network
        x = imagenet_input(pixels, self.size)
        if hasattr(net, "conv_proj"):
            tokens = net._process_input(x)
            tokens = net.encoder(torch.cat([net.class_token.expand(len(x), -1, -1), tokens], dim=1))[:, 1:]
            return rearrange(tokens, "b (h w) d -> b d h w", h=self.size // net.patch_size)
        if hasattr(net, "layer4"):
            x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
            return net.layer4(net.layer3(net.layer2(net.layer1(x))))
        x = net.features(x)
        return net.permute(net.norm(x)) if hasattr(net, "permute") else x  # Swin's channels are last


class TorchscriptTeacher(Teacher):
    """Any network, as a TorchScript file: pixels float (b, c, H, W) in [-1, 1] to features (b, d, h, w).

    Its own normalisation and resizing belong into the file. TorchScript is a program: load files that you trust.

    Args:
        path: what `torch.jit.save` wrote.

    Raises:
        ValueError: no such file, or none of TorchScript.
    """

    def __init__(self, path: str):
        super().__init__()
        try:
            self.network: nn.Module = torch.jit.load(str(Path(path).expanduser()), map_location="cpu")
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"teacher path={path} is no TorchScript file; write one by torch.jit.save: {error}"
            ) from None
        self.freeze()

    def features(self, pixels: Pixels) -> Float[Tensor, "b d p q"]:
        found = self.network(pixels)
        if not isinstance(found, Tensor) or found.ndim != 4:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"the TorchScript teacher gave {shape}; features (b, d, h, w) are needed")
        return found


TEACHERS = Part({"torchvision": TorchvisionTeacher, "torchscript": TorchscriptTeacher})
