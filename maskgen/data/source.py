"""A data set from what a user types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml

from maskgen.config import ConfigError, check
from maskgen.data import DATASETS
from maskgen.parts import Part, build

DATA = Part(DATASETS)


def open_dataset(text: str, size: int | None = None) -> Any:
    """The data set that `text` names.

    Args:
        text: a data set's name (``emoji``), a folder of pictures, an ``.npz`` file, a run (its own data), or a YAML
            mapping (``{type: emoji, classes: [flags]}``).
        size: side of the pictures, where `text` leaves it open.

    Raises:
        ConfigError: nothing of that name, or a folder without a size.
    """
    path = Path(text).expanduser()
    if (path / "config.yaml").is_file():
        spec = yaml.safe_load((path / "config.yaml").read_text())["data"]
    elif path.is_dir():
        if size is None:
            raise ConfigError(text, ["a folder of pictures needs a size: --size 256"])
        spec = {"type": "image_folder", "path": str(path), "size": size}
    elif path.suffix == ".npz":
        spec = {"type": "npz", "path": str(path), "size": size}
    else:
        spec = yaml.safe_load(text)
        if isinstance(spec, str) and size is not None:
            spec = {"type": spec, "size": size}
    return build(DATA, check(_holder, {"data": spec}, text)["data"])


def _holder(data: Annotated[Any, DATA]) -> None:
    """A signature to check against."""
