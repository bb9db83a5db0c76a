"""Encoded images in a folder, a .zip file or tar shards: one way to list them, to read them and to report errors."""

from __future__ import annotations

import json
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from maskgen.data.labels import Classes, classes_of_folders, is_hidden
from maskgen.data.pixels import UnreadableImage, check_header

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_BYTES = 1 << 30  # an image in an archive is read into memory, so a larger one is refused
MAX_LABEL_BYTES = 1 << 20  # a larger label file is a mistake
Result = TypeVar("Result")


class ImageSource:
    """Encoded images by index: ``names[i]`` is the name of image i, and :meth:`decode` opens it.

    An image is a regular file with one of `EXTENSIONS` (in either case). Hidden files and folders (``.name``,
    ``__MACOSX``) are ignored, and so are links in archives. Nothing is unpacked to disk, so a path in an archive cannot
    lead outside of it. Sources can be pickled and shared between processes and threads.

    Attributes:
        path: the folder or archive, as errors name it.
        names: one unique name per image.
    """

    path: Path
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Path | BytesIO:
        """The file of an image, or its bytes where it lies in an archive."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        """The full name of an image, for messages."""
        return self.names[index]

    def classes(self) -> Classes:
        """The class number of each image and the names of the classes, from the folders in `names`.

        Raises:
            ValueError: see :func:`maskgen.data.labels.classes_of_folders`.
        """
        return classes_of_folders(self.path, self.names)

    def decode(self, index: int, use: Callable[[Image.Image], Result]) -> Result:
        """`use(image)` for the opened image, whose pixels PIL decodes when `use` asks for them.

        Raises:
            UnreadableImage: the file is missing, damaged or not an image, it has more than MAX_PIXELS pixels, or `use`
                failed; the message begins with :meth:`where`.
        """
        try:
            with Image.open(self.open(index)) as image:
                check_header(image)
                return use(image)
        except Exception as error:  # decoders meet damaged files with errors of every kind
            raise UnreadableImage(f"{self.where(index)}: {error or type(error).__name__}") from error


def open_images(path: Path) -> ImageSource:
    """The images in a folder, a .zip file or a .tar file.

    Raises:
        ValueError: the path does not exist, the archive is damaged, or there are no images.
    """
    if path.is_file() and path.suffix == ".zip":
        return ZipImages(path)
    return TarImages(path, [path]) if path.is_file() and path.suffix == ".tar" else FolderImages(path)


def no_images(where: str | Path) -> ValueError:
    return ValueError(f"no images in {where}; looked for {', '.join(EXTENSIONS)}")


class FolderImages(ImageSource):
    """The images below a folder, however deep; the names are relative (``class/name.png``) and sorted.

    Raises:
        ValueError: there is no such folder, or it holds no images.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            what = "is a file, not a folder" if path.exists() else "does not exist"
            raise ValueError(f"image folder {path} {what}; give the folder that holds the images or the class folders")
        self.path, names = path, []
        for folder, below, files in os.walk(path, followlinks=True):
            below[:] = [name for name in below if not is_hidden(name)]
            names += [(Path(folder) / name).relative_to(path).as_posix() for name in files if _is_image(name)]
        if not names:
            raise no_images(path)
        self.names = sorted(names)

    def open(self, index: int) -> Path:
        return self.path / self.names[index]

    def where(self, index: int) -> str:
        return str(self.path / self.names[index])


class ZipImages(ImageSource):
    """The images in a .zip file; the names are the paths in it (``class/name.png``), sorted.

    Raises:
        ValueError: the file is damaged or not a .zip file, or it holds no images.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None  # by which process
        try:
            with zipfile.ZipFile(path) as archive:
                files = [info for info in archive.infolist() if not info.is_dir() and _is_image(info.filename)]
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read as a zip file ({error}); write it again") from error
        files = [info for info in files if not stat.S_ISLNK(info.external_attr >> 16)]
        if not files:
            raise no_images(path)
        self._files = sorted(files, key=lambda info: info.filename)
        self.names = [info.filename for info in self._files]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def open(self, index: int) -> BytesIO:
        _check_bytes(self._files[index].file_size)
        opened = self._opened
        if opened is None or opened[0] != os.getpid():  # a forked process must not share the position in the file
            # It stays open, because opening it reads the archive's whole directory.
            opened = self._opened = (os.getpid(), zipfile.ZipFile(self.path))
        return BytesIO(opened[1].read(self._files[index]))

    def where(self, index: int) -> str:
        return f"{self.path}:{self.names[index]}"


class Member(NamedTuple):
    """The bytes of one file in a tar shard."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        # Each read opens the file: workers share nothing, it can be pickled, and no limit of open files is met.
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


Label = int | str | None


class TarImages(ImageSource):
    """The images in uncompressed tar shards (webdataset's layout), in the order of the shards and of their members.

    Members with the same folder and the same name up to its first dot are one sample: an image, and its label in
    ``.cls`` (an integer) or as the "label" in ``.json`` (an integer or text). The name of a sample is ``SHARD:KEY``.
    The headers are read once; afterwards each image is read at its offset.

    Args:
        path: what errors name.
        shards: the tar files.

    Attributes:
        labels: the label of each image, or None for an image without one.

    Raises:
        ValueError: a shard is compressed or damaged, a sample has two images or two labels, a label cannot be read, or
            there are no images.
    """

    def __init__(self, path: str | Path, shards: Sequence[Path]) -> None:
        self.path, self.names = Path(path), []
        self.labels: list[Label] = []
        self._members: list[Member] = []
        for shard in shards:
            for name, image, label in _samples(shard):
                self.names.append(name)
                self._members.append(image)
                self.labels.append(label)
        if not self.names:
            raise no_images(path)

    def open(self, index: int) -> BytesIO:
        _check_bytes(self._members[index].size)
        return BytesIO(self._members[index].read())


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not is_hidden(name)


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes are more than the {MAX_BYTES} allowed in an archive (MAX_BYTES)")


def _samples(shard: Path) -> Iterator[tuple[str, Member, Label]]:
    """The name, image and label of each sample that has an image, in the order of the first members."""
    samples: dict[str, dict[str, Member]] = {}
    for name, member in _index(shard):
        folder, _, file = name.rpartition("/")
        stem, _, extension = file.partition(".")
        parts = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
        kind = "image" if f".{extension.lower()}" in EXTENSIONS else extension.lower()
        if kind in parts and kind in ("image", "cls", "json"):
            raise ValueError(f"{shard}: {name} is a second {kind} of its sample; names differ before their first dot")
        parts[kind] = member
    for key, parts in samples.items():
        if "image" in parts:
            yield f"{shard}:{key}", parts["image"], _label(f"{shard}:{key}", parts)


def _index(shard: Path) -> Iterator[tuple[str, Member]]:
    """The name and the bytes of each regular file of a shard that is not hidden."""
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                if not info.isreg() or info.issparse() or is_hidden(info.name):
                    continue
                if info.offset_data + info.size > shard.stat().st_size:
                    raise tarfile.ReadError(f"{info.name} is cut short")
                yield info.name, Member(shard, info.offset_data, info.size)
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header that it has read
            rest = Member(shard, tar.offset, tarfile.BLOCKSIZE).read()
            if any(rest):  # tarfile stops without an error at a header that it cannot read
                raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{shard} cannot be read as an uncompressed tar file ({error}); "
            "unpack .tar.gz with gunzip, and write damaged shards again"
        ) from error


def _label(name: str, parts: Mapping[str, Member]) -> Label:
    source = parts.get("cls") or parts.get("json")
    if source is None:
        return None
    if source.size > MAX_LABEL_BYTES:
        raise ValueError(f"{name}: a label file of {source.size} bytes; more than {MAX_LABEL_BYTES} are not read")
    text = source.read()
    try:
        label = json.loads(text)
    except ValueError as error:  # also bytes that are not UTF-8
        raise ValueError(f"{name}: its label file holds {text[:40]!r}; give an integer (.cls) or JSON") from error
    if "cls" not in parts:
        label = label.get("label") if isinstance(label, dict) else None
        if label is None:
            return None
    allowed = (int,) if "cls" in parts else (int, str)
    if isinstance(label, bool) or not isinstance(label, allowed):
        raise ValueError(f"{name}: label {label!r}; .cls holds an integer, .json an integer or text as its 'label'")
    return label
