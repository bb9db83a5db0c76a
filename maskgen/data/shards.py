"""Images in tar shards (webdataset's layout), read in any order without unpacking."""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import NamedTuple

from maskgen.data.images import Images
from maskgen.data.labels import MAX_LABEL

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_LABEL_BYTES = 1 << 20  # a label's file beyond this is a mistake; it would be read whole
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Member(NamedTuple):
    """Where the bytes of a file lie in a shard."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        # Opened anew each time: nothing to share between workers, nothing to pickle, no limit of open files.
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class TarShards(Images):
    """Images in tar files, cropped and resized as `pixels.load_image` says; the unreadable as `Images` says.

    Members of one folder and one name up to its first dot are a sample: an image (.jpg, .jpeg, .png, .webp) and its
    label, ``.cls`` (an integer) or the "label" of ``.json`` (an integer or text). Integers are kept, text is numbered
    in the order of the class names. Without labels all the images are one class, "all". Other members are passed
    over, and so are hidden ones (".name"), links and folders.

    The headers are read once, when the dataset is made; then an image is read by its place in the file. Nothing is
    unpacked to disk. The order is that of the shards and of their members.

    Map-style: ``dataset[i]`` is ``{"pixels": float32 (channels, h, w) in [-1, 1], "label": int}``.

    Args:
        path: one shard, a folder of ``*.tar``, a glob (``data/train-*.tar``), or a range (``train-{000..012}.tar``).
        size: the side of a square, or [height, width].
        channels: 1 (grey) or 3 (RGB).
        class_names: a name a class. None: ``classes.json``, a list beside the first shard; else the numbers, or the
            texts in sorted order.
        max_unreadable: how many unreadable images to pass over; 0 stops at the first.
        check_headers: False skips the images' check at the start (minutes for millions); reading still checks.

    Raises:
        ValueError: no such shards, one that is compressed or damaged, a sample with two images, samples with and
            without a label, a label that is no class, or too many unreadable images.
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
        self._members: dict[str, Member] = {}  # one an image, by its name
        labels: list[int | str | None] = []
        for shard in shards:
            for name, image, label in read_samples(shard):
                self._members[name] = image
                labels.append(label)
        if not labels:
            raise ValueError(f"no images in {len(shards)} shards of {path}; looked for .{', .'.join(EXTENSIONS)}")
        beside = shards[0].with_name("classes.json")
        if class_names is None and beside.is_file():
            class_names = _read_names(beside)
        names = list(self._members)
        numbers, class_names = _number(names, labels, class_names)
        super().__init__(path, names, numbers, class_names, size, channels, max_unreadable, check_headers)

    def _open(self, name: str) -> io.BytesIO:
        return _Named(self._members[name].read(), name)

    def _place(self, name: str) -> str:
        return name  # has the shard's path already


class _Named(io.BytesIO):
    """Bytes with the name that an error will tell."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def find_shards(path: str) -> list[Path]:
    """The tar files that `path` names, in order; see :class:`TarShards`.

    Raises:
        ValueError: there are none, or one of a range is missing.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = sorted(place.glob("*.tar"))
    elif RANGE.search(path):
        found = [Path(name).expanduser() for name in _expand(path)]
        if missing := [str(file) for file in found if not file.is_file()]:
            raise ValueError(f"{len(missing)} of {len(found)} shards of {path} do not exist, first {missing[0]}")
    else:
        found = [place] if place.is_file() else sorted(Path(name) for name in glob(str(place)))
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


def read_samples(shard: Path) -> Iterator[tuple[str, Member, int | str | None]]:
    """The name, image and label of each sample of a shard that has an image, in the order of their first members.

    Raises:
        ValueError: not an uncompressed tar file, cut short, or a sample with two images or two labels.
    """
    samples: dict[str, dict[str, Member]] = {}
    for name, member in _index(shard):
        folder, _, file = name.rpartition("/")
        stem, _, extension = file.partition(".")
        parts = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
        kind = "image" if extension.lower() in EXTENSIONS else extension.lower()
        if kind in parts and kind in ("image", "cls", "json"):
            raise ValueError(f"{shard}: {name} is a second {kind} of its sample; names differ before their first dot")
        parts[kind] = member
    for key, parts in samples.items():
        if "image" in parts:
            yield f"{shard}:{key}", parts["image"], _label(f"{shard}:{key}", parts)


def _index(shard: Path) -> Iterator[tuple[str, Member]]:
    """The name and place of each plain, unhidden file of a shard."""
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                if not info.isreg() or info.issparse() or info.name.rpartition("/")[2].startswith("."):
                    continue
                if info.offset_data + info.size > shard.stat().st_size:
                    raise tarfile.ReadError(f"{info.name} is cut short")
                yield info.name, Member(shard, info.offset_data, info.size)
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it saw
            rest = Member(shard, tar.offset, tarfile.BLOCKSIZE).read()
            if any(rest):  # tarfile ends in silence at a header it cannot read
                raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{shard} cannot be read as an uncompressed tar file ({error}); "
            "unpack .tar.gz with gunzip, and write damaged shards anew"
        ) from error


def _label(name: str, parts: Mapping[str, Member]) -> int | str | None:
    """The sample's label; None where it has none."""
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


def _read_names(file: Path) -> list[str]:
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}; write a list of class names") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} must hold a list of class names, in the order of their numbers")
    return names


def _number(
    names: Sequence[str], labels: Sequence[int | str | None], class_names: list[str] | None
) -> tuple[list[int], list[str]]:
    """A class number for each image, and the classes' names."""
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
            raise ValueError(f"{name}: label {label!r} is none of the {len(class_names)} classes; mend it or the names")
    return numbers, class_names
