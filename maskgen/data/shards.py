"""Images in tar shards (webdataset's layout), read in any order without unpacking."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from maskgen.data.image_source import Label, TarImages
from maskgen.data.images import EncodedImages
from maskgen.data.labels import MAX_LABEL, Classes

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class TarShards(EncodedImages):
    """Images in tar files, cropped and resized as in :func:`maskgen.data.pixels.load_image`.

    :class:`maskgen.data.image_source.TarImages` describes the layout and the order; :class:`EncodedImages` describes
    what happens to unreadable images. Integer labels are kept; text labels are numbered in the order of the class
    names. Without labels all images have one class, "all".

    Map-style: ``dataset[i]`` is ``{"pixels": float32 (channels, h, w) in [-1, 1], "label": int}``.

    Args:
        path: one shard, a folder of ``*.tar``, a glob (``data/train-*.tar``), or a range (``train-{000..012}.tar``).
        size: the side of a square, or [height, width].
        channels: 1 (grey) or 3 (RGB).
        class_names: one name per class. None: ``classes.json``, a list next to the first shard; otherwise the numbers,
            or the texts in sorted order.
        max_unreadable: how many unreadable images are skipped; 0 stops at the first.
        check_headers: False skips the check of all headers at the start, which takes minutes for millions of images;
            each image is still checked when it is read.

    Raises:
        ValueError: there are no such shards, one is compressed or damaged, a sample has two images, only some samples
            have a label, a label is not a class, or too many images are unreadable.
    """

    def __init__(
        self,
        path: str,
        size: int | list[int],
        channels: int = 3,
        class_names: list[str] | None = None,
        max_unreadable: int = 10,
        check_headers: bool = True,
    ) -> None:
        shards = find_shards(path)
        source = TarImages(path, shards)
        file = shards[0].with_name("classes.json")
        if class_names is None and file.is_file():
            class_names = _read_names(file)
        classes = _number(source.names, source.labels, class_names)
        super().__init__(source, classes, size, channels, max_unreadable, check_headers)


def find_shards(path: str) -> list[Path]:
    """The tar files that `path` names, in order; see :class:`TarShards`.

    Raises:
        ValueError: there are none, or a file of a range is missing.
    """
    location = Path(path).expanduser()
    if location.is_dir():
        found = sorted(location.glob("*.tar"))
    elif RANGE.search(path):
        found = [Path(name).expanduser() for name in _expand(path)]
        if missing := [str(file) for file in found if not file.is_file()]:
            raise ValueError(f"{len(missing)} of {len(found)} shards of {path} do not exist, first {missing[0]}")
    else:
        found = [location] if location.is_file() else sorted(Path(name) for name in glob(str(location)))
    if not found:
        raise ValueError(
            f"no shards at {path}; give a .tar file, a folder of them, a glob (train-*.tar) or a range "
            "(train-{000..012}.tar)"
        )
    return found


def _expand(path: str) -> Iterator[str]:
    """``a-{00..02}.tar`` -> a-00.tar, a-01.tar, a-02.tar; leading zeros are kept."""
    pieces = RANGE.split(path)  # text, first, last, text, ...
    ranges = [
        [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        for first, last in zip(pieces[1::3], pieces[2::3])
    ]
    for numbers in itertools.product(*ranges):
        yield "".join(itertools.chain(*itertools.zip_longest(pieces[::3], numbers, fillvalue="")))


def _read_names(file: Path) -> list[str]:
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}; write a list of class names") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} must hold a list of class names, in the order of their numbers")
    return names


def _number(names: Sequence[str], labels: Sequence[Label], class_names: list[str] | None) -> Classes:
    """The class number of each image, and the names of the classes."""
    bare = [name for name, label in zip(names, labels) if label is None]
    if len(bare) == len(names):
        return [0] * len(names), ["all"]
    if bare:
        raise ValueError(f"{len(bare)} of {len(names)} images have no label, first {bare[0]}; label all or none")
    texts = {label for label in labels if isinstance(label, str)}
    if texts and any(isinstance(label, int) for label in labels):
        raise ValueError(f"labels mix integers with text ({min(texts)!r}); use one kind")
    if class_names is None:
        largest = max((label for label in labels if isinstance(label, int)), default=-1)
        class_names = sorted(texts) if texts else [str(i) for i in range(min(largest, MAX_LABEL) + 1)]
    number = {name: i for i, name in enumerate(class_names)}
    numbers = [number.get(label, -1) if isinstance(label, str) else int(label or 0) for label in labels]
    for name, label, value in zip(names, labels, numbers):
        if not 0 <= value < len(class_names):
            raise ValueError(
                f"{name}: label {label!r} is none of the {len(class_names)} classes; correct it or class_names"
            )
    return numbers, class_names
