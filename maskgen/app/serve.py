"""`maskgen app`: the page, served on this machine, offline, without telemetry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

# Gradio reads these variables when it is imported.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def serve(models: Sequence[str] = (), host: str = "127.0.0.1", port: int = 7860, device: str = "auto") -> None:
    """Serve the page until the process is stopped.

    Args:
        models: runs, pipeline folders or Hub names to offer with the bundled pipeline.
        host: address to listen on; 127.0.0.1 accepts connections from this machine only.
        port: port of the page.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        ValueError: Gradio is not installed, or the port is taken.
        OSError: there is no pipeline at a path.
    """
    os.environ |= QUIET
    with TemporaryDirectory(prefix="maskgen-app-") as folder:  # uploads and results; removed at the end
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise ValueError(f"the page needs Gradio: pip install 'maskgen[app]' ({error})") from error
        from maskgen.app.models import Models
        from maskgen.app.page import launch

        launch(Models(models, device), Path(folder), host, port)
