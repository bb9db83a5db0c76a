"""Commands that generate videos: `predict-video` and `edit-video`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskgen.cli.options import (
    Class,
    Count,
    Device,
    Fps,
    Guidance,
    Seed,
    Steps,
    Stride,
    VideoFile,
    VideoModel,
    VideoOut,
)

Sides = tuple[int, int, int, int]


def predict_video(
    model: VideoModel,
    video: VideoFile,
    frames: Annotated[
        int, typer.Option(min=1, help="number of frames to predict; it may exceed the trained length")
    ] = 16,
    context: Annotated[
        int | None, typer.Option(min=1, help="number of last frames that the model sees; the default is its maximum")
    ] = None,
    count: Count = 1,
    class_name: Class = None,
    actions: Annotated[
        Path | None, typer.Option(help=".npy file of shape (context + frames, a), for a model with actions")
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: VideoOut = Path("predicted.mp4"),
    fps: Fps = None,
    device: Device = "auto",
    stride: Stride = 1,
) -> None:
    """Predict the frames that follow a video."""
    from maskgen.pipelines.video_jobs import predict_video as run

    paths = run(
        model,
        video,
        frames,
        context,
        count=count,
        class_name=class_name,
        actions=actions,
        steps=steps,
        guidance=guidance,
        seed=seed,
        out=out,
        fps=fps,
        device=device,
        stride=stride,
    )
    for path in paths:
        print(path)


def edit_video(
    task: Annotated[str, typer.Argument(help="interpolate, inpaint or outpaint")],
    model: VideoModel,
    video: VideoFile,
    video_2: Annotated[
        Path | None, typer.Argument(help="interpolate: the video or image at the end of the result")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="inpaint: mask image of the video's size; white pixels are replaced")
    ] = None,
    box: Annotated[
        Sides | None, typer.Option(help="inpaint: left, top, right, bottom in pixels of the model's frames")
    ] = None,
    sides: Annotated[Sides, typer.Option(help="outpaint: pixels to add on the left, top, right and bottom")] = (
        0,
        0,
        0,
        0,
    ),
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="interpolate: number of frames between; other tasks: number of first frames to take"),
    ] = None,
    count: Count = 1,
    class_name: Class = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: VideoOut = Path("edited.mp4"),
    fps: Fps = None,
    device: Device = "auto",
    before: Annotated[int, typer.Option(min=0, help="outpaint: number of frames to add before the video")] = 0,
    after: Annotated[int, typer.Option(min=0, help="outpaint: number of frames to add after the video")] = 0,
    stride: Stride = 1,
) -> None:
    """Interpolate between two videos, replace a part of a video, or extend a video in space or time."""
    from maskgen.pipelines.video_jobs import edit_video as run

    paths = run(
        task,
        model,
        video,
        video_2,
        mask=mask,
        box=box,
        sides=sides,
        frames=frames,
        count=count,
        class_name=class_name,
        steps=steps,
        guidance=guidance,
        seed=seed,
        out=out,
        fps=fps,
        device=device,
        before=before,
        after=after,
        stride=stride,
    )
    for path in paths:
        print(path)
