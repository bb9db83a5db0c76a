"""Looking at images without a download: the small classifier of maskgen.evaluation as a perceptual loss and teacher.

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
    """Feature maps (b, d, h, w), the finest first: after the stem and after each convolution of the body."""
    maps = [network.stem(pixels)]
    for layer in network.body:
        maps.append(layer(maps[-1]))
    return [maps[i] for i in (0, 1, 3, 5)]  # without the poolings


class ClassifierDistance(Frozen):
    """LPIPS's formula (Zhang et al. 2018, eq. 1, all weights 1) on a small classifier's four feature maps.

    Args:
        path: the classifier's folder.
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
    """The last feature map of a small classifier: 3 * its width features, 96 by default.

    Args:
        path: the classifier's folder.
    """

    def __init__(self, path: str):
        super().__init__()
        self.network = load_classifier(path)
        self.freeze()

    def features(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        return _maps(self.network, pixels)[-1]


PERCEPTUAL = Part({**NETWORKS.table, "classifier": ClassifierDistance})
TEACHER = Part({**TEACHERS.table, "classifier": ClassifierTeacher})
