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
from maskgen.registry import Part

Pixels = Float[Tensor, "b c H W"]


class Teacher(Frozen):
    """Pixels in [-1, 1] to a feature for each token; a subclass says which features."""

    def features(self, pixels: Pixels) -> Float[Tensor, "b d p q"]:
        """A feature map in the teacher's own resolution."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, pixels: Pixels, grid: tuple[int, int]) -> Float[Tensor, "b d h w"]:
        """Features in float32, resized to `grid`."""
        return self.resized(self.features(pixels).float(), grid)

    def sources(self, pixels: Pixels, grid: tuple[int, int]) -> dict[str, Any]:
        """What targets and samplers may look at: ``features`` (b, d, h, w), or a list of several layers' from the first
        on; where the teacher has a class token also ``class_features`` of the same layers, (b, d, 1, 1), and its
        ``attention`` to each token (b, h * w), mean over heads."""
        return {"features": self(pixels, grid)}

    @staticmethod
    def resized(found: Float[Tensor, "b d p q"], grid: tuple[int, int]) -> Float[Tensor, "b d h w"]:
        """Bilinearly, antialiased where it shrinks."""
        return found if found.shape[2:] == grid else F.interpolate(found, grid, mode="bilinear", antialias=True)


class TorchvisionTeacher(Teacher):
    """An ImageNet classifier of torchvision: a ViT's patch tokens, another network's last feature map.

    Args:
        model: torchvision's name, e.g. ``vit_b_16`` (768 features), ``resnet50`` (2048), ``convnext_small`` (768).
        weights: a local copy of torchvision's default weights; None downloads them.
        size: images are resized to this side.
        layers: of a ViT how many of the last blocks' features are given (5 for MaskAlign).

    Raises:
        ValueError: no such model, a model without such features, or weights that are not to be had.
    """

    def __init__(self, model: str = "vit_b_16", weights: str | None = None, size: int = 224, layers: int = 1):
        super().__init__()
        self.network, self.size, self.count = imagenet_network(model, weights, "DEFAULT"), size, layers
        if not any(hasattr(self.network, name) for name in ("conv_proj", "layer4", "features")):
            raise ValueError(
                f"teacher {model!r} has no feature map that we know; take a ViT, ResNet, ConvNeXt, Swin, EfficientNet, "
                "MobileNet, DenseNet or VGG"
            )
        if layers > 1 and not hasattr(self.network, "conv_proj"):
            raise ValueError(f"teacher.layers {layers}: {model} has one feature map; take a ViT, or layers: 1")
        self.freeze()

    def features(self, pixels: Pixels) -> Float[Tensor, "b d p q"]:
        net: Any = self.network
        if hasattr(net, "conv_proj"):
            return self._map(net.encoder.ln(self._vit(pixels)[0][-1]))
        x = imagenet_input(pixels, self.size)
        if hasattr(net, "layer4"):
            x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
            return net.layer4(net.layer3(net.layer2(net.layer1(x))))
        x = net.features(x)
        return net.permute(net.norm(x)) if hasattr(net, "permute") else x  # Swin's channels are last

    @torch.no_grad()
    def sources(self, pixels: Pixels, grid: tuple[int, int]) -> dict[str, Any]:
        net: Any = self.network
        if not hasattr(net, "conv_proj"):
            return super().sources(pixels, grid)
        made, attention = self._vit(pixels)
        last = [x.float() for x in (made[-self.count :] if self.count > 1 else [net.encoder.ln(made[-1])])]
        side = self.size // net.patch_size
        return {
            "features": [self.resized(self._map(x), grid) for x in last],
            "class_features": [x[:, 0, :, None, None] for x in last],
            "attention": self.resized(attention.float().unflatten(1, (1, side, side)), grid).flatten(1),
        }

    def _vit(self, pixels: Pixels) -> tuple[list[Float[Tensor, "b n d"]], Float[Tensor, "b p"]]:
        """Every block's output, class token first, and that token's attention to the patches in the last block."""
        net: Any = self.network
        tokens = net._process_input(imagenet_input(pixels, self.size))
        x = torch.cat([net.class_token.expand(len(pixels), -1, -1), tokens], dim=1) + net.encoder.pos_embedding
        made = [x]
        for block in net.encoder.layers:
            made.append(block(made[-1]))
        last = net.encoder.layers[-1]
        x = last.ln_1(made[-2])
        _, attention = last.self_attention(x[:, :1], x, x, need_weights=True)
        return made[1:], attention[:, 0, 1:]

    def _map(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d p q"]:
        return rearrange(tokens[:, 1:], "b (h w) d -> b d h w", h=self.size // int(self.network.patch_size))  # type: ignore[arg-type]


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
