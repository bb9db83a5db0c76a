"""One video from a file, a folder of frames, an image, or an array of videos."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from maskgen.data.pixels import fit
from maskgen.data.unreadable import Unreadable
from maskgen.data.video_files import Frame, index_video, read_frames
from maskgen.data.video_sources import FRAME_EXTENSIONS
from maskgen.data.videos import open_videos, to_clip
from maskgen.pipelines.inputs import images_of, masks_of

log = logging.getLogger(__name__)
ARRAY = re.compile(r"(.+\.np[yz])(?::(\d+))?")


@dataclass
class VideoReader:
    """A video whose frames are read when they are needed.

    Args:
        length: the number of frames.
        frames_of: numbers of frames -> the frames, uint8 (h, w, c).
        fps: frames per second, or None if the file does not have it.
    """

    name: str
    length: int
    frames_of: Callable[[Sequence[int]], Iterable[Frame]]
    fps: float | None = None

    def clip(self, rows: Sequence[int], size: tuple[int, int], channels: int) -> Float[Tensor, "c t h w"]:
        """These frames in [-1, 1], cropped and resized to `size` like training data."""
        return to_clip(self.frames_of(rows), size, channels)

    def hole(self, mask: str | Path, size: tuple[int, int]) -> Bool[Tensor, "h w"]:
        """A mask of the size of the video, cropped and resized like its frames; white is hidden.

        Raises:
            ValueError: the mask is unreadable, has another size, or hides nothing.
        """
        height, width = next(iter(self.frames_of([0]))).shape[:2]
        (hidden,) = masks_of(str(mask), [(height, width)])
        fitted = fit(Image.fromarray(hidden.numpy().astype(np.uint8) * 255), size)
        return torch.from_numpy(np.asarray(fitted) >= 128)


def open_video(path: str | Path) -> VideoReader:
    """The video at `path`: a video file, a folder of frames, an image, or an array of videos. ``FILE.npz:3`` (or .npy)
    is video 3 of an array, and ``FILE.npz`` its only video.

    Raises:
        ValueError: there is no readable video, or there are several and none is named.
    """
    found = ARRAY.fullmatch(str(path))
    file = Path(found[1] if found else path).expanduser()
    if not file.exists():
        raise ValueError(f"{file} does not exist; give a video's file, a folder of its frames, or an image")
    if found or file.is_dir():
        source = open_videos(file, Unreadable(file, "video", 0))
        number = 0 if found is None or found[2] is None else int(found[2])
        if number >= len(source.names) or (len(source.names) > 1 and (found is None or found[2] is None)):
            example = f"{file}:3 for its video 3" if found else str(file / source.names[0])
            raise ValueError(f"{path} holds {len(source.names)} videos; name one of them, as {example}")
        return VideoReader(str(path), source.lengths[number], lambda rows: source.frames_of(number, rows))
    if file.suffix.lower() in FRAME_EXTENSIONS:
        (image,) = images_of(str(file), 3)
        frame = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return VideoReader(str(path), 1, lambda rows: [frame for _ in rows])
    index = index_video(file)
    if index.variable:
        log.warning("the frame rate of %s varies: its frames are taken as stored", file)
    seconds = float(index.seconds[-1])
    rate = (len(index.stamps) - 1) / seconds if seconds > 0 else None
    return VideoReader(str(path), len(index.stamps), lambda rows: read_frames(file, index, rows), rate)
