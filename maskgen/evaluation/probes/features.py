"""Features of the images of a data set, which the probes read, and the file that keeps them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

Encode = Callable[[Tensor], Tensor]  # pixels float (b, c, h, w) in [-1, 1] -> float (b, tokens, d) or (b, d)

POOLS = ("mean", "mean_all", "cls", "cls_mean", "token_I (I = 0, 1, ... of the prefix)", "none")


@dataclass
class Features:
    """One feature vector per image.

    Args:
        values: float32 (n, d), finite, n >= 1.
        labels: int64 (n,), indices into `class_names`.
        facts: JSON values that describe how the features were made; the probes copy them into their results.
        class_names: one name per class; by default the labels as text.
        names: one name per image, or an empty list.

    Raises:
        ValueError: a shape or dtype is wrong, values are NaN or infinite, or a label has no class.
    """

    values: Tensor
    labels: Tensor
    facts: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape, n = tuple(self.values.shape), len(self.labels)
        if len(shape) != 2 or 0 in shape or self.values.dtype != torch.float32:
            raise ValueError(f"features must be float32 (images, features), got {self.values.dtype} {shape}")
        if self.labels.shape != (shape[0],) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"{shape[0]} features need as many int64 labels; got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if self.names and len(self.names) != n:
            raise ValueError(f"{n} features need as many names, or none; got {len(self.names)}")
        bad = ~self.values.isfinite().all(dim=1)
        if bad.any():
            raise ValueError(
                f"features of {int(bad.sum())} of {n} images are NaN or infinite (first at index "
                f"{int(bad.int().argmax())}); check the weights, or encode in float32 if half precision overflows"
            )
        self.class_names = list(self.class_names) or [str(i) for i in range(int(self.labels.max()) + 1)]
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.class_names):
            raise ValueError(
                f"labels run from {low} to {high}, but there are {len(self.class_names)} classes; labels must be 0 to "
                f"{len(self.class_names) - 1}, so correct them or name more classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> Features:
        """The features of the images at `index`, int64 (m,), m >= 1, with the same classes and facts."""
        names = [self.names[i] for i in index.tolist()] if self.names else []
        return Features(self.values[index], self.labels[index], dict(self.facts), self.class_names, names)

    def save(self, path: str | Path) -> Path:
        """Write an ``.npz`` file with values, labels, names, class_names, and the facts as JSON text.

        Raises:
            ValueError: `path` does not end in .npz, or the facts are no JSON values.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"features are saved to an .npz file, not {path.name!r}; give {path.stem}.npz")
        try:
            facts = json.dumps(self.facts, ensure_ascii=False)
        except TypeError as error:
            raise ValueError(f"facts must be JSON values: {error}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            values=self.values.detach().cpu().numpy(),
            labels=self.labels.cpu().numpy(),
            names=np.array(self.names, dtype=np.str_),
            class_names=np.array(self.class_names, dtype=np.str_),
            facts=np.array(facts),
        )
        return path


def load_features(path: str | Path) -> Features:
    """Read a file written by :meth:`Features.save`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has other contents or pickled objects, or :class:`Features` refuses them.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; write features there with Features.save")
    try:
        with np.load(path, allow_pickle=False) as file:
            values, labels = torch.from_numpy(file["values"]), torch.from_numpy(file["labels"])
            names, class_names = file["names"].tolist(), file["class_names"].tolist()
            facts = json.loads(str(file["facts"]))
    except (KeyError, AttributeError, TypeError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} was not written by Features.save: {error}") from None
    return Features(values, labels, facts, class_names, names)


# ----------------------------------------------------------------------------------------------------------- extract


def extract(
    encode: Encode,
    dataset: Any,
    pool: str = "mean",
    *,
    prefix: int = 0,
    batch_size: int = 64,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    facts: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Features:
    """Compute the features of the images of a data set, in its order and without augmentation.

    Args:
        encode: a network in evaluation mode, or any function, that takes pixels (float (b, c, h, w) in [-1, 1] on
            `device`) and returns float (b, tokens, d) or (b, d). The first `prefix` tokens are not patches but a
            class token or registers.
        dataset: map-style, with items `{"pixels": float (c, h, w) in [-1, 1], "label": int}`, the attribute
            `class_names` and, optionally, `names`.
        pool: "mean" is the mean of the tokens without the prefix and "mean_all" the mean with it; "cls" is the first
            prefix token and "token_I" prefix token I; "cls_mean" concatenates "cls" and "mean" (2 d features); "none"
            is for an `encode` that returns one vector per image.
        limit: the largest number of images, evenly spread over the data set.
        facts: further facts to add to `Features.facts`.

    Raises:
        ValueError: the pool is unknown or does not fit the output of `encode`, the data set has no images, the network
            is in training mode, or features are NaN.
    """
    token = _check_pool(pool, prefix)
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size and limit must be at least 1, got {batch_size} and {limit}")
    if getattr(getattr(encode, "__self__", encode), "training", False):
        raise ValueError("the encoder is in training mode, in which dropout is random; call .eval() first")
    count = min(len(dataset), limit or len(dataset))
    if count == 0:
        raise ValueError("the data set has no images")
    rows, labels, sizes, tokens = [], [], set(), set()
    with torch.no_grad(), tqdm(total=count, desc="features", unit=" images", disable=not progress) as bar:
        for pixels, numbers in _batches(dataset, count, batch_size):
            output = encode(pixels.to(device))
            rows.append(_pooled(output, pool, token, prefix, len(pixels)).float().cpu())
            labels += numbers
            sizes.add(tuple(pixels.shape[2:]))
            tokens.add(output.shape[1] if output.ndim == 3 else 0)
            bar.update(len(pixels))
    described: dict[str, Any] = {
        "pool": _words(pool, token, prefix),
        "tokens": sorted(tokens - {0}),
        "prefix": prefix,
        "images": f"all {count}" if count == len(dataset) else f"{count} of {len(dataset)}, evenly spread",
        "sizes": [list(size) for size in sorted(sizes)],
        "augmentation": "none",
    }
    names = list(getattr(dataset, "names", []))
    return Features(
        torch.cat(rows),
        torch.tensor(labels, dtype=torch.int64),
        {**described, **(facts or {})},
        [str(name) for name in dataset.class_names],
        [str(names[i]) for i in _spread(len(dataset), count)] if len(names) == len(dataset) else [],
    )


def raw_pixels(dataset: Any, size: int | None = None, **options: Any) -> Features:
    """The flattened pixels of the images as features, the control that needs no network.

    Args:
        size: resize images to `size` x `size` first (bilinear, antialiased); None keeps their size.
        options: further arguments of :func:`extract`.

    Raises:
        ValueError: images have several sizes and `size` is None; or see :func:`extract`.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if size is None:
        shapes = {tuple(shape) for shape in [getattr(dataset, "size", None)] if shape is not None}
        described = "none" + "".join(f" ({h}x{w} as stored)" for h, w in shapes)
    else:
        described = f"to {size}x{size}, bilinear, antialiased"
    seen: set[tuple[int, ...]] = set()

    def encode(pixels: Tensor) -> Tensor:
        seen.add(tuple(pixels.shape[2:]))
        if size is not None:
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
        elif len(seen) > 1:
            raise ValueError(f"images have several sizes {sorted(seen)}; give a `size` to resize them to")
        return pixels.flatten(1)

    facts = {"encoder": "raw pixels in [-1, 1], flattened", "resize": described, **(options.pop("facts", None) or {})}
    return extract(encode, dataset, "none", facts=facts, **options)


def _spread(total: int, count: int) -> list[int]:
    return [i * total // count for i in range(count)]


def _batches(dataset: Any, count: int, batch_size: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Pixels and labels in order; all images of a batch have one size."""
    images: list[Tensor] = []
    labels: list[int] = []
    for i in _spread(len(dataset), count):
        item = dataset[i]
        if "pixels" not in item:
            raise ValueError(f"items have {', '.join(item)} but no pixels; probes need a data set of images")
        if images and (len(images) == batch_size or item["pixels"].shape != images[0].shape):
            yield torch.stack(images), labels
            images, labels = [], []
        images.append(item["pixels"])
        labels.append(int(item["label"]))
    yield torch.stack(images), labels


def _check_pool(pool: str, prefix: int) -> int:
    """The index of the prefix token that the pool reads, or -1 where it reads none."""
    if prefix < 0:
        raise ValueError(f"prefix, the number of tokens before the patches, must be at least 0, got {prefix}")
    number = pool.removeprefix("token_")
    token = int(number) if number != pool and number.isdecimal() else 0 if pool in ("cls", "cls_mean") else -1
    if token < 0 and pool not in POOLS:
        raise ValueError(f"unknown pool {pool!r}; choose one of {', '.join(POOLS)}")
    if token >= prefix:
        raise ValueError(f"pool {pool!r} reads prefix token {token}, but there are {prefix}; choose 'mean'")
    return token


def _pooled(output: Tensor, pool: str, token: int, prefix: int, count: int) -> Tensor:
    if output.ndim != (2 if pool == "none" else 3) or len(output) != count or not output.is_floating_point():
        wanted = "(b, d)" if pool == "none" else "(b, tokens, d)"
        raise ValueError(
            f"pool {pool!r} needs float {wanted} for {count} images, but the encoder returned {output.dtype} "
            f"{tuple(output.shape)}; pool 'none' is for one vector per image, the others are for tokens"
        )
    if pool == "none":
        return output
    if output.shape[1] <= (prefix if "mean" in pool else token):
        raise ValueError(f"the encoder returned {output.shape[1]} tokens; with prefix={prefix} none is left to pool")
    output = output.float()
    if pool == "mean_all":
        return output.mean(dim=1)
    if token < 0:
        return output[:, prefix:].mean(dim=1)
    if pool == "cls_mean":
        return torch.cat([output[:, token], output[:, prefix:].mean(dim=1)], dim=1)
    return output[:, token]


def _words(pool: str, token: int, prefix: int) -> str:
    mean = f"mean without prefix ({prefix} tokens left out)" if prefix else "mean (there is no prefix)"
    if pool == "mean":
        return mean
    if pool == "mean_all":
        return f"mean of all tokens, with {prefix} of the prefix"
    if pool == "none":
        return "none: the encoder returns one vector per image"
    return f"prefix token {token} of {prefix}" + (f", and {mean}" if pool == "cls_mean" else "")
