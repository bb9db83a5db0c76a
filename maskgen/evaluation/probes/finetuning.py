"""Fine-tuning of a whole network, as in MAE."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from maskgen.data.augment import Augmentation
from maskgen.evaluation.probes.heads import shuffled, warmup_cosine
from maskgen.evaluation.probes.mixing import erase, mix
from maskgen.evaluation.probes.result import (
    Number,
    ProbeResult,
    chance_of,
    check_classes,
    check_numbers,
    differences,
    notes_of,
    score,
)

UNDECAYED = ("token", "position", "pos_embed")  # parameters with these words in their names have no weight decay
FLOOR = 1e-6  # the final learning rate


def parameter_groups(
    model: nn.Module, layers: list[list[nn.Parameter]], layer_decay: Number, weight_decay: Number
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW, each with the ``scale`` of its learning rate (layer-wise decay).

    Layer i of L has the scale `layer_decay` ** (L - 1 - i), so the last layer, the head, has the full rate. Parameters
    with fewer than 2 dimensions, tokens and positions have no weight decay.

    Raises:
        ValueError: a trainable parameter of the model is in no layer or in two, or a parameter is not the model's.
    """
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    listed = [id(p) for layer in layers for p in layer if p.requires_grad]
    missing = [name for number, name in names.items() if number not in set(listed)]
    if missing or len(set(listed)) < len(listed) or not set(listed) <= set(names):
        twice, strange = len(listed) - len(set(listed)), len(set(listed) - set(names))
        raise ValueError(
            f"layers must list each trainable parameter of the model once, from input to output; missing: "
            f"{', '.join(missing[:5]) or 'none'}{', ...' if len(missing) > 5 else ''}; listed twice: {twice}; not in "
            f"the model: {strange}"
        )
    groups = []
    for i, layer in enumerate(layers):
        sides: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
        for p in layer:
            if p.requires_grad:
                plain = p.ndim < 2 or any(word in names[id(p)] for word in UNDECAYED)
                sides[0.0 if plain else weight_decay].append(p)
        scale = layer_decay ** (len(layers) - 1 - i)
        groups += [{"params": ps, "weight_decay": decay, "scale": scale} for decay, ps in sides.items() if ps]
    return groups


def finetune(
    model: nn.Module,
    layers: list[list[nn.Parameter]],
    train: Any,
    test: Any,
    *,
    epochs: int = 100,
    warmup_epochs: Number = 5,
    batch_size: int = 1024,
    blr: Number = 5e-4,
    layer_decay: Number = 0.65,
    weight_decay: Number = 0.05,
    mixup: Number = 0.8,
    cutmix: Number = 1.0,
    erasing: Number = 0.25,
    smoothing: Number = 0.1,
    flip: Number = 0.5,
    crop: Number = 0.08,
    drop_path: Number | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ProbeResult:
    """MAE's fine-tuning of ViT-B (He et al. 2021, arXiv:2111.06377, table 9), in float32 and without RandAugment.

    AdamW (betas .9 and .999) with layer-wise decay trains `model` in place. The learning rate is `blr` x batch / 256,
    with a warm-up from 0 and half a cosine to 1e-6. The test set is evaluated once, after the last epoch, and the
    model is left in evaluation mode.

    Args:
        model: takes pixels, float (b, c, h, w) in [-1, 1], and returns logits (b, classes). Its head should start
            near 0.
        layers: its parameters from input to output: the embedding, each block, and the head with the last norm.
        train, test: map-style data sets of images of one size, with `labels` and `class_names`.
        batch_size: at most the number of training images; a larger value is reduced, and the learning rate with it.
        mixup, cutmix: parameters of the Beta distributions; 0 turns the augmentation off.
        erasing: share of images in which a box is erased.
        flip, crop: see :class:`maskgen.data.augment.Augmentation`.
        drop_path: the rate that the model was built with, to state it in the result (published: 0.1). It is not set
            here.
        seed: seed of the order, of the augmentation and of the model's dropout.

    Raises:
        ValueError: parameters are missing in `layers`, the data sets do not belong together, training has a single
            class, a number is out of its range, logits have another shape, or the loss is NaN.
    """
    _check(train, test)
    check_numbers(epochs=epochs, blr=blr, layer_decay=layer_decay, batch_size=batch_size)
    shares = {
        "erasing": erasing,
        "smoothing": smoothing,
        "weight_decay": weight_decay,
        "mixup": mixup,
        "cutmix": cutmix,
    }
    wrong = [f"{name}={value}" for name, value in shares.items() if value < 0]
    wrong += [f"{name}={shares[name]}" for name in ("erasing", "smoothing") if shares[name] > 1]
    if wrong or not 0 <= warmup_epochs < epochs:
        raise ValueError(
            f"erasing and smoothing must be in [0, 1], the other numbers at least 0, and warmup_epochs below "
            f"epochs={epochs}; got {', '.join([*wrong, f'warmup_epochs={warmup_epochs}'])}"
        )
    classes, labels = len(train.class_names), torch.as_tensor(train.labels).long()
    optimizer = torch.optim.AdamW(parameter_groups(model.to(device), layers, layer_decay, weight_decay), lr=0.0)
    batch = min(batch_size, len(train))
    per_epoch, peak = len(train) // batch, blr * batch / 256
    steps = epochs * per_epoch
    order = torch.Generator().manual_seed(seed)
    augment = Augmentation(flip, crop)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.train()
        batches = tqdm(
            shuffled(len(train), batch, steps, order), "fine-tune", steps, unit=" steps", disable=not progress
        )
        for step, index in enumerate(batches):
            rate = peak * warmup_cosine(step / per_epoch, epochs, warmup_epochs, min(1.0, FLOOR / peak))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            items = [train[i] for i in index.tolist()]
            pixels = torch.stack([augment(item["pixels"], order) for item in items])
            numbers = torch.tensor([item["label"] for item in items])
            pixels = erase(pixels, erasing)
            pixels, targets = mix(pixels, numbers, classes, mixup=mixup, cutmix=cutmix, smoothing=smoothing)
            logits = model(pixels.to(device))
            if logits.shape != targets.shape:
                raise ValueError(
                    f"the model returned {tuple(logits.shape)}, but {batch} images of {classes} classes need logits "
                    f"{tuple(targets.shape)}; give it a head for the classes of the data"
                )
            loss = F.cross_entropy(logits.float(), targets.to(device))
            if not loss.isfinite():
                raise ValueError(f"the loss is {loss.item()} at step {step + 1} of {steps}; lower blr={blr}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    test_labels, scores = _predict(model, test, batch_size, device)
    settings: dict[str, Any] = {
        "optimizer": "AdamW (betas 0.9, 0.999)",
        "blr": blr,
        "learning_rate": peak,
        "batch_size": batch,
        "epochs": epochs,
        "warmup_epochs": warmup_epochs,
        "steps": steps,
        "schedule": f"linear from 0, then cosine to {FLOOR:g}",
        "layer_decay": layer_decay,
        "layers": len(layers),
        "weight_decay": weight_decay,
        "drop_path": "the model's own" if drop_path is None else drop_path,
        "mixup": mixup,
        "cutmix": cutmix,
        "erasing": erasing,
        "smoothing": smoothing,
        "augmentation": f"flip {flip}, crop from {crop} of the area; no RandAugment",
        "precision": "float32",
        "tested": "once, after the last epoch",
        "seed": seed,
    }
    published = {
        "epochs": (epochs, 100),
        "warmup_epochs": (warmup_epochs, 5),
        "batch_size": (batch, 1024),
        "blr": (blr, 5e-4),
        "layer_decay": (layer_decay, 0.65),
        "weight_decay": (weight_decay, 0.05),
        "mixup": (mixup, 0.8),
        "cutmix": (cutmix, 1.0),
        "erasing": (erasing, 0.25),
        "smoothing": (smoothing, 0.1),
        "flip": (flip, 0.5),
        "crop": (crop, 0.08),
        **({} if drop_path is None else {"drop_path": (drop_path, 0.1)}),
    }
    notes = ["no RandAugment (published: 9, 0.5); no mixed precision", *differences(published)]
    counts = {
        "train": len(train),
        "test": len(test),
        "classes": classes,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    return ProbeResult(
        "finetune",
        score(scores, test_labels),
        chance_of(test_labels),
        settings,
        {},
        counts,
        [*notes, *notes_of(labels, test_labels)],
    )


@torch.no_grad()
def _predict(model: nn.Module, test: Any, batch_size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The labels (n,) and the logits (n, classes) of all test images."""
    labels, scores = [], []
    for start in range(0, len(test), batch_size):
        items = [test[i] for i in range(start, min(start + batch_size, len(test)))]
        scores.append(model(torch.stack([item["pixels"] for item in items]).to(device)).float().cpu())
        labels += [int(item["label"]) for item in items]
    return torch.tensor(labels), torch.cat(scores)


def _check(train: Any, test: Any) -> None:
    if list(train.class_names) != list(test.class_names):
        raise ValueError(
            f"training and test set have different class names ({len(train.class_names)} and "
            f"{len(test.class_names)} of them); their labels must mean the same"
        )
    for name, labels in (("training", torch.as_tensor(train.labels)), ("test", torch.as_tensor(test.labels))):
        if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= len(train.class_names):
            raise ValueError(
                f"the {name} set has {len(labels)} images"
                + (f" with labels {int(labels.min())} to {int(labels.max())}" if len(labels) else "")
                + f"; there must be some, with labels 0 to {len(train.class_names) - 1}"
            )
    check_classes(torch.as_tensor(train.labels))
