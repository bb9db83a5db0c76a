"""Videos from files to files."""

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

EDITS = {"interpolate": ("video_2",), "inpaint": ("mask", "box"), "outpaint": ("sides", "before", "after")}
FPS = 10.0  # of what is made from images and arrays


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
    """Go on from the last frames of a video, and write the context and what follows; give the files' paths.

    Args:
        model: run, pipeline folder or Hub name.
        video: see :func:`maskgen.pipelines.video_inputs.open_video`; frames are cropped and resized to the model's.
        frames: to predict, any number.
        context: how many of the last frames the model sees; all, but one fewer than it was trained on, where None.
        count: results, each with its own seed; numbers are added to the name where there are several.
        actions: an .npy of float (context + frames, a), where the model reads them.
        seed: result i has seed + i.
        out: ``.mp4``, ``.gif``, or ``.png`` for a strip of frames.
        fps: frames a second of what is written; those of the frames taken, or 10 where nothing tells, where None.
        stride: every which frame is taken, back from the last: that of the model's data.

    Raises:
        ValueError: no video that can be read, fewer frames than the context; what the pipeline raises.
    """
    footage = open_video(video)
    held = len(_rows(footage, stride))
    check_output(out, rate := _rate(footage, stride, fps))
    if context is not None and not 1 <= context <= held:
        taken = f" (stride {stride})" if stride > 1 else ""
        raise ValueError(f"context {context} of {video}, which has {held} frames{taken}; give 1 to {held}")
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
    """Interpolate, inpaint or outpaint, and write the whole video; give the files' paths.

    Args:
        task: one of :data:`EDITS`; what is of another is refused.
        model: run, pipeline folder or Hub name.
        video: as of :func:`predict_video`. The frames of a model of several tasks are outpainted to its size, so they
            are made as much smaller.
        video_2: of ``interpolate``, what comes behind.
        mask, box: of ``inpaint``, one of both: an image of the video's size, white is drawn anew; or left, top, right,
            bottom in the model's pixels.
        sides: of ``outpaint``: pixels to add left, top, right and below; before, after: frames.
        frames: of ``interpolate`` how many lie between, as many as fill the trained length where None; of the others
            how many of the video's first are taken, all where None.
        count, seed, out, fps: as of :func:`predict_video`.
        stride: every which frame is taken.

    Raises:
        ValueError: an unknown task, what it needs is not given, or what is of another is; no video or image that can
            be read; what the pipeline raises.
    """
    own = choose(EDITS, task, "task")
    given = {"video_2": video_2, "mask": mask, "box": box, "sides": any(sides), "before": before, "after": after}
    if foreign := [name for name, value in given.items() if name not in own and value]:
        raise ValueError(f"{task} does not take {', '.join(foreign)}; it takes {', '.join(own)}")
    if task == "interpolate" and video_2 is None:
        raise ValueError("interpolate needs a second video, or image, to end with; give video_2")
    if task == "inpaint" and (mask is None) == (box is None):
        raise ValueError("inpaint needs a mask, or a box: what is to be drawn anew; give one of both")
    footage = open_video(video)
    check_output(out, rate := _rate(footage, stride, fps))
    pipeline: Any = MaskedVideoPipeline.from_pretrained(model).to(pick_device(device))
    trained, height, width = pipeline.size
    settings = _settings(pipeline, class_name, count, steps, guidance, seed)
    left, top, right, bottom = sides
    size = (height - top - bottom, width - left - right) if pipeline.prompts is not None else (height, width)
    if min(size) < 1:
        raise ValueError(f"sides {tuple(sides)} leave nothing of the model's frames of {height}x{width} pixels (h x w)")
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
    """Frames a second of what is made."""
    if fps is not None:
        return fps
    return FPS if footage.fps is None else footage.fps / stride


def _read_actions(file: str | Path) -> Float[Tensor, "..."]:
    try:
        actions = np.load(file, allow_pickle=False)
        return torch.from_numpy(actions.astype(np.float32))
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise ValueError(f"{file} is no .npy file of actions (context + frames, a): {error}") from error


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
        "output_type": "pixels",
    }


def _saved(made: Any, out: str | Path, fps: float | int) -> list[Path]:
    """A file a result, numbered where there are several."""
    videos, path = made.frames.cpu(), Path(out)
    names = [path if len(videos) == 1 else path.with_stem(f"{path.stem}_{i:03d}") for i in range(len(videos))]
    return [save(pixels, name, fps) for pixels, name in zip(videos, names)]
