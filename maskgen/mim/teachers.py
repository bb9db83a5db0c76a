"""Teachers: frozen networks whose features are targets or guide the sampler."""

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
    """Base class: maps pixels in [-1, 1] to one feature per token. A subclass defines :meth:`features`."""

    def features(self, pixels: Pixels) -> Float[Tensor, "b d p q"]:
        """The feature map at the teacher's own resolution."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, pixels: Pixels, grid: tuple[int, int]) -> Float[Tensor, "b d h w"]:
        """The features in float32, resized to `grid`."""
        return self.resized(self.features(pixels).float(), grid)

    def sources(self, pixels: Pixels, grid: tuple[int, int]) -> dict[str, Any]:
        """The inputs of targets and samplers by name.

        ``features`` is (b, d, h, w), or a list of these for several layers in their order. A teacher with a class token
        also gives ``class_features`` of the same layers, (b, d, 1, 1), and ``attention`` of the class token to each
        token, (b, h * w), averaged over heads.
        """
        return {"features": self(pixels, grid)}

    @staticmethod
    def resized(found: Float[Tensor, "b d p q"], grid: tuple[int, int]) -> Float[Tensor, "b d h w"]:
        """Resizes bilinearly, with antialiasing."""
        return found if found.shape[2:] == grid else F.interpolate(found, grid, mode="bilinear", antialias=True)


class TorchvisionTeacher(Teacher):
    """An ImageNet classifier of torchvision: the patch tokens of a ViT, or the last feature map of another network.

    Args:
        model: a name in torchvision, e.g. ``vit_b_16`` (768 features), ``resnet50`` (2048), ``convnext_small`` (768).
        weights: a local copy of torchvision's default weights; None downloads them.
        size: images are resized to this side.
        layers: number of last blocks of a ViT whose features are given (5 in MaskAlign).

    Raises:
        ValueError: the model is unknown or has no feature map, or its weights cannot be loaded.
    """

    def __init__(self, model: str = "vit_b_16", weights: str | None = None, size: int = 224, layers: int = 1):
        super().__init__()
        self.network, self.size, self.count = imagenet_network(model, weights, "DEFAULT"), size, layers
        if not any(hasattr(self.network, name) for name in ("conv_proj", "layer4", "features")):
            raise ValueError(
                f"teacher model {model!r} has no known feature map; choose a ViT, ResNet, ConvNeXt, Swin, "
                "EfficientNet, "
                "MobileNet, DenseNet or VGG"
            )
        if layers > 1 and not hasattr(self.network, "conv_proj"):
            raise ValueError(
                f"teacher.layers is {layers}, but {model} has one feature map; choose a ViT, or set layers: 1"
            )
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
        """The output of every block, class token first, and the attention of that token to the patches in the last."""
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
    """Any network as a TorchScript file that maps pixels, float (b, c, H, W) in [-1, 1], to features (b, d, h, w).

    The file must contain the network's normalisation and resizing. TorchScript files are programs: only load files that
    you trust.

    Args:
        path: a file written by `torch.jit.save`.

    Raises:
        ValueError: the file does not exist or is not TorchScript.
    """

    def __init__(self, path: str):
        super().__init__()
        try:
            self.network: nn.Module = torch.jit.load(str(Path(path).expanduser()), map_location="cpu")
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"teacher path={path} is not a TorchScript file; write one with torch.jit.save: {error}"
            ) from None
        self.freeze()

    def features(self, pixels: Pixels) -> Float[Tensor, "b d p q"]:
        found = self.network(pixels)
        if not isinstance(found, Tensor) or found.ndim != 4:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"the TorchScript teacher returned {shape}; it must return features (b, d, h, w)")
        return found


TEACHERS = Part({"torchvision": TorchvisionTeacher, "torchscript": TorchscriptTeacher})
