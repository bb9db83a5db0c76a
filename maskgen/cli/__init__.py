"""The command `maskgen`. It holds no logic: each command imports what it needs when it runs and calls one function."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import typer

from maskgen.cli import data, edit, evaluate, page, probe, sample, tokenizer, train, video
from maskgen.cli.group import Group

# Command -> function, in the order of `maskgen --help`.
COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "sample": sample.sample,
    "inpaint": edit.inpaint,
    "outpaint": edit.outpaint,
    "edit": edit.edit,
    "vary": edit.vary,
    "interpolate": edit.interpolate,
    "join": edit.join,
    "batch": sample.batch,
    "parameters": sample.parameters,
    "predict-video": video.predict_video,
    "edit-video": video.edit_video,
    "reconstruct": tokenizer.reconstruct,
    "encode": tokenizer.encode,
    "probe": probe.probe,
    "features": probe.features,
    "visualise": probe.visualise,
    "evaluate": evaluate.evaluate,
    "fid": evaluate.fid,
    "evaluate-video": evaluate.evaluate_video,
    "app": page.page,
    "quickstart": train.quickstart,
}
MAKE_DATA: dict[str, Callable[..., None]] = {"moving-mnist": data.moving_mnist, "simulator": data.simulator}

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Masked generative image and video models: train, sample, edit, evaluate.",
)
make_data = typer.Typer(no_args_is_help=True, help="Write a video data set. Equal seeds write equal bytes.")
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
for _name, _command in MAKE_DATA.items():
    make_data.command(_name)(_command)
app.add_typer(make_data, name="make-data")


def main() -> None:
    """Run a command. A user error is printed as one message; `--debug` anywhere on the line shows the traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    debug = "--debug" in sys.argv
    try:
        app([argument for argument in sys.argv[1:] if argument != "--debug"])
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if debug:
            raise
        sys.exit(f"maskgen: {error}")
