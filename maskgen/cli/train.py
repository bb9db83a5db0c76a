"""Commands that train: `train` and `quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[str, typer.Argument(help="a YAML file, or its name in configs/")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="settings to change")] = None,
) -> None:
    """Train a tokenizer or a transformer. The same command resumes from the newest checkpoint."""
    from maskgen.training.run import run_config

    print(run_config(config, overrides or []))


def quickstart(
    out: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs/quickstart"),
) -> None:
    """Train a tokenizer and a transformer on the bundled images, generate, evaluate: minutes on two CPU cores."""
    from maskgen.quickstart import quickstart as start

    print(start(out))
