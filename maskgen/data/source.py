"""Opens the data set that a user names on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from maskgen.config import ConfigError, check, parse
from maskgen.data import DATASETS
from maskgen.data.images import ImageFiles
from maskgen.registry import Part, build

DATA = Part(DATASETS)


def open_dataset(text: str, size: int | None = None) -> Any:
    """The data set that `text` names.

    Args:
        text: the name of a data set (``emoji``), a folder of images or of tar shards, a .zip of images, shards
            (``a.tar``, ``train-*.tar``, ``train-{000..012}.tar``), an ``.npz`` file, a run (its own data), or a YAML
            mapping (``{type: emoji, classes: [flags]}``).
        size: side of the images, if `text` does not give it.

    Raises:
        ConfigError: nothing has that name, files have no size, or the data are codes already.
    """
    path = Path(text).expanduser()
    problems: list[str] = []
    if text.lstrip().startswith("{"):
        spec, problems = parse(text)
    elif (path / "config.yaml").is_file():
        spec = _data_of_run(path / "config.yaml")
    elif path.is_dir() or path.suffix in (".tar", ".zip"):
        shards = path.suffix == ".tar" or any(path.glob("*.tar"))
        if size is None:
            what = "shards need" if shards else "a folder of images needs" if path.is_dir() else "a .zip file needs"
            raise ConfigError(text, [f"{what} a size: --size 256"])
        spec = {"type": "tar_shards" if shards else "image_folder", "path": str(path), "size": size}
    elif path.suffix == ".npz":
        spec = {"type": "npz", "path": str(path), "size": size}
    elif path.is_file():
        raise ConfigError(text, ["a file of images must be .npz, .tar or .zip; give others as {type: idx, ...}"])
    elif "/" in text:
        raise ConfigError(text, ["no such file or folder"])
    else:
        spec = text if size is None else {"type": text, "size": size}
    if problems:
        raise ConfigError(text, problems)
    spec = check(_holder, {"data": spec}, text)["data"]
    if spec["type"] == "tokens":
        raise ConfigError(text, ["its data are codes already; name the images with --data"])
    return build(DATA, spec)


def open_files_or_dataset(
    files: Sequence[str] | None, data: str | None, tokenizer: str, size: int | None, channels: int
) -> Any:
    """Image files (each at its own size if `size` is None), or the data set `data`, or that of the run `tokenizer`.

    Raises:
        ConfigError: files and data are both given; see also :func:`open_dataset`.
        ValueError: a file does not exist.
    """
    if not files:
        return open_dataset(data or tokenizer, size)
    if data is not None:
        raise ConfigError(data, [f"image files ({files[0]}) are given too; give one or the other"])
    return ImageFiles(files, size, channels)


def _data_of_run(file: Path) -> Any:
    config, problems = parse(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or "data" not in config:
        raise ConfigError(str(file), problems or ["names no data; is this a run of maskgen?"])
    return config["data"]


def _holder(data: Annotated[Any, DATA]) -> None:
    """The signature that a data set is checked against."""
