"""Networks that are used and never trained, such as torchvision's ImageNet classifiers, from a file or a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for pixels in [0, 1]


class Frozen(nn.Module):
    """A module without gradients that stays in evaluation mode, once its constructor has called `freeze`."""

    def freeze(self) -> None:
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


def read_weights(published: Any, path: str | None, what: str) -> dict[str, Tensor]:
    """The state dict of a torchvision network, read from `path` or, if that is None, downloaded.

    Args:
        published: an entry of one of torchvision's weights enumerations.
        what: the part that needs the weights, for the error message.

    Raises:
        ValueError: the file is missing or has no weights, or the download fails; the message names both ways.
    """
    try:
        if path is None:
            return published.get_state_dict(progress=True, check_hash=True)
        file = Path(path).expanduser()
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(state, dict):
            return state
        raise ValueError(f"{path} contains a {type(state).__name__}")
    except Exception as error:  # unpickling fails in many ways
        raise ValueError(
            f"{what} needs torchvision's {published}: either let torchvision download them (internet), or give a local "
            f"copy of {published.url.rsplit('/', 1)[-1]} as weights=PATH; type: classifier needs no download ({error})"
        ) from error


def imagenet_network(name: str, weights: str | None, version: Literal["DEFAULT", "IMAGENET1K_V1"]) -> nn.Module:
    """A torchvision classifier in evaluation mode, for pixels prepared by :func:`imagenet_input`.

    Raises:
        ValueError: torchvision has no such network, or the weights cannot be read or do not fit it.
    """
    from torchvision import models

    from maskgen.registry import nearest

    known = models.list_models(models)
    if name not in known:
        raise ValueError(f"unknown model {name!r}: {nearest(name, known)}choose one of {', '.join(known)}")
    network = models.get_model(name, weights=None)
    state = read_weights(models.get_model_weights(name)[version], weights, name)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights={weights} do not fit {name}: {error}") from error
    return network.eval()


def rgb(pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
    """Repeat the channel of grey images three times; return other images unchanged."""
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def imagenet_input(pixels: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b 3 s s"]:
    """Pixels in [-1, 1], resized to `size` x `size` (bilinear, antialiased) and normalised by ImageNet's statistics."""
    if pixels.shape[2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    mean, std = (pixels.new_tensor(v)[:, None, None] for v in (MEAN, STD))
    return ((rgb(pixels) + 1) / 2 - mean) / std
