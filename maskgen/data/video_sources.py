"""Sources of videos (files, folders of frames, arrays), which give names, lengths and single frames."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from maskgen.data.arrays import check_labels, find_key, open_npz, read_array
from maskgen.data.image_source import EXTENSIONS
from maskgen.data.labels import classes_of_file, classes_of_folders
from maskgen.data.pixels import check_header, flatten
from maskgen.data.unreadable import Unreadable, UnreadableVideo
from maskgen.data.video_files import VIDEO_EXTENSIONS, Frame, Index, IndexCache, read_frames

FRAME_EXTENSIONS = tuple(extension for extension in EXTENSIONS if extension not in VIDEO_EXTENSIONS)  # .gif is a video
Layout = Literal["nthw", "tnhw"]


@runtime_checkable
class VideoSource(Protocol):
    """Videos by index: `frames_of(i, rows)` gives frames uint8 (h, w, c) of video i; lists have one entry per video.

    `size` and `channels` are those of the stored frames; `size` is None if they differ.
    """

    names: list[str]
    lengths: list[int]
    labels: list[int]
    class_names: list[str]
    size: tuple[int, int] | None
    channels: int

    def frames_of(self, i: int, rows: Sequence[int]) -> Iterable[Frame]: ...

    def actions_of(self, i: int) -> Float32[np.ndarray, "t a"] | None: ...


@dataclass
class VideoFiles:
    """Encoded videos below a folder; see :class:`maskgen.data.videos.Videos`."""

    root: Path
    names: list[str]
    tally: Unreadable
    fps: float | None = None
    labels_file: str | None = None
    cache: Path | None = None
    channels: int = 3
    variable: list[str] = field(default_factory=list)  # names of videos whose frame rate varies

    def __post_init__(self) -> None:
        cache = IndexCache(self.cache)
        self._indices: list[Index] = []
        kept = []
        numbers, self.class_names = _classes(self.root, self.names, self.labels_file)
        for name, number in zip(self.names, numbers):
            try:
                index = cache.index(name, self.root / name)
            except UnreadableVideo as error:
                self.tally.leave_out(name, str(error))
                continue
            self._indices.append(index)
            kept.append((name, number))
            if index.variable:
                self.variable.append(name)
        cache.save()
        self.names, self.labels = [name for name, _ in kept], [number for _, number in kept]
        self.lengths = [self._length(index) for index in self._indices]
        sizes = {tuple(index.size) for index in self._indices}
        self.size = (self._indices[0].size[0], self._indices[0].size[1]) if len(sizes) == 1 else None
        files = [self.root / f"{os.path.splitext(name)[0]}.actions.npy" for name in self.names]
        self._actions = _read_actions(files, self.lengths)
        if self._actions and self.fps is not None:
            raise ValueError(f"actions in {self.root} belong to the stored frames; leave fps out")

    def _length(self, index: Index) -> int:
        if self.fps is None:
            return len(index.stamps)
        return int(index.seconds[-1] * self.fps + 1e-6) + 1

    def frames_of(self, i: int, rows: Sequence[int]) -> Iterator[Frame]:
        index = self._indices[i]
        if self.fps is not None:  # the frame that is shown at each moment
            moments = np.asarray(rows) / self.fps
            rows = (np.searchsorted(index.seconds, moments + 1e-6, side="right") - 1).tolist()
        return read_frames(self.root / self.names[i], index, rows)

    def actions_of(self, i: int) -> Float32[np.ndarray, "t a"] | None:
        return self._actions.get(i)


@dataclass
class FrameFolders:
    """Folders that each hold the frames of one video as images, in the order of their names (2 before 10)."""

    root: Path
    folders: dict[str, list[str]]  # folder -> names of its frames
    tally: Unreadable
    labels_file: str | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        numbers, self.class_names = _classes(self.root, list(self.folders), self.labels_file)
        self.names, self.labels, sizes = [], [], set()
        for (name, frames), number in zip(self.folders.items(), numbers):
            try:
                with _image(self.root / name / frames[0]) as image:
                    sizes.add((image.height, image.width))
            except UnreadableVideo as error:
                self.tally.leave_out(name, str(error))
                continue
            self.names.append(name)
            self.labels.append(number)
        self.size = sizes.pop() if len(sizes) == 1 else None
        self.lengths = [len(self.folders[name]) for name in self.names]
        self._actions = _read_actions([self.root / name / "actions.npy" for name in self.names], self.lengths)

    def frames_of(self, i: int, rows: Sequence[int]) -> Iterator[Frame]:
        name = self.names[i]
        return (_rgb(self.root / name / self.folders[name][row]) for row in rows)

    def actions_of(self, i: int) -> Float32[np.ndarray, "t a"] | None:
        return self._actions.get(i)


def _image(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        check_header(image)
        return image
    except Exception as error:  # decoders meet damaged files with errors of every kind
        raise UnreadableVideo(f"{file}: {error or type(error).__name__}") from error


def _rgb(file: Path) -> Frame:
    with _image(file) as image:
        try:
            flat = flatten(ImageOps.exif_transpose(image), 3)
        except Exception as error:
            raise UnreadableVideo(f"{file}: {error or type(error).__name__}") from error
    return np.asarray(flat.convert("L").convert("RGB") if flat.mode == "F" else flat)


class ArrayVideos:
    """Videos in an .npz or .npy file; the latter is memory-mapped, so it may be larger than memory.

    Args:
        file: an .npz with ``videos`` (or ``clips``, ``frames``, ``arr_0``, ``x``, or the only array), uint8
            (n, t, h, w) or (n, t, h, w, c) with c = 1 or 3, and optionally ``actions``, float (n, t, a), and
            ``labels``, integers (n,); or an .npy with the videos alone.
        layout: "tnhw" if time is the first axis, as in Moving MNIST's mnist_test_seq.npy.

    Raises:
        ValueError: the file does not exist, or its arrays are not as above.
    """

    def __init__(self, file: Path, layout: Layout = "nthw") -> None:
        actions = labels = None
        if file.suffix == ".npy":
            if not file.is_file():
                raise ValueError(f"{file} does not exist; give an .npy or .npz file of videos")
            try:
                videos = np.load(file, mmap_mode="r", allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise ValueError(f"{file} is not an .npy file of numbers: {error}") from error
        else:
            with open_npz(file) as data:
                key = find_key(data, None, ("videos", "clips", "frames", "arr_0", "x"), "videos", file)
                key = key or (data.files[0] if len(data.files) == 1 else None)
                if key is None:
                    raise ValueError(f"no videos found in {file}: it has {', '.join(data.files)}; name them `videos`")
                videos = read_array(data, key, file)
                if "actions" in data.files:
                    actions = read_array(data, "actions", file)
                if "labels" in data.files:
                    labels = read_array(data, "labels", file)
        self._videos = _nthwc(videos, layout, str(file))
        n, t, h, w, self.channels = self._videos.shape
        self.size: tuple[int, int] | None = (h, w)
        self.lengths = [t] * n
        self.names = [f"{i:0{len(str(n - 1))}d}" for i in range(n)]
        self.labels = [0] * n if labels is None else check_labels(labels, n, f"in {file}").tolist()
        self.class_names = ["all"] if labels is None else [str(i) for i in range(max(self.labels) + 1)]
        if actions is not None and (actions.ndim != 3 or actions.shape[:2] != (n, t)):
            raise ValueError(
                f"actions in {file} have shape {actions.shape}; {n} videos of {t} frames need ({n}, {t}, a)"
            )
        self._actions = None if actions is None else _check_actions(actions, str(file))

    def frames_of(self, i: int, rows: Sequence[int]) -> UInt8[np.ndarray, "t h w c"]:
        return self._videos[i][list(rows)]

    def actions_of(self, i: int) -> Float32[np.ndarray, "t a"] | None:
        return None if self._actions is None else self._actions[i]


def npz_file(path: str | Path) -> Path:
    """The path of a file that :func:`save_videos` can write.

    Raises:
        ValueError: the path does not end in .npz.
    """
    file = Path(path).expanduser()
    if file.suffix != ".npz":
        raise ValueError(f"{file} must end in .npz")
    return file


def save_videos(path: str | Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Path:
    """Write an .npz for :class:`ArrayVideos`: `arrays` (``videos`` and others) and `facts` as JSON in ``metadata``.
    Equal content gives equal bytes.

    Raises:
        ValueError: the path does not end in .npz.
    """
    file = npz_file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with part.open("wb") as stream:
        np.savez_compressed(stream, metadata=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]
    os.replace(part, file)
    return file


def _nthwc(videos: np.ndarray, layout: Layout, what: str) -> UInt8[np.ndarray, "n t h w c"]:
    shape = videos.shape
    if layout == "tnhw":
        videos = np.moveaxis(videos, 1, 0) if videos.ndim > 1 else videos
    if videos.size == 0 or videos.ndim not in (4, 5) or (videos.ndim == 5 and shape[4] not in (1, 3)):
        raise ValueError(f"{what} has shape {shape}; videos are (n, t, h, w) or (n, t, h, w, c) with c of 1 or 3")
    if videos.ndim == 4 and shape[3] in (1, 3):
        raise ValueError(f"{what} has shape {shape}; is it one video in colour? Save it as (1, t, h, w, c)")
    if videos.dtype != np.uint8:
        raise ValueError(f"{what} has dtype {videos.dtype}; save videos as uint8, 0 to 255")
    return videos if videos.ndim == 5 else videos[..., None]


def _check_actions(actions: np.ndarray, what: str) -> Float32[np.ndarray, "*n t a"]:
    if actions.dtype.kind not in "fiu" or not np.isfinite(actions).all():
        raise ValueError(f"actions in {what} must be finite numbers, one row per frame; got {actions.dtype}")
    return actions.astype(np.float32)


def _read_actions(files: list[Path], lengths: list[int]) -> dict[int, Float32[np.ndarray, "t a"]]:
    """The actions (t, a) of each video; empty if no video has actions."""
    found = {}
    for i, file in enumerate(files):
        if not file.is_file():
            continue
        try:
            actions = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{file} is not an .npy file of numbers: {error}") from error
        if actions.ndim != 2 or len(actions) != lengths[i]:
            raise ValueError(f"{file} has shape {actions.shape}; {lengths[i]} frames need ({lengths[i]}, a)")
        found[i] = _check_actions(actions, str(file))
    if found and len(found) < len(files):
        missing = next(file for i, file in enumerate(files) if i not in found)
        raise ValueError(f"{len(found)} of {len(files)} videos have actions; {missing} does not exist")
    widths = {actions.shape[1]: files[i] for i, actions in found.items()}
    if len(widths) > 1:
        listed = ", ".join(f"{width} ({file})" for width, file in sorted(widths.items()))
        raise ValueError(f"actions have several lengths: {listed}; give the same number per frame in all videos")
    return found


def find_videos(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The video files below `root`, and the folders of frames with their frames. Names are relative and in natural
    order (2 before 10); hidden files are ignored."""
    videos: list[str] = []
    folders: dict[str, list[str]] = {}
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        shown = [name for name in files if not name.startswith(".")]
        relative = Path(folder).relative_to(root).as_posix()
        videos += [(Path(relative) / n).as_posix() for n in shown if n.lower().endswith(VIDEO_EXTENSIONS)]
        if frames := sorted((n for n in shown if n.lower().endswith(FRAME_EXTENSIONS)), key=_natural):
            folders[relative] = frames
    return sorted(videos, key=_natural), {name: folders[name] for name in sorted(folders, key=_natural)}


def _natural(path: str) -> list[list[tuple[int, str]]]:
    """A sort key, folder by folder, with numbers compared as numbers: frame_2 before frame_10."""
    return [
        [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name) if piece]
        for name in path.split("/")
    ]


def _classes(root: Path, names: list[str], labels: str | None) -> tuple[list[int], list[str]]:
    if labels is not None:
        file = Path(labels).expanduser()
        return classes_of_file(file if file.exists() else root / file, names)
    if all("/" not in name for name in names):
        return [0] * len(names), ["all"]
    return classes_of_folders(root, names)
