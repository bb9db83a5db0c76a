"""Videos from files to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from maskgen.data.pixels import fit
from maskgen.parts import choose
from maskgen.pipelines.generate import class_label, pick_device
from maskgen.pipelines.inputs import pictures_of
from maskgen.pipelines.video import MaskedVideoPipeline
from maskgen.tasks.masks import box_mask
from maskgen.videos import save

EDITS = ("interpolate", "inpaint", "outpaint")


def predict_video(
    model: str | Path,
    video: str | Path,
    frames: int,
    context: int | None = None,
    count: int = 1,
    class_name: str | None = None,
    actions: str | Path | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: str | Path = "predicted.mp4",
    fps: int = 10,
    device: str = "auto",
) -> list[Path]:
    """Go on from the last frames of a video, and write the context and what follows; give the files' paths.

    Args:
        model: run, pipeline folder or Hub name.
        video: a file; its frames are cropped and resized to the model's.
        frames: to predict, any number.
        context: how many of the last frames the model sees; all, but one fewer than it was trained on, where None.
        count: results, each with its own seed; numbers are added to the name where there are several.
        actions: an .npy of float (context + frames, a), where the model reads them.
        seed: result i has seed + i.
        out: ``.mp4``, ``.gif``, or ``.png`` for a strip of frames.

    Raises:
        ValueError: a file that is no video, fewer frames than the context; what the pipeline raises.
    """
    pipeline: Any = MaskedVideoPipeline.from_pretrained(model).to(pick_device(device))
    trained, height, width = pipeline.size
    clip = read_clip(video, (height, width), pipeline.tokenizer.channels)
    context = min(clip.shape[1], max(1, trained - 1)) if context is None else context
    if not 1 <= context <= clip.shape[1]:
        raise ValueError(f"context {context} of {video}, which has {clip.shape[1]} frames; give 1 to {clip.shape[1]}")
    made = pipeline.predict(
        clip[None, :, -context:],
        frames,
        actions=None if actions is None else torch.from_numpy(np.load(actions)).float(),
        **_settings(pipeline, class_name, count, steps, guidance, seed),
    )
    return _saved(made, out, fps)


def edit_video(
    task: str,
    model: str | Path,
    video: str | Path,
    video_2: str | Path | None = None,
    mask: str | Path | None = None,
    box: Sequence[int] | None = None,
    sides: Sequence[int] = (0, 0, 0, 0),
    frames: int | None = None,
    count: int = 1,
    class_name: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: str | Path = "edited.mp4",
    fps: int = 10,
    device: str = "auto",
) -> list[Path]:
    """Interpolate, inpaint or outpaint, and write the whole video; give the files' paths.

    Args:
        task: one of :data:`EDITS`.
        model: run, pipeline folder or Hub name.
        video: a file, of a picture too; its frames are cropped and resized to the model's. Those of a model of several
            tasks are outpainted to its size, so they are made as much smaller.
        video_2: of ``interpolate``, what comes behind.
        mask, box: of ``inpaint``, one of both: a picture of the video's size, white is drawn anew; or left, top, right,
            bottom in the model's pixels.
        sides: of ``outpaint``: pixels to add left, top, right and below.
        frames: of ``interpolate`` how many lie between, as many as fill the trained length where None; of the others
            how many of the video's first are taken, all where None.
        count, seed, out: as of :func:`predict_video`.

    Raises:
        ValueError: an unknown task, or what it needs is not given; a file that is no video or picture; what the
            pipeline raises.
    """
    choose(dict.fromkeys(EDITS), task, "task")
    pipeline: Any = MaskedVideoPipeline.from_pretrained(model).to(pick_device(device))
    trained, height, width = pipeline.size
    settings = _settings(pipeline, class_name, count, steps, guidance, seed)
    left, top, right, bottom = sides if task == "outpaint" else (0, 0, 0, 0)
    size = (height - top - bottom, width - left - right) if pipeline.prompts is not None else (height, width)
    if min(size) < 1:
        raise ValueError(f"sides {tuple(sides)} leave nothing of the model's frames of {height}x{width} pixels (h x w)")
    clip = read_clip(video, size, pipeline.tokenizer.channels)[None]
    if task == "interpolate":
        if video_2 is None:
            raise ValueError("interpolate needs a second video, or picture, to end with; give video_2")
        last = read_clip(video_2, size, pipeline.tokenizer.channels)[None]
        between = max(1, trained - clip.shape[2] - last.shape[2]) if frames is None else frames
        return _saved(pipeline.interpolate(clip, last, between, **settings), out, fps)
    clip = clip[:, :, :frames]
    if task == "outpaint":
        return _saved(pipeline.outpaint(clip, left, top, right, bottom, **settings), out, fps)
    if (mask is None) == (box is None):
        raise ValueError("inpaint needs a mask, or a box: what is to be drawn anew; give one of both")
    hole = box_mask(size, box) if mask is None else read_clip(mask, size, 1)[0, 0] >= 0  # type: ignore[arg-type]
    return _saved(pipeline.inpaint(clip, hole.expand(clip.shape[2], -1, -1), **settings), out, fps)


def _settings(
    pipeline: Any, class_name: str | None, count: int, steps: int | None, guidance: float | None, seed: int
) -> dict[str, Any]:
    """What all methods are told."""
    return {
        "class_labels": None if class_name is None else class_label(pipeline, class_name),
        "num_videos_per_prompt": count,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": [torch.Generator().manual_seed(seed + i) for i in range(count)],
        "output_type": "pt",
    }


def _saved(made: Any, out: str | Path, fps: int) -> list[Path]:
    """A file a result, numbered where there are several."""
    videos, path = made.frames.transpose(1, 2).cpu() * 2 - 1, Path(out)
    names = [path if len(videos) == 1 else path.with_stem(f"{path.stem}_{i:03d}") for i in range(len(videos))]
    return [save(pixels, name, fps) for pixels, name in zip(videos, names)]


def read_clip(path: str | Path, size: tuple[int, int], channels: int) -> Float[Tensor, "c t h w"]:
    """All frames of a video file in [-1, 1], cropped and resized to `size`.

    Raises:
        ValueError: none can be read.
    """
    try:
        frames = [Image.fromarray(frame) for frame in imageio.imiter(path)]
    except Exception as error:  # each of imageio's plugins raises its own
        raise ValueError(f"cannot read a video from {path}: {error}") from error
    if not frames:
        raise ValueError(f"{path} has no frames")
    return torch.stack(pictures_of([fit(frame, size) for frame in frames], channels), 1)
