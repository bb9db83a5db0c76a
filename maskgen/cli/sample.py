"""Commands that generate images: `sample` and `batch`; and `parameters`, which reads what made an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskgen.cli.options import IMAGE_MODEL, Device, Guidance, Image, Model, Seed, Steps, TraceFile


def sample(
    model: Annotated[str | None, typer.Argument(help=IMAGE_MODEL)] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="name or number of a class; repeat for more; the default is 16 classes"),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="images per class")] = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="folder for the images and grid.png")] = Path("samples"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Generate images."""
    from maskgen.pipelines.generate import generate, load

    print(generate(load(model, device), classes, count, steps, guidance, seed, out, trace=trace, model=model))


def batch(
    table: Annotated[
        Path, typer.Argument(help="CSV with the columns image, mask, box, class, seed, task, ...; see docs/editing.md")
    ],
    out: Annotated[Path, typer.Option(help="folder for the images")] = Path("batch"),
    task: Annotated[str, typer.Option(help="task of the rows that do not name one")] = "inpaint",
    model: Model = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="folder for a .gif of each row's decode steps")
    ] = None,
    device: Device = "auto",
) -> None:
    """Run one task per row of a CSV. Rows that fail are reported after the last row."""
    from maskgen.pipelines.generate import load
    from maskgen.pipelines.jobs import run_table

    count = run_table(load(model, device), table, out, task, trace, model)
    print(f"{count} images in {out}")


def parameters(image: Image) -> None:
    """Print the task and the settings that made an image of maskgen."""
    import json

    from maskgen.images import parameters_of

    print(json.dumps(parameters_of(image), indent=2))
