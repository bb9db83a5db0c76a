"""A data set of clips from videos."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Generator, Tensor

from maskgen.data.pixels import check_channels, check_size, fit, flatten
from maskgen.data.unreadable import Unreadable
from maskgen.data.video_sources import ArrayVideos, FrameFolders, Layout, VideoFiles, VideoSource, find_videos

log = logging.getLogger(__name__)

Start = Literal["random", "uniform"]
Frame = UInt8[np.ndarray, "_ _ _"]  # (h, w, c), of any size


class Videos:
    """Clips of the videos in a folder of files, in folders of frames, or in an array file.

    Map-style: ``dataset[i]`` is ``{"pixels": float32 (c, t, h, w) in [-1, 1], "label": int}``. If the videos have
    actions, it also has ``actions``, float32 (t, a): the action ``actions[k]`` at frame k leads to frame k + 1. With a
    stride, the actions of the skipped frames are concatenated, (t, stride * a).

    `path` is one of:
      - a folder of .mp4, .avi, .gif, .webm, .mov, .mkv or .m4v files, read with PyAV; actions in NAME.actions.npy;
      - a folder of folders of images, each with the frames of one video in the order of their names; actions in
        actions.npy;
      - an .npz or .npy file, see :class:`maskgen.data.video_sources.ArrayVideos`.
    The classes come from sub-folders or a labels file, as in :class:`maskgen.data.images.ImageFolder`.

    The constructor leaves out videos that cannot be read (damaged, audio only); those that fail to decode later are
    replaced by the next readable one. All are logged by name and counted, see `unreadable`. Videos with fewer frames
    than a clip needs are left out and listed in `short`.

    Args:
        path: the folder or file.
        frames: number of frames of a clip.
        size: side of the square to resize and crop to (see `pixels.fit`), or [height, width]. None: the stored size.
        stride: distance between the frames of a clip, in frames.
        fps: take frames at this rate by their timestamps, so that stored frames are repeated or skipped; for video
            files only. None: all stored frames, even if the frame rate varies (a warning lists such videos).
        clips: number of clips per video in an epoch.
        start: "random": in training, each clip begins at a random frame, from the random numbers of the step. With
            "uniform", and always when an item is read by its index (for evaluation), a clip begins at the middle of its
            share of the video.
        begin, end: the part of each video that is used; for instance 0.0 to 0.8 for training and 0.8 to 1.0 for tests.
        channels: 1 (grey) or 3 (RGB). None: the stored channels.
        labels: a labels file, for folders.
        layout: "tnhw" for an array whose first axis is time.
        max_unreadable: how many unreadable videos are skipped; 0 stops at the first.
        cache: a JSON file that keeps the indices of video files, so that the next start is fast.

    Raises:
        ValueError: there are no videos at `path`, none is long enough, they have several sizes and `size` is None, an
            option is not for this kind of file, or too many videos are unreadable.
    """

    def __init__(
        self,
        path: str,
        frames: int = 16,
        size: int | list[int] | None = None,
        stride: int = 1,
        fps: float | None = None,
        clips: int = 1,
        start: Start = "random",
        begin: float = 0.0,
        end: float = 1.0,
        channels: int | None = None,
        labels: str | None = None,
        layout: Layout = "nthw",
        max_unreadable: int = 10,
        cache: str | None = None,
    ) -> None:
        _check(frames=frames, stride=stride, clips=clips, start=start, fps=fps, begin=begin, end=end, layout=layout)
        self.frames, self.stride, self.clips, self.start = frames, stride, clips, start
        root = Path(path).expanduser()
        self._tally = Unreadable(root, "video", max_unreadable)
        self.unreadable = self._tally.reasons  # name -> reason: those that this process has met
        self._source = source = open_videos(root, self._tally, fps, labels, layout, cache)
        self.class_names = source.class_names
        self.channels = source.channels if channels is None else check_channels(channels)
        self._parts = {}  # video -> its first frame and the number of frames at which a clip may begin
        self.short: dict[str, str] = {}  # name -> reason
        span = (frames - 1) * stride + 1
        for i, length in enumerate(source.lengths):
            first, last = round(begin * length), round(end * length)
            if last - first < span:
                self.short[source.names[i]] = f"{last - first} frames"
            else:
                self._parts[i] = (first, last - first - span + 1)
        self._report(root, span)
        self._videos = list(self._parts)
        stored = source.size if size is None else check_size(size)
        if stored is None:
            raise ValueError(f"videos in {root} have several sizes; give a size to resize them to")
        self.size, self._as_stored = stored, size is None
        self._tally.watch([source.names[i] for i in self._videos], [str(root / source.names[i]) for i in self._videos])
        self.groups = np.repeat(np.arange(len(self._videos)), clips)  # the video of each clip
        self.labels = np.repeat(np.array([source.labels[i] for i in self._videos], np.int64), clips)
        names = [source.names[i] for i in self._videos]
        self.names = names if clips == 1 else [f"{name}:{clip}" for name in names for clip in range(clips)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        video, clip = divmod(range(len(self))[index], self.clips)
        return self._clip(video, (clip + 0.5) / self.clips)

    def sample(self, index: int, generator: Generator) -> dict[str, Any]:
        """An item for training: as ``dataset[index]``, but if `start` is "random" the clip begins at a random frame."""
        if self.start == "uniform":
            return self[index]
        return self._clip(int(self.groups[index]), float(torch.rand((), generator=generator)))

    def _clip(self, video: int, position: float) -> dict[str, Any]:
        """The clip at `position` in [0, 1) of the video, or of the next readable one."""
        return self._tally.first(video, lambda v: self._read(self._videos[v], position))

    def _read(self, i: int, position: float) -> dict[str, Any]:
        first, starts = self._parts[i]
        rows = first + int(position * starts) + self.stride * np.arange(self.frames)
        frames = self._source.frames_of(i, rows.tolist())
        if self._as_stored:
            frames = (self._of_its_size(frame, i) for frame in frames)
        pixels = to_clip(frames, self.size, self.channels)
        item: dict[str, Any] = {"pixels": pixels, "label": int(self._source.labels[i])}
        actions = self._source.actions_of(i)
        if actions is not None:
            passed = np.minimum(
                rows[:, None] + np.arange(self.stride), len(actions) - 1
            )  # the last leads beyond the video
            item["actions"] = torch.from_numpy(actions[passed].reshape(self.frames, -1))
        return item

    def _of_its_size(self, frame: Frame, i: int) -> Frame:
        """ValueError for a frame with another size than the first, since resizing it would zoom."""
        if frame.shape[:2] != self.size:
            raise ValueError(
                f"a frame of {self._source.names[i]} is {frame.shape[:2]} (h, w), others are {self.size}; give a "
                "size to resize all to"
            )
        return frame

    def _report(self, root: Path, span: int) -> None:
        """Log what was left out and which frame rates vary; ValueError if nothing is left."""
        count = len(self.unreadable) + len(self._source.lengths)
        need = f"a clip needs {span} (frames={self.frames}, stride={self.stride})"
        if not self._parts:
            raise ValueError(
                f"none of the {count} videos in {root} can be used: {len(self.unreadable)} cannot be read"
                f"{_some(self.unreadable)}, {len(self.short)} are too short{_some(self.short)}; {need}"
            )
        if self.unreadable or self.short:
            log.warning(
                "%s: %d of %d videos left out: %d cannot be read%s, %d are too short%s; %s",
                *(root, len(self.unreadable) + len(self.short), count, len(self.unreadable), _some(self.unreadable)),
                *(len(self.short), _some(self.short), need),
            )
        variable = getattr(self._source, "variable", [])
        if variable and self._source.fps is None:  # type: ignore[attr-defined]
            log.warning(
                "the frame rate of %d videos varies (%s): all stored frames are used; give fps to take frames by time",
                *(len(variable), ", ".join(variable[:5])),
            )


def to_clip(frames: Iterable[Frame], size: tuple[int, int], channels: int) -> Float[Tensor, "c t h w"]:
    """Frames -> one clip in [-1, 1]; each frame is resized and cropped (`pixels.fit`) and gets `channels` channels."""
    values = torch.from_numpy(np.stack([_fitted(frame, size, channels) for frame in frames]))
    return values.permute(3, 0, 1, 2).float().contiguous() / 127.5 - 1


def _fitted(frame: Frame, size: tuple[int, int], channels: int) -> Frame:
    if frame.shape == (*size, channels):
        return frame
    image = Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame)
    return np.asarray(fit(flatten(image, channels), size)).reshape(*size, channels)


def open_videos(
    root: Path,
    tally: Unreadable,
    fps: float | None = None,
    labels: str | None = None,
    layout: Layout = "nthw",
    cache: str | None = None,
) -> VideoSource:
    """The videos at `root`; :class:`Videos` describes the arguments.

    Raises:
        ValueError: there are no videos, or an option is not for this kind of file.
    """
    if root.suffix in (".npz", ".npy"):
        _only(fps is None and labels is None and cache is None, "fps, labels and cache are for folders", root)
        return ArrayVideos(root, layout)
    _only(layout == "nthw", "layout is for .npz and .npy files", root)
    if not root.is_dir():
        what = "is neither a folder nor an .npz or .npy file" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}; give a folder of videos, of folders of frames, or an .npz or .npy of videos")
    videos, folders = find_videos(root)
    if videos and folders:
        raise ValueError(
            f"{root} holds both videos ({videos[0]}) and images (in {next(iter(folders))}); give a folder with one kind"
        )
    if videos:
        kept = None if cache is None else Path(cache).expanduser()
        return VideoFiles(root, videos, tally, fps, labels, kept)
    _only(fps is None and cache is None, "fps and cache are for video files", root)
    if not folders:
        raise ValueError(f"no videos and no frames in {root} or below it")
    return FrameFolders(root, folders, tally, labels)


def _only(right: bool, rule: str, root: Path) -> None:
    if not right:
        raise ValueError(f"{rule}; {root} is another kind of data, so leave them out")


def _check(
    *, frames: int, stride: int, clips: int, start: str, fps: float | None, begin: float, end: float, layout: str
) -> None:
    for name, value in (("frames", frames), ("stride", stride), ("clips", clips)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give 1 or more")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps is {fps}; give frames per second, above 0, or leave it out")
    if not 0 <= begin < end <= 1:
        raise ValueError(f"begin is {begin} and end {end}; they are shares of each video, 0 <= begin < end <= 1")
    for name, text, allowed in (("start", start, get_args(Start)), ("layout", layout, get_args(Layout))):
        if text not in allowed:
            raise ValueError(f"{name} is {text!r}; give one of {', '.join(allowed)}")


def _some(reasons: dict[str, str], most: int = 5) -> str:
    """`` (a.mp4: 3 frames, ...)``, or an empty text."""
    listed = [f"{name}: {reason}" for name, reason in list(reasons.items())[:most]]
    more = f" and {len(reasons) - most} more" if len(reasons) > most else ""
    return f" ({'; '.join(listed)}{more})" if reasons else ""
