"""A small classifier of the images at hand: numbers on generated images where no download is to be had.

Its distances say how two sets of small images differ for *this* network; they carry its name and weights, and compare
with nothing computed by another one.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from maskgen.evaluation.fid.inception import Extractor
from maskgen.evaluation.fid.statistics import fit, frechet_distance

NAME = "small-classifier"
Pixels = Float[Tensor, "n c h w"]
Labels = Int64[Tensor, "n"]


class SmallClassifier(nn.Module):
    """Four convolutions, pooled to 3 * `width` features; about 160,000 parameters at the default width.

    Args:
        channels: of the images.
        num_classes: at least 1.
        width: of the first convolution.
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
        """The penultimate features, averaged over the image; `pixels` in [-1, 1]."""
        return self.body(self.stem(pixels)).mean(dim=(2, 3))

    def forward(self, pixels: Pixels) -> Float[Tensor, "n k"]:
        return self.head(self.features(pixels))

    @property
    def sha256(self) -> str:
        """Of the weights: 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            digest.update(key.encode() + value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """What its numbers are reported under: "small-classifier/" and 8 hexadecimal digits of its weights' SHA-256."""
        return f"{NAME}/{self.sha256[:8]}"


def _block(inputs: int, outputs: int, **convolution: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, bias=False, **convolution), nn.BatchNorm2d(outputs), nn.ReLU())


# --------------------------------------------------------------------------------------------------------- training


def train_classifier(
    dataset: Any,
    *,
    seconds: float = 15.0,
    steps: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    holdout: float = 0.1,
    width: int = 32,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> tuple[SmallClassifier, dict[str, float]]:
    """Train on `dataset`, all of it in memory, with small shifts and grey patches (cutout) but no flips.

    Args:
        dataset: map-style, `{"pixels": float (c, h, w) in [-1, 1], "label": int}`, with `labels` and `class_names`.
        seconds: training time, unless `steps` is given; only `steps` gives the same weights on every run.
        holdout: share of each class that is not trained on, in (0, 1).

    Returns:
        The classifier in eval mode, and `accuracy` on the held-out images, `chance` (always naming their commonest
        class), `held_out` (their number) and `steps`.

    Raises:
        ValueError: fewer than 2 classes, a label outside them, too few images to hold some out, or no time to train.
    """
    if (seconds if steps is None else steps) <= 0:
        raise ValueError(f"training needs time: seconds={seconds}, steps={steps} must be above 0")
    classes, labels = len(dataset.class_names), torch.as_tensor(dataset.labels).long()
    train, held = split(labels, holdout, seed)
    if classes < 2 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"a classifier needs labels of at least 2 classes, from 0; got {classes} class names and labels "
            f"{int(labels.min())}..{int(labels.max())}"
        )
    pixels = torch.stack([dataset[i]["pixels"] for i in range(len(labels))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallClassifier(pixels.shape[1], classes, width).to(device)
        model = model.to(memory_format=torch.channels_last)  # 1.4 times as fast on a CPU
        taken = _train(model, pixels[train].to(device), labels[train].to(device), seconds, steps, batch_size, progress)
    return model, {
        "accuracy": class_agreement(model, pixels[held], labels[held]),
        "chance": float(labels[held].bincount().max() / len(held)),
        "held_out": float(len(held)),
        "steps": float(taken),
    }


def split(labels: Labels, holdout: float, seed: int = 0) -> tuple[Int64[Tensor, "t"], Int64[Tensor, "v"]]:
    """Indices to train on and to hold out: every (1 / holdout)-th image when ordered by class, at random within it.

    Raises:
        ValueError: `holdout` not in (0, 0.5], or no image left on one side.
    """
    if not 0 < holdout <= 0.5:
        raise ValueError(f"holdout must be above 0 and at most 0.5, got {holdout}")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    ordered = shuffled[labels[shuffled].argsort(stable=True)]
    every = round(1 / holdout)
    held = torch.arange(len(ordered)) % every == every - 1
    if not held.any():
        raise ValueError(f"{len(labels)} images leave none to hold out at holdout={holdout}; give at least {every}")
    return ordered[~held], ordered[held]


def _train(
    model: SmallClassifier,
    pixels: Pixels,
    labels: Labels,
    seconds: float,
    steps: int | None,
    batch: int,
    progress: bool,
) -> int:
    """AdamW under a linear warm-up and decay over the time or the steps; returns the steps taken."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    start, step, done = time.monotonic(), 0, 0.0
    model.train()
    with tqdm(total=100, desc="classifier", unit="%", disable=not progress) as bar:
        while done < 1:
            optimizer.param_groups[0]["lr"] = 5e-3 * min(done / 0.1 + 0.02, 1.0, (1 - done) / 0.9 + 0.01)
            index = torch.randint(len(labels), (batch,)).to(labels.device)
            loss = F.cross_entropy(model(augment(pixels[index])), labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            done = step / steps if steps else (time.monotonic() - start) / seconds
            bar.update(min(100, int(100 * done)) - bar.n)
    model.eval()
    return step


def augment(pixels: Pixels) -> Pixels:
    """Shift each image by up to an eighth of its size (edges repeated) and grey out one patch of a quarter of it."""
    n, _, h, w = pixels.shape
    dy, dx = h // 8, w // 8
    padded = F.pad(pixels, (dx, dx, dy, dy), mode="replicate")
    rows = torch.randint(2 * dy + 1, (n, 1)) + torch.arange(h)
    columns = torch.randint(2 * dx + 1, (n, 1)) + torch.arange(w)
    shifted = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    y, x = torch.randint(h, (n, 1)), torch.randint(w, (n, 1))
    in_rows = (torch.arange(h) - y).abs() < h / 8
    in_columns = (torch.arange(w) - x).abs() < w / 8
    patch = (in_rows[:, :, None] & in_columns[:, None, :])[:, None].to(pixels.device)
    return shifted.masked_fill(patch, 0.0)


def save_classifier(model: SmallClassifier, folder: str | Path, **facts: Any) -> None:
    """Write `classifier.safetensors`, and `classifier.json` with its arguments, its name and `facts` (the accuracy)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "classifier.safetensors")
    text = json.dumps({"config": model.config, "name": model.name, **facts}, indent=2)
    (folder / "classifier.json").write_text(text + "\n", encoding="utf-8")


def load_classifier(folder: str | Path) -> SmallClassifier:
    """The classifier that :func:`save_classifier` wrote, in eval mode.

    Raises:
        FileNotFoundError: `folder` holds none.
    """
    folder = Path(folder)
    if not (folder / "classifier.json").is_file():
        raise FileNotFoundError(f"{folder} holds no classifier.json; save one there by save_classifier")
    model = SmallClassifier(**json.loads((folder / "classifier.json").read_text(encoding="utf-8"))["config"])
    model.load_state_dict(load_file(folder / "classifier.safetensors"))
    return model.eval()


def classifier_extractor(model: SmallClassifier, device: torch.device | str | None = None) -> Extractor:
    """The classifier as what evaluation looks through, in the place of Inception; its numbers carry its own name."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    seen = _Seen(model.eval().requires_grad_(False)).to(device)
    return Extractor(seen, NAME, model.sha256, device, ("features", "logits"))


class _Seen(nn.Module):
    """uint8 images -> features and logits."""

    def __init__(self, model: SmallClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k"]]:
        if self.model.config["channels"] == 1:
            if not torch.equal(images[:, 0], images[:, 1]) or not torch.equal(images[:, 0], images[:, 2]):
                raise ValueError("this classifier takes grey images, these are coloured; give one of 3 channels")
            images = images[:, :1]
        features = self.model.features(images.float() / 127.5 - 1)
        return features, self.model.head(features)


# ---------------------------------------------------------------------------------------------------------- numbers


@torch.no_grad()
def _by_batch(model: SmallClassifier, function: Any, pixels: Pixels, batch_size: int = 256) -> Float[Tensor, "n d"]:
    if model.training:
        raise ValueError("the classifier is in training mode; call .eval() first")
    device = next(model.parameters()).device
    return torch.cat([function(batch.to(device)).float().cpu() for batch in pixels.split(batch_size)])


def class_agreement(classifier: SmallClassifier, pixels: Pixels, labels: Labels) -> float:
    """The share of `pixels` which the classifier gives the class asked for; read it beside its held-out accuracy."""
    return float((_by_batch(classifier, classifier, pixels).argmax(dim=1) == labels.cpu()).float().mean())


def classifier_frechet(classifier: SmallClassifier, real: Pixels, fake: Float[Tensor, "m c h w"]) -> tuple[str, float]:
    """The Fréchet distance in the classifier's features and the name to report it under, which is never "FID".

    Like any Fréchet distance of finite sets it is biased upwards, the more the fewer images: compare only distances
    between as many images as each other, e.g. with :func:`real_vs_real`.
    """
    a, b = (fit(_by_batch(classifier, classifier.features, pixels)) for pixels in (real, fake))
    return f"frechet_distance[{classifier.name}]", frechet_distance(a, b)


def real_vs_real(
    classifier: SmallClassifier, real: Pixels, count: int | None = None, seed: int = 0
) -> tuple[str, float]:
    """:func:`classifier_frechet` of two disjoint random sets of real images: what a perfect generator would get.

    Args:
        count: images in each set; default: half of them. To be compared with a distance between so many.

    Raises:
        ValueError: there are fewer than 2 * `count` images.
    """
    count = count or len(real) // 2
    if 2 * count > len(real):
        raise ValueError(f"two disjoint sets of {count} need {2 * count} real images, got {len(real)}")
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    return classifier_frechet(classifier, real[order[:count]], real[order[count : 2 * count]])


def nearest_neighbour_distance(
    fake: Float[Tensor, "n c h w"], real: Float[Tensor, "m c h w"]
) -> tuple[Float[Tensor, "n"], Int64[Tensor, "n"]]:
    """For each fake image the root-mean-square pixel difference to the nearest real one, and which one that is.

    In the units of the pixels: of a range [-1, 1], so 0 is a copy and 2 its negative in black and white. A generator
    that memorises has many distances near 0; compare with the distances of held-out real images.
    """
    flat = real.flatten(1).double()
    index = torch.cat([torch.cdist(part.flatten(1).double(), flat).argmin(dim=1) for part in fake.split(256)])
    rmse = (fake - real[index]).square().flatten(1).mean(dim=1).sqrt()  # anew: cdist rounds a copy's 0
    return rmse, index
