"""What the small classifier measures: class agreement, Fréchet distances, and the features for an evaluation."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from maskgen.evaluation.classifier.model import NAME, Pixels, SmallClassifier
from maskgen.evaluation.fid.inception import Extractor
from maskgen.evaluation.fid.statistics import fit, frechet_distance


def classifier_extractor(model: SmallClassifier, device: torch.device | str | None = None) -> Extractor:
    """Wrap the classifier so that an evaluation uses its features in place of Inception's, under its own name."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    seen = _Seen(model.eval().requires_grad_(False)).to(device)
    return Extractor(seen, NAME, model.sha256, device, ("features", "logits"))


class _Seen(nn.Module):
    """Turns uint8 images into features and logits."""

    def __init__(self, model: SmallClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k"]]:
        if self.model.config["channels"] == 1:
            if not torch.equal(images[:, 0], images[:, 1]) or not torch.equal(images[:, 0], images[:, 2]):
                raise ValueError(
                    "this classifier takes grey images and these are coloured; train one on images with 3 channels"
                )
            images = images[:, :1]
        features = self.model.features(images.float() / 127.5 - 1)
        return features, self.model.head(features)


@torch.no_grad()
def _by_batch(model: SmallClassifier, function: Any, pixels: Pixels, batch_size: int = 256) -> Float[Tensor, "n d"]:
    if model.training:
        raise ValueError("the classifier is in training mode; call .eval() first")
    device = next(model.parameters()).device
    return torch.cat([function(batch.to(device)).float().cpu() for batch in pixels.split(batch_size)])


def class_agreement(classifier: SmallClassifier, pixels: Pixels, labels: Int64[Tensor, "n"]) -> float:
    """The share of images that the classifier assigns to their label, in [0, 1].

    Compare it with the classifier's accuracy on held-out images.
    """
    return float((_by_batch(classifier, classifier, pixels).argmax(dim=1) == labels.cpu()).float().mean())


def classifier_frechet(classifier: SmallClassifier, real: Pixels, fake: Float[Tensor, "m c h w"]) -> tuple[str, float]:
    """The Fréchet distance between two sets in the classifier's features.

    The distance is biased upwards, and more so with fewer images, so only distances between sets of equal sizes can
    be compared (for example with :func:`real_vs_real`).

    Returns:
        The name to report the distance under (never "FID"), and the distance.
    """
    a, b = (fit(_by_batch(classifier, classifier.features, pixels)) for pixels in (real, fake))
    return f"frechet_distance[{classifier.name}]", frechet_distance(a, b)


def real_vs_real(
    classifier: SmallClassifier, real: Pixels, count: int | None = None, seed: int = 0
) -> tuple[str, float]:
    """:func:`classifier_frechet` of two disjoint random sets of real images, the score of a perfect generator.

    Args:
        count: number of images in each set; by default half of the images.

    Raises:
        ValueError: `real` has fewer than 2 * `count` images.
    """
    count = count or len(real) // 2
    if 2 * count > len(real):
        raise ValueError(f"two disjoint sets of {count} images need {2 * count} real images, got {len(real)}")
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    return classifier_frechet(classifier, real[order[:count]], real[order[count : 2 * count]])


def nearest_neighbour_distance(
    fake: Float[Tensor, "n c h w"], real: Float[Tensor, "m c h w"]
) -> tuple[Float[Tensor, "n"], Int64[Tensor, "n"]]:
    """The root-mean-square pixel difference between each fake image and its nearest real image, and that image's index.

    With pixels in [-1, 1] the difference is in [0, 2], and 0 is a copy. A generator that memorises has many distances
    near 0; compare them with the distances of held-out real images.
    """
    flat = real.flatten(1).double()
    index = torch.cat([torch.cdist(part.flatten(1).double(), flat).argmin(dim=1) for part in fake.split(256)])
    rmse = (
        (fake - real[index]).square().flatten(1).mean(dim=1).sqrt()
    )  # computed again, because cdist rounds the 0 of a copy
    return rmse, index
