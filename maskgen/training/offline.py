"""The small classifier of :mod:`maskgen.evaluation.classifier` as a perceptual loss and a teacher, without a download.

``save_classifier(train_classifier(dataset)[0], folder)`` makes one in seconds (docs/tokenizers.md).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maskgen.evaluation.classifier import SmallClassifier, load_classifier
from maskgen.frozen import Frozen
from maskgen.mim.teachers import TEACHERS, Teacher
from maskgen.registry import Part
from maskgen.tokenizer.perceptual import PERCEPTUAL as NETWORKS


def _maps(network: SmallClassifier, pixels: Tensor) -> list[Tensor]:
    """Feature maps (b, d, h, w) after the stem and after each convolution of the body, the finest first."""
    maps = [network.stem(pixels)]
    for layer in network.body:
        maps.append(layer(maps[-1]))
    return [maps[i] for i in (0, 1, 3, 5)]  # leaves out the poolings


class ClassifierDistance(Frozen):
    """The distance of LPIPS (Zhang et al. 2018, eq. 1, all weights 1) on the four feature maps of a small classifier.

    Args:
        path: folder of the classifier.
    """

    def __init__(self, path: str):
        super().__init__()
        self.network = load_classifier(path)
        self.freeze()

    def forward(self, made: Float[Tensor, "b c h w"], pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        distance = pixels.new_zeros(())
        for a, b in zip(_maps(self.network, made), _maps(self.network, pixels)):
            distance = distance + (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).mean()
        return distance


class ClassifierTeacher(Teacher):
    """The last feature map of a small classifier, with 3 * `width` features (96 by default).

    Args:
        path: folder of the classifier.
    """

    def __init__(self, path: str):
        super().__init__()
        self.network = load_classifier(path)
        self.freeze()

    def features(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        return _maps(self.network, pixels)[-1]


PERCEPTUAL = Part({**NETWORKS.table, "classifier": ClassifierDistance})
TEACHER = Part({**TEACHERS.table, "classifier": ClassifierTeacher})
