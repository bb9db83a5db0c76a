"""Opens what a user gives as a source: a path, a data set, or images in memory."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from maskgen.data import DATASETS
from maskgen.data.source import open_dataset
from maskgen.evaluation.fid.image_files import of_files
from maskgen.evaluation.fid.references import read_npz, read_torch_cache
from maskgen.evaluation.fid.sources import Batch, Images, Reading, Source, evenly, note_grey, of_array
from maskgen.images import to_uint8
from maskgen.pipelines.encode import describe


def open_source(source: Any, reading: Reading | None = None) -> Source:
    """Open `source` and check it before the work; :func:`.sampling.of_pipeline` does this for pipelines.

    Args:
        source: a folder of images (with its sub-folders), a .zip or .tar of them; an .npz or .pt file (see
            :mod:`.references`); a text for :func:`maskgen.data.source.open_dataset`, or a .yaml file with it, alone or
            under `data`; a map-style data set (items with `pixels` in [-1, 1]); or uint8 images, a tensor
            (n, c, h, w) or an array (n, h, w, c).
        reading: how images are read.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the folder has no images, or the file holds something else; while reading, an image cannot be
            read, is grey, or has another size than the first.
    """
    reading = reading or Reading()
    if isinstance(source, (np.ndarray, Tensor)):
        return Source("images in memory", "array", of_array(source, "the array", reading))
    if not isinstance(source, (str, Path)):
        if not (hasattr(source, "__getitem__") and hasattr(source, "labels")):
            raise ValueError(
                f"cannot read images from a {type(source).__name__}; give a path, a pipeline, a data set or uint8 "
                "images"
            )
        return _of_dataset(source, type(source).__name__, reading)
    path = Path(source).expanduser()
    if not path.exists():
        if str(source).lstrip().startswith("{") or str(source) in DATASETS:
            return _of_dataset(open_dataset(str(source), reading.crop), str(source), reading)
        raise FileNotFoundError(
            f"{path} does not exist; give a folder of images, an .npz file or a saved pipeline, a .zip, .tar or "
            f".yaml, or a data set ({', '.join(DATASETS)}, or a mapping {{type: ...}})"
        )
    if path.is_dir() or path.suffix in (".zip", ".tar"):
        return Source(str(path), "folder" if path.is_dir() else path.suffix[1:], of_files(path, reading))
    if path.suffix in (".yaml", ".yml"):
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = spec.get("data", spec) if isinstance(spec, dict) else spec
        return _of_dataset(open_dataset(json.dumps(spec), reading.crop), str(path), reading)
    return read_torch_cache(path) if path.suffix == ".pt" else read_npz(path, reading)


def _of_dataset(dataset: Any, name: str, reading: Reading) -> Source:
    chosen = evenly(len(dataset), reading.limit)
    first, notes = dataset[chosen[0]]["pixels"], Counter[str]()

    def read(start: int, stop: int) -> Batch:
        items = [dataset[i]["pixels"] for i in chosen[start:stop]]
        if any(item.shape != first.shape for item in items):
            raise ValueError(f"{name} holds images of several sizes; give the data set a size")
        pixels = torch.stack(items)
        if pixels.shape[1] == 1:
            note_grey(name, len(pixels), reading, notes)
        return to_uint8(pixels.expand(-1, 3, -1, -1))

    labels, classes = np.asarray(dataset.labels, np.int64)[chosen], list(getattr(dataset, "class_names", ()))
    images = Images(len(chosen), read, describe(dataset) | vars(reading), labels, classes, notes)
    return Source(name, "data set", images)
