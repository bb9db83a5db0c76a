"""Clips in [-1, 1] to files: mp4, gif, and strips of frames with names beside the rows."""

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

FASTEST = {".mp4": 1000.0, ".gif": 50.0, ".png": float("inf")}  # frames a second; a strip has no time
CRF = "12"  # H.264's quality: 0 is without losses, 23 its default


def save(
    pixels: Float[Tensor, "c t h w"],
    path: str | Path,
    fps: float | int = 10,
    parameters: Mapping[str, Any] | None = None,
) -> Path:
    """Write a clip, making its folder: .mp4 (H.264), .gif, or .png (its frames side by side).

    An mp4 is compressed with losses, and its sides are even: of an odd one the last row or column is repeated. A gif
    has at most 256 colours a frame, and readers see equal frames in a row as one that is shown longer.

    Args:
        parameters: what made it, kept in the file; PNG only, see :func:`maskgen.images.save`.

    Raises:
        ValueError: another kind of file, parameters for other than .png, or frames a second that it cannot have.
    """
    path = check_output(path, fps)
    kind = path.suffix.lower()
    if kind == ".png":
        return save_image(strip({"": pixels}), path, parameters)
    if parameters is not None:
        raise ValueError(f"{path} cannot hold what made it; give a name that ends in .png")
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
    """The path, if :func:`save` can write there: asked before what is to be saved takes its time.

    Raises:
        ValueError: another kind of file, or frames a second that it cannot have.
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in FASTEST:
        raise ValueError(f"{path} must end in .mp4, .gif or .png")
    if not 0 < fps <= FASTEST[kind]:
        raise ValueError(f"fps is {fps:g}; {path} takes more than 0 and at most {FASTEST[kind]:g}")
    return path


def _write_mp4(frames: UInt8[np.ndarray, "t h w 3"], path: Path, fps: float | int) -> None:
    import av  # not through imageio, which collects garbage twice a file: seconds where much is loaded

    even = np.pad(frames, ((0, 0), *((0, side % 2) for side in frames.shape[1:3]), (0, 0)), mode="edge")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": CRF})
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"  # what every player plays
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def to_frames(pixels: Float[Tensor, "c t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """Clip to [-1, 1], scale to 0-255, round; grey becomes RGB."""
    frames = to_uint8(pixels.transpose(0, 1))
    return np.repeat(frames, 3, axis=3) if frames.shape[3] == 1 else frames


def strip(rows: Mapping[str, Float[Tensor, "c _ h w"]], every: int = 1, scale: int | None = None) -> Image.Image:
    """Clips of one frame size below each other, their frames side by side, named at the left of each row.

    Rows end together: of a prediction, fewer frames than of the truth, the place of the context is left white.

    Args:
        every: show every which frame, counted from the last.
        scale: as in :func:`maskgen.images.grid`.

    Raises:
        ValueError: no rows, or frames of several sizes.
    """
    sizes = {tuple(clip.shape[2:]) for clip in rows.values()}
    if len(sizes) != 1 or every < 1:
        raise ValueError(f"a strip is of rows of one frame size and `every` of at least 1; got sizes {sizes}, {every}")
    length = max(clip.shape[1] for clip in rows.values())
    frames = []
    for clip in rows.values():
        colour = clip.detach().float().cpu().expand(3, -1, -1, -1) if len(clip) == 1 else clip.detach().float().cpu()
        white = colour.new_ones(3, length - clip.shape[1], *clip.shape[2:])
        frames.append(torch.cat([white, colour], dim=1).flip(1)[:, ::every].flip(1).transpose(0, 1))
    names = list(rows) if any(rows) else None
    return grid(torch.cat(frames), columns=len(frames[0]), scale=scale, row_names=names)
