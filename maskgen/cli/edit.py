"""Commands that edit images. Each loads the pipeline and hands its settings to `maskgen.pipelines.jobs.run_task`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from maskgen.cli.options import (
    Class,
    Count,
    Device,
    Dilation,
    Feather,
    Guidance,
    Image,
    Model,
    Out,
    Overlap,
    Seed,
    Steps,
    TraceFile,
)

PixelsToAdd = Annotated[int, typer.Option(help="pixels to add")]


def inpaint(
    image: Image,
    mask: Annotated[Path, typer.Argument(help="mask of the image's size; white pixels are replaced")],
    class_name: Class = None,
    model: Model = None,
    count: Count = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    dilation: Dilation = "0",
    crop: Annotated[
        int | None, typer.Option(help="show the model only the hole and this many pixels around it")
    ] = None,
    feather: Feather = None,
    seed: Seed = 0,
    out: Out = Path("inpainted.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Replace what a mask hides. The other pixels do not change."""
    from maskgen.pipelines.generate import load
    from maskgen.pipelines.jobs import run_task

    settings: dict[str, Any] = {"image": image, "mask": mask, "class": class_name, "dilation": dilation, "crop": crop}
    settings |= {"feather": feather, "count": count, "steps": steps, "guidance": guidance}
    for path in run_task(load(model, device), "inpaint", settings, out, seed, trace, model):
        print(path)


def outpaint(
    image: Image,
    left: PixelsToAdd = 0,
    top: PixelsToAdd = 0,
    right: PixelsToAdd = 0,
    bottom: PixelsToAdd = 0,
    class_name: Class = None,
    model: Model = None,
    count: Count = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    dilation: Dilation = "0",
    overlap: Overlap = None,
    feather: Feather = None,
    seed: Seed = 0,
    out: Out = Path("outpainted.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Extend an image on any side. The result may be larger than the trained size."""
    from maskgen.pipelines.generate import load
    from maskgen.pipelines.jobs import run_task

    settings: dict[str, Any] = {"image": image, "left": left, "top": top, "right": right, "bottom": bottom}
    settings |= {"class": class_name, "dilation": dilation, "overlap": overlap, "feather": feather}
    settings |= {"count": count, "steps": steps, "guidance": guidance}
    for path in run_task(load(model, device), "outpaint", settings, out, seed, trace, model):
        print(path)


def edit(
    image: Image,
    class_name: Annotated[str, typer.Option("--class", help="name or number of the new class")],
    box: Annotated[
        str | None,
        typer.Option(help="region in pixels; the right and bottom pixels are outside", metavar="LEFT,TOP,RIGHT,BOTTOM"),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="mask instead of a box; white pixels are replaced")] = None,
    grow: Annotated[int, typer.Option(help="tokens by which the region grows on every side")] = 1,
    model: Model = None,
    count: Count = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    feather: Feather = None,
    seed: Seed = 0,
    out: Out = Path("edited.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Change the class of a box or of a masked region."""
    from maskgen.pipelines.generate import load
    from maskgen.pipelines.jobs import run_task

    settings: dict[str, Any] = {"image": image, "class": class_name, "box": box, "mask": mask, "grow": grow}
    settings |= {"feather": feather, "count": count, "steps": steps, "guidance": guidance}
    for path in run_task(load(model, device), "edit", settings, out, seed, trace, model):
        print(path)


def vary(
    image: Image,
    strength: Annotated[float, typer.Option(help="share of the tokens that are replaced, 0 to 1")] = 0.5,
    class_name: Class = None,
    model: Model = None,
    count: Count = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: Out = Path("varied.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Generate variations of an image."""
    from maskgen.pipelines.generate import load
    from maskgen.pipelines.jobs import run_task

    settings: dict[str, Any] = {"image": image, "strength": strength, "class": class_name}
    settings |= {"count": count, "steps": steps, "guidance": guidance}
    for path in run_task(load(model, device), "vary", settings, out, seed, trace, model):
        print(path)


def interpolate(
    image: Image,
    image_2: Annotated[Path, typer.Argument(help="image of the last frame")],
    frames: Annotated[int, typer.Option(help="number of frames, including both images")] = 8,
    strength: Annotated[
        float, typer.Option(help="share of the tokens that are replaced in the middle frame, 0 to 1")
    ] = 0.5,
    class_name: Class = None,
    model: Model = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(help="random seed of all frames")] = 0,
    out: Annotated[Path, typer.Option(help="the .png files to write; a number is added for each frame")] = Path(
        "interpolated.png"
    ),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Generate frames that lead from one image to another."""
    from maskgen.pipelines.generate import load
    from maskgen.pipelines.jobs import run_task

    settings: dict[str, Any] = {"image": image, "image_2": image_2, "frames": frames, "strength": strength}
    settings |= {"class": class_name, "steps": steps, "guidance": guidance}
    for path in run_task(load(model, device), "interpolate", settings, out, seed, trace, model):
        print(path)


def join(
    image: Image,
    image_2: Annotated[Path, typer.Argument(help="image on the right")],
    gap: Annotated[int, typer.Option(help="pixels to generate between the images, at the model's height")],
    keep: Annotated[int | None, typer.Option(help="pixels to keep of each image; the default is all")] = None,
    class_name: Class = None,
    model: Model = None,
    count: Count = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    overlap: Overlap = None,
    feather: Feather = None,
    seed: Seed = 0,
    out: Out = Path("joined.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Join two images side by side. The model generates the part between them."""
    from maskgen.pipelines.generate import load
    from maskgen.pipelines.jobs import run_task

    settings: dict[str, Any] = {"image": image, "image_2": image_2, "gap": gap, "keep": keep, "class": class_name}
    settings |= {"overlap": overlap, "feather": feather, "count": count, "steps": steps, "guidance": guidance}
    for path in run_task(load(model, device), "join", settings, out, seed, trace, model):
        print(path)
