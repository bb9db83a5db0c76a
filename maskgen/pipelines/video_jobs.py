"""Video tasks from files to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maskgen.pipelines.generate import class_label, pick_device
from maskgen.pipelines.video import MaskedVideoPipeline
from maskgen.pipelines.video_inputs import VideoReader, open_video
from maskgen.registry import choose
from maskgen.tasks.masks import box_mask
from maskgen.videos import check_output, save

# Task -> the settings that only this task takes.
EDITS = {"interpolate": ("video_2",), "inpaint": ("mask", "box"), "outpaint": ("sides", "before", "after")}
FPS = 10.0  # frame rate of results that are made from images and arrays


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
    fps: float | int | None = None,
    device: str = "auto",
    stride: int = 1,
) -> list[Path]:
    """Predict the frames that follow a video, and write the context frames and the predicted frames.

    Args:
        model: run, pipeline folder or Hub name.
        video: as in :func:`maskgen.pipelines.video_inputs.open_video`; frames are cropped and resized for the model.
        frames: number of frames to predict; it may exceed the trained length.
        context: number of last frames that the model sees; None is the trained length less one, or all if fewer.
        count: number of results; if there are several, a number is added to the name of each.
        class_name: name or number of a class; None is no class.
        actions: an .npy file of floats (context + frames, a), for a model with actions.
        steps, guidance: decode steps and guidance scale; None uses the pipeline's defaults.
        seed: result i has seed + i.
        out: an ``.mp4`` or ``.gif`` file, or a ``.png`` file for a strip of frames.
        fps: frames per second of the result; None is the rate of the frames taken, or 10 if the rate is unknown.
        device: ``auto``, ``cpu``, ``cuda``, ...
        stride: take every n-th frame, counted back from the last; it should match the model's data.

    Returns:
        The paths of the files.

    Raises:
        ValueError: the video cannot be read or has fewer frames than the context; or what the pipeline raises.
    """
    footage = open_video(video)
    held = len(_rows(footage, stride))
    check_output(out, rate := _rate(footage, stride, fps))
    if context is not None and not 1 <= context <= held:
        taken = f" (stride {stride})" if stride > 1 else ""
        raise ValueError(f"context is {context}, but {video} has {held} frames{taken}; give 1 to {held}")
    given = None if actions is None else _read_actions(actions)
    pipeline: Any = MaskedVideoPipeline.from_pretrained(model).to(pick_device(device))
    trained, height, width = pipeline.size
    context = min(held, max(1, trained - 1)) if context is None else context
    rows = [footage.length - 1 - stride * i for i in reversed(range(context))]
    made = pipeline.predict(
        footage.clip(rows, (height, width), pipeline.vqvae.channels)[None],
        frames,
        actions=given,
        **_settings(pipeline, class_name, count, steps, guidance, seed),
    )
    return _saved(made, out, rate)


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
    fps: float | int | None = None,
    device: str = "auto",
    before: int = 0,
    after: int = 0,
    stride: int = 1,
) -> list[Path]:
    """Interpolate between two videos, inpaint a video or outpaint it, and write the whole result.

    Args:
        task: a name of :data:`EDITS`; settings of another task are an error.
        model: run, pipeline folder or Hub name.
        video: as in :func:`predict_video`. A model of several tasks outpaints to its trained size, so the frames are
            resized to that size less `sides`.
        video_2: for ``interpolate``, the video or image at the end of the result.
        mask, box: for ``inpaint``, one of the two: a mask image of the video's size, whose white pixels are replaced;
            or left, top, right, bottom in pixels of the model's frames.
        sides: for ``outpaint``, pixels to add on the left, top, right and bottom.
        frames: for ``interpolate``, the number of frames between; None fills the trained length. For the other tasks,
            the number of first frames to take; None takes all.
        before, after: for ``outpaint``, frames to add before and after the video.
        count, class_name, steps, guidance, seed, out, fps, device: as in :func:`predict_video`.
        stride: take every n-th frame.

    Returns:
        The paths of the files.

    Raises:
        ValueError: the task is unknown, lacks a setting or does not take one; a file cannot be read; or what the
            pipeline raises.
    """
    own = choose(EDITS, task, "task")
    given = {"video_2": video_2, "mask": mask, "box": box, "sides": any(sides), "before": before, "after": after}
    if foreign := [name for name, value in given.items() if name not in own and value]:
        raise ValueError(f"{task} does not take {', '.join(foreign)}; it takes {', '.join(own)}")
    if task == "interpolate" and video_2 is None:
        raise ValueError("interpolate needs a second video or image at the end; give video_2")
    if task == "inpaint" and (mask is None) == (box is None):
        raise ValueError("inpaint needs a mask or a box for the part to replace; give one of the two")
    footage = open_video(video)
    check_output(out, rate := _rate(footage, stride, fps))
    pipeline: Any = MaskedVideoPipeline.from_pretrained(model).to(pick_device(device))
    trained, height, width = pipeline.size
    settings = _settings(pipeline, class_name, count, steps, guidance, seed)
    left, top, right, bottom = sides
    size = (height - top - bottom, width - left - right) if pipeline.prompts is not None else (height, width)
    if min(size) < 1:
        raise ValueError(
            f"sides {tuple(sides)} leave no pixels of the model's {height}x{width} frames (h x w); give less"
        )
    rows, channels = _rows(footage, stride)[: None if task == "interpolate" else frames], pipeline.vqvae.channels
    clip = footage.clip(rows, size, channels)[None]
    if task == "interpolate":
        end = open_video(video_2)  # type: ignore[arg-type]
        last = end.clip(_rows(end, stride), size, channels)[None]
        between = max(1, trained - clip.shape[2] - last.shape[2]) if frames is None else frames
        return _saved(pipeline.interpolate(clip, last, between, **settings), out, rate)
    if task == "outpaint":
        return _saved(pipeline.outpaint(clip, left, top, right, bottom, before, after, **settings), out, rate)
    hole = box_mask(size, box) if box is not None else footage.hole(mask, size)  # type: ignore[arg-type]
    return _saved(pipeline.inpaint(clip, hole.expand(clip.shape[2], -1, -1), **settings), out, rate)


def _rows(footage: VideoReader, stride: int) -> range:
    if stride < 1:
        raise ValueError(f"stride is {stride}; give 1 or more")
    return range(0, footage.length, stride)


def _rate(footage: VideoReader, stride: int, fps: float | int | None) -> float | int:
    """The frame rate of the result."""
    if fps is not None:
        return fps
    return FPS if footage.fps is None else footage.fps / stride


def _read_actions(file: str | Path) -> Float[Tensor, "..."]:
    try:
        actions = np.load(file, allow_pickle=False)
        return torch.from_numpy(actions.astype(np.float32))
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise ValueError(f"{file} is not an .npy file of actions (context + frames, a): {error}") from error


def _settings(
    pipeline: Any, class_name: str | None, count: int, steps: int | None, guidance: float | None, seed: int
) -> dict[str, Any]:
    """The arguments that all methods of the pipeline share."""
    return {
        "class_labels": None if class_name is None else class_label(pipeline, class_name),
        "num_videos_per_prompt": count,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": [torch.Generator().manual_seed(seed + i) for i in range(count)],
        "output_type": "pixels",
    }


def _saved(made: Any, out: str | Path, fps: float | int) -> list[Path]:
    """Write one file per result, with a number in the name if there are several."""
    videos, path = made.frames.cpu(), Path(out)
    names = [path if len(videos) == 1 else path.with_stem(f"{path.stem}_{i:03d}") for i in range(len(videos))]
    return [save(pixels, name, fps) for pixels, name in zip(videos, names)]
