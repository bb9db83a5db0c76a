"""Images in array files: npz archives, IDX (the MNIST format), and Fashion-MNIST."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from maskgen.data.pixels import check_size, fit, to_tensor

ImageArray = UInt8[np.ndarray, "n h w c"] | Float[np.ndarray, "n h w c"]  # values in [0, 255]
MAX_CLASSES = 100_000  # a label beyond this is a mistake, not a class


class _Arrays:
    """The base of the data sets in this module: images (n, h, w, c) with values in [0, 255], labels and names.

    If there are text features (n, t, e), items also have ``text``, float (t, e).
    """

    def __init__(
        self,
        images: ImageArray,
        labels: Int64[np.ndarray, " n"],
        size: int | None,
        class_names: list[str] | None = None,
        text: np.ndarray | None = None,
    ) -> None:
        self._images, self.labels, self._text = images, labels, text
        self.channels = int(images.shape[3])
        self.size = (int(images.shape[1]), int(images.shape[2])) if size is None else check_size(size)
        self.class_names = class_names or [str(i) for i in range(int(labels.max()) + 1)]
        self.names = [f"{i:0{len(str(len(labels) - 1))}d}" for i in range(len(labels))]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._images[index]
        if image.shape[:2] != self.size:
            image = np.stack([_resize(channel, self.size) for channel in np.moveaxis(image, 2, 0)], axis=2)
        item: dict[str, Any] = {"pixels": to_tensor(image), "label": int(self.labels[index])}
        return item if self._text is None else {**item, "text": torch.from_numpy(self._text[index].astype(np.float32))}


def _resize(channel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(fit(Image.fromarray(channel), size)).clip(0, 255)  # bicubic overshoots in floats


class NpzArrays(_Arrays):
    """Images and labels in an .npz archive of arrays, such as ADM's sample files (arr_0, arr_1).

    The layout is (n, h, w), or (n, h, w, c) or (n, c, h, w) with 1 or 3 channels; an array that could be either is an
    error. Values of uint8 are kept, uint16 is scaled by 1/257, and bool counts as 0 and 1. Floats count as [-1, 1] if
    any is negative and as [0, 1] otherwise; values beyond [-1, 1] are an error.

    Args:
        path: the file.
        images: the key of the images. None: the first of "images", "arr_0" and "x" that exists, or the only array.
        labels: the key of the labels, integers (n,) from 0. None: "labels", "arr_1" or "y"; without labels all are 0.
        size: side of the square to crop and resize to (see `pixels.fit`). None: as stored.
        text: the key of text features, float (n, t, e), for decoders that read text. None: "text", if it exists.

    Raises:
        ValueError: the file or a key does not exist, an array holds pickled objects, or an array is not as above.
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        labels: str | None = None,
        size: int | None = None,
        text: str | None = None,
    ) -> None:
        file = Path(path).expanduser()
        with open_npz(file) as data:
            image_key = find_key(data, images, ("images", "arr_0", "x"), "images", file)
            if image_key is None and len(data.files) == 1:
                image_key = data.files[0]
            if image_key is None:
                raise ValueError(f"no images found in {file}: it has {', '.join(data.files)}; name one as `images`")
            label_key = find_key(data, labels, ("labels", "arr_1", "y"), "labels", file)
            array = to_nhwc(read_array(data, image_key, file), f"{image_key!r} in {file}")
            numbers = np.zeros(len(array), np.int64)
            if label_key is not None and label_key != image_key:
                numbers = check_labels(read_array(data, label_key, file), len(array), f"{label_key!r} in {file}")
            text_key = find_key(data, text, ("text",), "text", file)
            features = None if text_key is None else read_array(data, text_key, file)
        if features is not None:
            _check_text(features, len(array), f"{text_key!r} in {file}")
        super().__init__(to_255(array, f"{image_key!r} in {file}"), numbers, size, text=features)


def _check_text(array: np.ndarray, count: int, what: str) -> None:
    if array.dtype.kind != "f" or array.ndim != 3 or len(array) != count or not np.isfinite(array).all():
        raise ValueError(
            f"{what} must be finite text features, float ({count}, tokens, features), one row per image; got "
            f"{array.dtype} {array.shape}"
        )


def open_npz(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file} does not exist; give an .npz file")
    try:
        data = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is not an .npz file: {error}") from error
    if not isinstance(data, np.lib.npyio.NpzFile):
        raise ValueError(f"{file} is one .npy array; save it as .npz with np.savez(file, images=...)")
    return data


def find_key(data: Any, asked: str | None, usual: tuple[str, ...], what: str, file: Path) -> str | None:
    if asked is not None and asked not in data.files:
        raise ValueError(f"no {what} {asked!r} in {file}; it has {', '.join(data.files)}")
    return asked if asked is not None else next((key for key in usual if key in data.files), None)


def read_array(data: Any, key: str, file: Path) -> np.ndarray:
    try:
        return data[key]
    except Exception as error:  # pickled objects, or a damaged archive
        raise ValueError(
            f"cannot read {key!r} in {file}: {error}; it must be a plain array of numbers (pickles are never loaded)"
        ) from error


def to_nhwc(array: np.ndarray, what: str) -> np.ndarray:
    """(n, h, w), (n, h, w, c) or (n, c, h, w) with c = 1 or 3 -> (n, h, w, c); ValueError if unclear or empty."""
    shape = array.shape
    if array.size == 0 or array.ndim not in (3, 4):
        raise ValueError(f"{what} has shape {shape}; images are (n, h, w), (n, h, w, c) or (n, c, h, w)")
    if array.ndim == 3:
        return array[..., None]
    last, first = shape[3] in (1, 3), shape[1] in (1, 3)
    if last and first:
        raise ValueError(
            f"{what} has shape {shape}: axis 1 and axis 3 could both be channels; save it as (n, h, w, c)"
            " with h not 1 or 3"
        )
    if not last and not first:
        raise ValueError(f"{what} has shape {shape}; neither axis 1 nor axis 3 has 1 or 3 channels")
    return array if last else np.moveaxis(array, 1, 3)


def to_255(array: np.ndarray, what: str) -> ImageArray:
    """Values as described in :class:`NpzArrays` -> uint8, or float32 in [0, 255]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return array.astype(np.float32) / 257
    if array.dtype.kind != "f":
        raise ValueError(f"{what} has dtype {array.dtype}; save images as uint8, uint16, bool or floats")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1 and high <= 1):  # also catches NaN
        raise ValueError(f"{what} has floats from {low:g} to {high:g}; they must lie in [0, 1] or [-1, 1], or be uint8")
    values = array.astype(np.float32)
    return (values + 1) * 127.5 if low < 0 else values * 255


def check_labels(array: np.ndarray, count: int, what: str) -> Int64[np.ndarray, " n"]:
    """Integers (n,) or (n, 1) from 0 -> int64 (n,); ValueError otherwise."""
    if array.shape not in ((count,), (count, 1)):
        raise ValueError(f"labels {what} have shape {array.shape}; {count} images need ({count},)")
    if array.dtype.kind not in "iu":
        raise ValueError(f"labels {what} have dtype {array.dtype}; they must be integer class numbers")
    if int(array.min()) < 0 or int(array.max()) > MAX_CLASSES:
        raise ValueError(f"labels {what} run from {array.min()} to {array.max()}; give 0 to at most {MAX_CLASSES}")
    return array.reshape(count).astype(np.int64)


def read_idx(file: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """An IDX file of uint8, plain or gzipped; the magic number 0x0000080D (D dimensions) and the length must match."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; give an idx{dimensions}-ubyte file, plain or .gz")
    data = file.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
    head = 4 + 4 * dimensions
    if len(data) < head or data[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{file} begins with {data[:4].hex()}, not 000008{dimensions:02x} (idx{dimensions}-ubyte)")
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    if len(data) - head != prod(shape):
        raise ValueError(f"{file} announces shape {shape}, {prod(shape)} bytes, but holds {len(data) - head}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


class IdxFiles(_Arrays):
    """Grey images and labels in two IDX files (MNIST, EMNIST, KMNIST ...), plain or .gz.

    Args:
        images: the idx3-ubyte file.
        labels: the idx1-ubyte file.
        size: side of the square to crop and resize to (see `pixels.fit`). None: as stored.

    Raises:
        ValueError: a file is missing or damaged, its magic number or length is wrong, or the labels do not match.
    """

    def __init__(self, images: str, labels: str, size: int | None = None) -> None:
        array = to_nhwc(read_idx(Path(images).expanduser(), 3), images)
        numbers = check_labels(read_idx(Path(labels).expanduser(), 1), len(array), f"in {labels}")
        super().__init__(array, numbers, size)


DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLOTHES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
Split = Literal["train", "test"]


class FashionMNIST(_Arrays):
    """Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 28x28 grey clothes, 60,000 to train and 10,000 to test.

    Args:
        root: the folder of the four .gz (or unpacked) files, or torchvision's root, which has them in FashionMNIST/raw.
            If it is None or has no such files, Debian's folder /usr/share/datasets/fashion-mnist is used.
        split: "train" or "test".
        size: at least 28; the images are not resized but padded with black (-1).
        download: if the files are not found, torchvision downloads them into `root`.

    Raises:
        ValueError: the files are not found, or an argument is not allowed.
    """

    def __init__(self, root: str | None = None, split: Split = "train", size: int = 32, download: bool = False) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}; give one of {', '.join(get_args(Split))}")
        if size < 28:
            raise ValueError(f"size is {size}; Fashion-MNIST is 28x28 and is only padded, so give 28 or more")
        prefix = "train" if split == "train" else "t10k"
        folder = _find_fashion(root, prefix)
        if folder is None and download:
            folder = _download_fashion(root)
        if folder is None:
            raise ValueError(
                f"Fashion-MNIST's {split} files are not in {root if root else DEBIAN}. Three ways: "
                f"give the folder of its {prefix}-images-idx3-ubyte.gz and {prefix}-labels-idx1-ubyte.gz as root; "
                "or on Debian and Ubuntu, apt-get install dataset-fashion-mnist; or give a root and download=True"
            )
        images = read_idx(_idx_file(folder, f"{prefix}-images-idx3-ubyte"), 3)
        numbers = read_idx(_idx_file(folder, f"{prefix}-labels-idx1-ubyte"), 1)
        before, after = (size - 28) // 2, (size - 27) // 2
        padded = np.pad(images, ((0, 0), (before, after), (before, after)))
        super().__init__(to_nhwc(padded, str(folder)), check_labels(numbers, len(padded), str(folder)), None, CLOTHES)


def _idx_file(folder: Path, stem: str) -> Path:
    packed = folder / f"{stem}.gz"
    return packed if packed.is_file() else folder / stem


def _find_fashion(root: str | None, prefix: str) -> Path | None:
    roots = [] if root is None else [Path(root).expanduser(), Path(root).expanduser() / "FashionMNIST" / "raw"]
    stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    return next((folder for folder in [*roots, DEBIAN] if all(_idx_file(folder, s).is_file() for s in stems)), None)


def _download_fashion(root: str | None) -> Path:
    if root is None:
        raise ValueError("download=True needs root, the folder to keep Fashion-MNIST in")
    from torchvision.datasets import FashionMNIST as Download

    try:
        Download(str(Path(root).expanduser()), download=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"Fashion-MNIST could not be downloaded ({error}); fetch its files yourself and give their folder as root, "
            "or apt-get install dataset-fashion-mnist"
        ) from error
    return Path(root).expanduser() / "FashionMNIST" / "raw"
