"""Sampling images from a pipeline, in batches, and writing them to files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from maskgen import __version__
from maskgen.images import grid, save, to_pil
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.trace import film_for

BUNDLED = "bundled emoji"  # the name of the bundled pipeline in the parameters of an image


def pick_device(name: str) -> torch.device:
    """The device called `name`. ``auto`` is CUDA where available (one GPU per process of a launch), else the CPU.

    Raises:
        ValueError: the name is unknown, or this machine does not have the device.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"no device is called {name!r}; give auto, cpu, cuda, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name}: this machine has {torch.cuda.device_count()} GPUs; give cpu or auto")
    return device


def load(model: str | Path | None, device: str) -> Any:
    """Load the image pipeline of a run, a folder or the Hub onto a device; None is the bundled pipeline."""
    return MaskedImagePipeline.from_pretrained(model).to(pick_device(device))


def spread_over(names: list[str], limit: int = 16) -> list[str]:
    """At most `limit` of the names, evenly spread."""
    count = min(len(names), limit)
    return [names[i * len(names) // count] for i in range(count)]


def class_label(pipeline: Any, text: str) -> str:
    """The name of the class that `text` gives by name or by number; other text is returned unchanged."""
    names = pipeline.class_names
    return text if text in names or not (text.isdigit() and int(text) < len(names)) else names[int(text)]


def batches(labels: Sequence[Any], seed: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """The arguments of one pipeline call per batch: class labels, number of images, and one generator per image.

    Image i has the seed ``seed + i``, so it does not depend on the batch size. The labels are all None or none is.
    """
    for start in range(0, len(labels), batch_size):
        batch = list(labels[start : start + batch_size])
        yield {
            "class_labels": None if batch[0] is None else batch,
            "num_images_per_prompt": len(batch) if batch[0] is None else 1,
            "generator": [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))],
        }


def sample(
    pipeline: Any,
    labels: Sequence[Any],
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 128,
) -> Float[Tensor, "n c h w"]:
    """Sample one image per label, as pixels in [-1, 1] on the CPU.

    Args:
        labels: class numbers or names; or None throughout, which samples without a class.
        seed: image i is sampled with seed + i, whatever the batch size.
        steps, guidance: decode steps and guidance scale; None uses the pipeline's defaults.
    """
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pixels"}
    made = []
    for batch in batches(labels, seed, batch_size):
        made.append(pipeline(**batch, **settings).images.cpu())
    return torch.cat(made)


def generate(
    pipeline: Any,
    classes: list[str] | None = None,
    count: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: str | Path = "samples",
    batch_size: int = 64,
    trace: str | Path | None = None,
    model: str | Path | None = None,
) -> Path:
    """Sample images and write each to ``CLASS_NUMBER.png``, and all of them to ``grid.png`` with one row per class.

    Args:
        pipeline: from :func:`load`.
        classes: names or numbers; None takes at most 16 classes, evenly spread.
        count: images per class.
        steps, guidance: decode steps and guidance scale; None uses the pipeline's defaults.
        seed: image i is sampled with seed + i, whatever the batch size.
        out: folder of the images.
        trace: a ``.gif`` to write, which shows the decode steps of the first images.
        model: the name of the pipeline in the images' parameters.

    Returns:
        The path of the grid.

    Raises:
        ValueError: an unknown class, or a trace that is not a ``.gif``.
    """
    names = pipeline.class_names
    rows: list[str | None] = [class_label(pipeline, c) for c in classes or spread_over(names)] or [None]
    labels = [row for row in rows for _ in range(count)]
    film = film_for(trace)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pixels", "trace": film}
    made = []
    for batch in batches(labels, seed, batch_size):
        made.append(pipeline(**batch, **settings).images.cpu())
    pixels = torch.cat(made)
    if film is not None and trace is not None:
        film.save(trace, pipeline.vqvae)
    for i, image in enumerate(to_pil(pixels)):
        kept = parameters(pipeline, model, {"class": labels[i], "seed": seed + i, "steps": steps, "guidance": guidance})
        path = Path(out) / f"{labels[i] or 'sample'}_{i % count:03d}.png".replace("/", "-")
        save(image, path, {"task": "sample", **kept})
    return save(grid(pixels, count, row_names=[row for row in rows if row] or None), Path(out) / "grid.png")


def parameters(pipeline: Any, model: str | Path | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an image keeps about how it was made: the settings, with the scheduler's defaults for None."""
    kept = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items() if v is not None}
    config = pipeline.scheduler.config
    defaults = {"steps": config.num_inference_steps, "guidance": config.guidance_scale}
    return {"model": BUNDLED if model is None else str(model), "version": __version__, **defaults, **kept}
