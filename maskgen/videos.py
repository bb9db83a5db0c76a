"""Clips in [-1, 1] as mp4 and gif files, and as strips of frames with named rows."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from maskgen.images import grid, to_uint8
from maskgen.images import save as save_image

FASTEST = {".mp4": 1000.0, ".gif": 50.0, ".png": float("inf")}  # the highest frames per second; a strip has none
CRF = "12"  # quality of H.264: 0 is lossless, 23 is the default


def save(
    pixels: Float[Tensor, "c t h w"],
    path: str | Path,
    fps: float | int = 10,
    parameters: Mapping[str, Any] | None = None,
) -> Path:
    """Write a clip as .mp4 (H.264), .gif or .png (a strip of its frames), and make its folder where needed.

    An mp4 is lossy, and its sides are even: the last row or column of an odd side is repeated. A gif has at most 256
    colours per frame, and readers see a run of equal frames as one frame that is shown longer.

    Args:
        parameters: what made the clip, kept in the file; PNG only, see :func:`maskgen.images.save`.

    Raises:
        ValueError: the file is of another kind, parameters are given and it is no PNG, or it cannot have this `fps`.
    """
    path = check_output(path, fps)
    kind = path.suffix.lower()
    if kind == ".png":
        return save_image(strip({"": pixels}), path, parameters)
    if parameters is not None:
        raise ValueError(f"{path} cannot keep the parameters of the clip; give a name that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = to_frames(pixels)
    if kind == ".gif":
        images = [Image.fromarray(frame) for frame in frames]
        ends = [round(100 * i / fps) for i in range(len(frames) + 1)]
        times = [10 * (end - begin) for begin, end in pairwise(ends)]  # milliseconds
        images[0].save(path, save_all=True, append_images=images[1:], duration=times, loop=0)
    else:
        _write_mp4(frames, path, fps)
    return path


def check_output(path: str | Path, fps: float | int) -> Path:
    """Check, before a long computation, that :func:`save` can write a file; return its path.

    Raises:
        ValueError: the file is of another kind, or cannot have this `fps`.
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in FASTEST:
        raise ValueError(f"{path} must end in .mp4, .gif or .png")
    if not 0 < fps <= FASTEST[kind]:
        raise ValueError(f"fps is {fps:g}; for {path} it must be above 0 and at most {FASTEST[kind]:g}")
    return path


def _write_mp4(frames: UInt8[np.ndarray, "t h w 3"], path: Path, fps: float | int) -> None:
    import av  # imageio would collect garbage twice per file, which takes seconds in a large process

    even = np.pad(frames, ((0, 0), *((0, side % 2) for side in frames.shape[1:3]), (0, 0)), mode="edge")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": CRF})
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"  # all players support it
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def to_frames(pixels: Float[Tensor, "c t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """Frames, clipped to [-1, 1], as RGB integers from 0 to 255."""
    frames = to_uint8(pixels.transpose(0, 1))
    return np.repeat(frames, 3, axis=3) if frames.shape[3] == 1 else frames


def strip(rows: Mapping[str, Float[Tensor, "c _ h w"]], every: int = 1, scale: int | None = None) -> Image.Image:
    """A sheet of clips: one named row per clip, with its frames side by side.

    Rows are aligned at their ends, so a prediction without its context starts with white.

    Args:
        rows: name -> clip; all have one frame size.
        every: show every `every`-th frame, counted from the last.
        scale: as in :func:`maskgen.images.grid`.

    Raises:
        ValueError: there are no rows, or frames have several sizes.
    """
    sizes = {tuple(clip.shape[2:]) for clip in rows.values()}
    if len(sizes) != 1 or every < 1:
        raise ValueError(f"a strip needs rows with one frame size and every of at least 1; got {sizes} and {every}")
    length = max(clip.shape[1] for clip in rows.values())
    frames = []
    for clip in rows.values():
        colour = clip.detach().float().cpu().expand(3, -1, -1, -1) if len(clip) == 1 else clip.detach().float().cpu()
        white = colour.new_ones(3, length - clip.shape[1], *clip.shape[2:])
        frames.append(torch.cat([white, colour], dim=1).flip(1)[:, ::every].flip(1).transpose(0, 1))
    names = list(rows) if any(rows) else None
    return grid(torch.cat(frames), columns=len(frames[0]), scale=scale, row_names=names)
