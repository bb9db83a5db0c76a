"""The command `app`, which serves the web page."""

from __future__ import annotations

from typing import Annotated

import typer

from maskgen.cli.options import Device


def page(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="runs, pipeline folders or Hub names to offer with the bundled model"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="127.0.0.1 accepts connections from this machine only, 0.0.0.0 from all machines")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the page")] = 7860,
    device: Device = "auto",
) -> None:
    """Serve a web page on this machine: generate, paint and inpaint, watch the decode steps."""
    from maskgen.app.serve import serve

    serve(models or [], host, port, device)
