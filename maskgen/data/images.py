"""Image files: a folder, with classes from sub-folders or from a labels file, or a few named ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskgen.data.labels import classes_of_file, classes_of_folders
from maskgen.data.pixels import check_channels, check_header, check_size, load_image
from maskgen.data.unreadable import Unreadable

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class Images:
    """What data sets of encoded images share: reading them at one size, and passing over the unreadable.

    When the dataset is made, each header is opened (no pixels are decoded), and those that are not images, or have
    too many pixels, are left out of it. An image whose pixels fail to decode later is replaced by the next readable
    one in the list (its label with it), at every reading, so lengths and results stay the same. Each is logged once by
    name and counted, over the whole run and all DataLoader workers; more than `max_unreadable` altogether is an error
    that lists them.

    A subclass may say in `_open` where the bytes of an image are, and in `_place` how to tell a user; here they are in
    the file `where`/name.
    """

    def __init__(
        self,
        where: str | Path,
        names: Sequence[str],
        numbers: Sequence[int],
        class_names: list[str],
        size: int | Sequence[int],
        channels: int,
        max_unreadable: int,
        check_headers: bool,
    ) -> None:
        self.where, self.class_names = Path(where), class_names
        self.size, self.channels = check_size(size), check_channels(channels)
        self.names = list(names)
        self._tally = Unreadable(self.where, "image", max_unreadable)
        self.unreadable = self._tally.reasons  # name -> reason: those met in this process
        if check_headers:
            self._check_headers()
        kept = [i for i, name in enumerate(names) if name not in self.unreadable]
        if not kept:
            raise ValueError(f"none of the {len(names)} images in {self.where} can be read")
        self.names = [names[i] for i in kept]
        self.labels = np.array([numbers[i] for i in kept], np.int64)
        self._tally.watch(self.names, [self._place(name) for name in self.names])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._tally.first(range(len(self))[index], self._read)

    def _read(self, i: int) -> dict[str, Any]:
        return {"pixels": load_image(self._open(self.names[i]), self.size, self.channels), "label": int(self.labels[i])}

    def _open(self, name: str) -> Path | BytesIO:
        return self.where / name

    def _place(self, name: str) -> str:
        return str(self.where / name)

    def _check_headers(self) -> None:
        for name in self.names:
            try:
                with Image.open(self._open(name)) as image:
                    check_header(image)
            except Exception as error:  # decoders meet damaged files with errors of every kind
                self._tally.leave_out(name, f"{self._place(name)}: {error}")


class ImageFolder(Images):
    """Images below a folder, cropped and resized as `pixels.load_image` says; the unreadable as `Images` says.

    Classes come from, in this order:
      - `labels`, a file: CSV with the header ``filename,label``; JSON ``{filename: label}``; or ADM's and EDM's
        ``{"labels": [[filename, label], ...]}``. File names are relative to `path`. Every image must have one label
        and every name must exist. Integer labels are kept (0 .. the largest); text labels are numbered in sorted order.
      - sub-folders: each is a class, in sorted order, with every image below it, however deep.
      - otherwise all the images lie in `path` itself and are one class, "all".

    Map-style: ``dataset[i]`` is ``{"pixels": float32 (channels, h, w) in [-1, 1], "label": int}``.

    Args:
        path: the folder. Hidden files and folders (".name") are ignored.
        size: the side of a square, or [height, width].
        channels: 1 (grey) or 3 (RGB).
        labels: the labels file, looked for as given and then in `path`.
        max_unreadable: how many unreadable images to pass over; 0 stops at the first.
        check_headers: False skips the check at the start (minutes for millions of files); reading still checks.

    Raises:
        ValueError: no such folder, no images, unclear classes, labels that do not match the images, or too many
            unreadable images.
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
        names = find_images(root)
        if labels is None:
            numbers, class_names = classes_of_folders(root, names)
        else:
            file = Path(labels).expanduser()
            numbers, class_names = classes_of_file(file if file.exists() else root / file, names)
        super().__init__(root, names, numbers, class_names, size, channels, max_unreadable, check_headers)


class ImageFiles:
    """Image files named one by one, all of one class: ``{"pixels": float32 (c, h, w) in [-1, 1], "label": 0}``.

    Args:
        files: their paths.
        size: as `ImageFolder`'s; None leaves every image at its own size.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        ValueError: no files, or one that is not there; when read, an image that cannot be (`pixels.UnreadableImage`).
    """

    class_names = ("all",)

    def __init__(self, files: Sequence[str | Path], size: int | Sequence[int] | None = None, channels: int = 3) -> None:
        if not files:
            raise ValueError("no image files given; name at least one")
        if wrong := [str(file) for file in files if not Path(file).expanduser().is_file()]:
            raise ValueError(f"{wrong[0]} is no file; a folder of images is given as --data FOLDER --size SIDE")
        self.names = [str(file) for file in files]
        self.size, self.channels = None if size is None else check_size(size), check_channels(channels)
        self.labels = np.zeros(len(files), np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixels": load_image(Path(self.names[index]).expanduser(), self.size, self.channels), "label": 0}


def find_images(root: Path) -> list[str]:
    """The images below `root` as sorted relative names ("class/name.png")."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise ValueError(f"image folder {root} {what}; give the folder that holds the images or the class folders")
    names = []
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        images = [name for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in images]
    if not names:
        raise ValueError(f"no images in {root} or below it; looked for {', '.join(EXTENSIONS)}")
    return sorted(names)
