"""Encoded videos, read with PyAV (part of imageio[pyav]): the timestamps of all frames, and single frames."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from maskgen.data.pixels import MAX_PIXELS
from maskgen.data.unreadable import UnreadableVideo

VIDEO_EXTENSIONS = (".mp4", ".avi", ".gif", ".webm", ".mov", ".mkv", ".m4v")
CHECKED = 16  # number of frames that are decoded to check their timestamps
VERSION = 2  # of the content of an index
UNEVEN = 1.5  # frames are unevenly spaced if two gaps differ by this factor (timestamps are rounded)

Frame = UInt8[np.ndarray, "h w c"]


@dataclass
class Index:
    """Facts about a video with which single frames can be found.

    Args:
        runs: the timestamps of the frames in order of display, as [first, [gap, repeats], [gap, repeats], ...].
        base: the unit of the timestamps in seconds, as a fraction.
        size: [height, width], upright.
        ordered: whether the decoded frames have these timestamps in this order. In some files they have not (B-frames
            with timestamps in coding order); in these, frames are counted from the first.
    """

    runs: list[Any]
    base: str
    size: list[int]
    ordered: bool = True

    @property
    def stamps(self) -> Int64[np.ndarray, " n"]:
        first, *gaps = self.runs
        return first + np.cumsum([0] + [gap for gap, repeats in gaps for _ in range(repeats)]).astype(np.int64)

    @property
    def seconds(self) -> np.ndarray:
        """The time at which each frame is shown, from 0: float64 (n,)."""
        stamps = self.stamps
        return (stamps - stamps[0]) * float(Fraction(self.base))

    @property
    def variable(self) -> bool:
        """Whether the frame rate varies."""
        gaps = [gap for gap, _ in self.runs[1:]]
        return len(gaps) > 1 and max(gaps) > UNEVEN * min(gaps)


def index_video(file: Path) -> Index:
    """Read the packets of a video and decode its first frames.

    Raises:
        UnreadableVideo: the file is damaged or has no video (audio only), frames have no timestamps, or a frame has
            more than MAX_PIXELS pixels.
    """
    import av

    try:
        with av.open(str(file)) as container:
            stream = _stream(container)
            packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
            stamps = sorted(_stamp(packet) for packet in packets)
            base, width, height = stream.time_base, stream.width, stream.height
            if width * height > MAX_PIXELS:
                raise UnreadableVideo(f"{width}x{height} is more than the {MAX_PIXELS} pixels allowed (MAX_PIXELS)")
        if not stamps:
            raise UnreadableVideo("it has no frames")
        shown, size = _first_frames(file)
    except UnreadableVideo as error:
        raise UnreadableVideo(f"{file}: {error}") from None
    except Exception as error:  # decoders meet damaged files with errors of every kind
        raise _damaged(file, error) from error
    gaps = [[int(gap), len(list(same))] for gap, same in groupby(np.diff(stamps).tolist())]
    rising = all(a < b for a, b in pairwise(shown))
    ordered = rising and set(shown) <= set(stamps) and len(set(stamps)) == len(stamps)
    return Index([stamps[0], *gaps], str(base), size, ordered)


def _damaged(file: Path, error: Exception) -> UnreadableVideo:
    if not file.is_file() or not file.stat().st_size:
        return UnreadableVideo(f"{file}: {'the file is empty' if file.is_file() else 'no such file'}")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UnreadableVideo(f"{file}: damaged, or no video ({reason})")


def _first_frames(file: Path) -> tuple[list[int], list[int]]:
    """The timestamps of the first frames in the decoder's order, and the [height, width] of the first."""
    import av

    with av.open(str(file)) as container:
        frames = list(islice(container.decode(_stream(container)), CHECKED))
    if not frames:
        raise UnreadableVideo("none of its frames can be decoded")
    return [_shown(frame) or 0 for frame in frames], list(_upright(frames[0]).shape[:2])


def _stream(container: Any) -> Any:
    """The first video stream; the cover image of an audio file does not count."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
    raise UnreadableVideo(f"no video in it, only {' and '.join(kinds)}")


def _stamp(packet: Any) -> int:
    stamp = packet.pts if packet.pts is not None else packet.dts
    if stamp is None:
        raise UnreadableVideo("its frames have no timestamps; convert it to .mp4")
    return int(stamp)


def read_frames(file: Path, index: Index, rows: Sequence[int]) -> Iterator[Frame]:
    """The frames `rows` (ascending, repeats allowed), uint8 RGB (h, w, 3). They are found by their timestamps from the
    last keyframe before them, or counted if the timestamps are not ordered.

    Raises:
        UnreadableVideo: a frame cannot be found or decoded.
    """
    stamps = index.stamps
    wanted = [int(stamps[row]) if index.ordered else int(row) for row in rows]
    found: dict[int, Frame] = {}
    try:
        for start in (wanted[0], None) if index.ordered else (None,):  # without a keyframe: from the first frame
            found = _decode(file, set(wanted), start, index.ordered)
            if len(found) == len(set(wanted)):
                break
    except Exception as error:
        raise _damaged(file, error) from error
    if missing := [row for row, key in zip(rows, wanted) if key not in found]:
        raise UnreadableVideo(f"{file}: frame {missing[0]} of {len(stamps)} cannot be decoded")
    return (found[key] for key in wanted)


def _decode(file: Path, wanted: set[int], start: int | None, stamped: bool) -> dict[int, Frame]:
    """The frames with these timestamps, or with these numbers if not `stamped`."""
    import av

    found: dict[int, Frame] = {}
    with av.open(str(file)) as container:
        stream = _stream(container)
        if start is not None:
            container.seek(start, stream=stream)
        for number, frame in enumerate(container.decode(stream)):
            key = _shown(frame) if stamped else number
            if key in wanted:
                found[key] = _upright(frame)
            if len(found) == len(wanted) or (key is not None and key > max(wanted)):
                break
    return found


def _shown(frame: Any) -> int | None:
    """The timestamp of a decoded frame."""
    return frame.pts if frame.pts is not None else frame.dts


def _upright(frame: Any) -> UInt8[np.ndarray, "_ _ c"]:
    """RGB, rotated as the file's metadata ask (phones store upright videos rotated)."""
    image, turns = frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)  # degrees, counterclockwise
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


class IndexCache:
    """Indices in a JSON file. A video is indexed again if its size in bytes or its modification time has changed, or if
    the index has another VERSION."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.changed = file, False
        self._known: dict[str, Any] = {}
        if file is not None and file.is_file():
            try:
                self._known = dict(json.loads(file.read_text(encoding="utf-8")))
            except ValueError as error:
                raise ValueError(f"{file} is not an index of videos ({error}); remove it to index again") from error

    def index(self, name: str, file: Path) -> Index:
        """As :func:`index_video`; failures are kept, too."""
        stat = file.stat()
        state = [VERSION, stat.st_size, stat.st_mtime_ns]
        entry = self._known.get(name, {})
        if entry.get("state") != state:
            entry = {"state": state}
            try:
                entry["index"] = asdict(index_video(file))
            except UnreadableVideo as error:
                entry["error"] = str(error)
            self._known[name], self.changed = entry, True
        if "error" in entry:
            raise UnreadableVideo(entry["error"])
        return Index(**entry["index"])

    def save(self) -> None:
        """Write the file atomically, if a video was indexed."""
        if self.file is not None and self.changed:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            part.write_text(json.dumps(self._known), encoding="utf-8")
            os.replace(part, self.file)
