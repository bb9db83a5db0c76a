"""Prediction from files to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from maskgen.data.pixels import fit
from maskgen.pipelines.generate import class_label, pick_device
from maskgen.pipelines.inputs import pictures_of
from maskgen.pipelines.video import MaskedVideoPipeline
from maskgen.videos import save


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
        clip[None, :, -context:].expand(count, -1, -1, -1, -1),
        frames,
        class_labels=None if class_name is None else class_label(pipeline, class_name),
        actions=None if actions is None else torch.from_numpy(np.load(actions)).float(),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(count)],
        output_type="pt",
    ).frames.transpose(1, 2)
    path = Path(out)
    names = [path if count == 1 else path.with_stem(f"{path.stem}_{i:03d}") for i in range(count)]
    return [save(pixels * 2 - 1, name, fps) for pixels, name in zip(made.cpu(), names)]


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
