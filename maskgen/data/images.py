"""Image files: a folder or a .zip file with classes from its folders or from a labels file, or single files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskgen.data.image_source import ImageSource, open_images
from maskgen.data.labels import Classes, classes_of_file
from maskgen.data.pixels import UnreadableImage, check_channels, check_size, from_image, load_image
from maskgen.data.unreadable import Unreadable


class EncodedImages:
    """The base of the data sets of encoded images: it reads images at one size and skips the unreadable ones.

    The constructor opens each header, without decoding pixels, and leaves out the files that are not images or have
    too many pixels. An image whose pixels fail to decode later is replaced by the next readable one in the list,
    together with its label, each time it is read; so lengths and results stay the same. Each unreadable image is logged
    once by name and counted, over the whole run and all DataLoader workers; more than `max_unreadable` in total are an
    error that lists them.
    """

    def __init__(
        self,
        source: ImageSource,
        classes: Classes,
        size: int | Sequence[int],
        channels: int,
        max_unreadable: int,
        check_headers: bool,
    ) -> None:
        numbers, self.class_names = classes
        self.size, self.channels = check_size(size), check_channels(channels)
        self._tally = Unreadable(source.path, "image", max_unreadable)
        self.unreadable = self._tally.reasons  # name -> reason: those that this process has met
        if check_headers:
            self._check_headers(source)
        kept = [i for i, name in enumerate(source.names) if name not in self.unreadable]
        if not kept:
            raise ValueError(f"none of the {len(source)} images in {source.path} can be read")
        self._source, self._kept = source, kept
        self.names = [source.names[i] for i in kept]
        self.labels = np.array([numbers[i] for i in kept], np.int64)
        self._tally.watch(self.names, [source.where(i) for i in kept])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._tally.first(range(len(self))[index], self._read)

    def _read(self, i: int) -> dict[str, Any]:
        pixels = self._source.decode(self._kept[i], lambda image: from_image(image, self.size, self.channels))
        return {"pixels": pixels, "label": int(self.labels[i])}

    def _check_headers(self, source: ImageSource) -> None:
        for i, name in enumerate(source.names):
            try:
                source.decode(i, lambda image: None)
            except UnreadableImage as error:
                self._tally.leave_out(name, str(error))


class ImageFolder(EncodedImages):
    """Images in a folder or a .zip file, cropped and resized as in :func:`maskgen.data.pixels.load_image`.

    :class:`EncodedImages` describes what happens to unreadable images. The classes come from the first of these that
    applies:
      - `labels`, a file: CSV with the header ``filename,label``; JSON ``{filename: label}``; or the
        ``{"labels": [[filename, label], ...]}`` of ADM and EDM. File names are relative to `path`. Each image must have
        one label and each name must exist. Integer labels are kept (0 to the largest); text labels are numbered in
        sorted order.
      - the folders directly in `path`: each is a class, in sorted order, with all images below it, however deep.
      - if there are no folders, all images have one class, "all".

    Map-style: ``dataset[i]`` is ``{"pixels": float32 (channels, h, w) in [-1, 1], "label": int}``.

    Args:
        path: the folder or .zip file. Hidden files and folders (".name") are ignored.
        size: the side of a square, or [height, width].
        channels: 1 (grey) or 3 (RGB).
        labels: the labels file, either a path of its own or relative to the folder `path`.
        max_unreadable: how many unreadable images are skipped; 0 stops at the first.
        check_headers: False skips the check of all headers at the start, which takes minutes for millions of images;
            each image is still checked when it is read.

    Raises:
        ValueError: there is no such folder, it holds no images, its classes are unclear, the labels do not match the
            images, or too many images are unreadable.
    """

    def __init__(
        self,
        path: str,
        size: int | list[int],
        channels: int = 3,
        labels: str | None = None,
        max_unreadable: int = 10,
        check_headers: bool = True,
    ) -> None:
        root = Path(path).expanduser()
        source = open_images(root)
        if labels is None:
            classes = source.classes()
        else:
            file = Path(labels).expanduser()
            classes = classes_of_file(file if file.exists() else root / file, source.names)
        super().__init__(source, classes, size, channels, max_unreadable, check_headers)


class ImageFiles:
    """Single image files with one class: items are ``{"pixels": float32 (c, h, w) in [-1, 1], "label": 0}``.

    Args:
        files: their paths.
        size: as for :class:`ImageFolder`; None keeps the size of each image.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        ValueError: there are no files or one does not exist. Reading an item raises `pixels.UnreadableImage`.
    """

    class_names = ("all",)

    def __init__(self, files: Sequence[str | Path], size: int | Sequence[int] | None = None, channels: int = 3) -> None:
        if not files:
            raise ValueError("no image files given; name at least one")
        if wrong := [str(file) for file in files if not Path(file).expanduser().is_file()]:
            raise ValueError(f"{wrong[0]} is not a file; give a folder of images as --data FOLDER --size SIDE")
        self.names = [str(file) for file in files]
        self.size, self.channels = None if size is None else check_size(size), check_channels(channels)
        self.labels = np.zeros(len(files), np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixels": load_image(Path(self.names[index]).expanduser(), self.size, self.channels), "label": 0}
