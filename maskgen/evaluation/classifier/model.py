"""The small classifier itself, and how it is saved and loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

NAME = "small-classifier"
Pixels = Float[Tensor, "n c h w"]


class SmallClassifier(nn.Module):
    """Four convolutions and a linear layer on 3 * `width` pooled features; about 160,000 parameters by default.

    Args:
        channels: number of channels of the images.
        num_classes: number of classes, at least 1.
        width: number of output channels of the first convolution.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.config = {"channels": channels, "num_classes": num_classes, "width": width}
        self.stem = _block(channels, width, kernel_size=5, stride=2, padding=2)
        self.body = nn.Sequential(
            _block(width, 2 * width, kernel_size=3, padding=1),
            nn.MaxPool2d(2, ceil_mode=True),
            _block(2 * width, 3 * width, kernel_size=3, padding=1),
            nn.MaxPool2d(2, ceil_mode=True),
            _block(3 * width, 3 * width, kernel_size=3, padding=1),
        )
        self.head = nn.Linear(3 * width, num_classes)

    def features(self, pixels: Pixels) -> Float[Tensor, "n d"]:
        """The features before the linear layer, averaged over each image; `pixels` are in [-1, 1]."""
        return self.body(self.stem(pixels)).mean(dim=(2, 3))

    def forward(self, pixels: Pixels) -> Float[Tensor, "n k"]:
        return self.head(self.features(pixels))

    @property
    def sha256(self) -> str:
        """The SHA-256 of the weights, 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            digest.update(key.encode() + value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """The name used in reports: "small-classifier/" and the first 8 digits of the weights' SHA-256."""
        return f"{NAME}/{self.sha256[:8]}"


def _block(inputs: int, outputs: int, **convolution: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, bias=False, **convolution), nn.BatchNorm2d(outputs), nn.ReLU())


def save_classifier(model: SmallClassifier, folder: str | Path, **facts: Any) -> None:
    """Write `classifier.safetensors`, and `classifier.json` with the arguments, the name and `facts`.

    Args:
        facts: JSON values to keep with the classifier, usually what :func:`.train_classifier` returned.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "classifier.safetensors")
    text = json.dumps({"config": model.config, "name": model.name, **facts}, indent=2)
    (folder / "classifier.json").write_text(text + "\n", encoding="utf-8")


def load_classifier(folder: str | Path) -> SmallClassifier:
    """Load a classifier written by :func:`save_classifier`, in evaluation mode.

    Raises:
        FileNotFoundError: `folder` has no `classifier.json`.
    """
    folder = Path(folder)
    if not (folder / "classifier.json").is_file():
        raise FileNotFoundError(f"{folder} has no classifier.json; write one with save_classifier")
    model = SmallClassifier(**json.loads((folder / "classifier.json").read_text(encoding="utf-8"))["config"])
    model.load_state_dict(load_file(folder / "classifier.safetensors"))
    return model.eval()
