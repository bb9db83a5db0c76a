"""Generated images on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from maskgen import __version__
from maskgen.images import grid, save, to_pil
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.trace import Tracer, film_for

BUNDLED = "bundled emoji"  # the bundled pipeline, in what images keep


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, for each process of a launch its own, else the CPU.

    Raises:
        ValueError: no such device, or not on this machine.
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


def some(names: list[str], limit: int = 16) -> list[str]:
    """At most `limit` names, evenly spread."""
    count = min(len(names), limit)
    return [names[i * len(names) // count] for i in range(count)]


def class_label(pipeline: Any, text: str) -> str:
    """A class' name from what was typed: the name, or its number."""
    names = pipeline.class_names
    return text if text in names or not (text.isdigit() and int(text) < len(names)) else names[int(text)]


def draw(
    pipeline: Any,
    labels: Sequence[Any],
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 128,
    trace: Tracer | None = None,
) -> Float[Tensor, "n c h w"]:
    """Pixels in [-1, 1] on the CPU, one image a label (number, name, or None throughout for no class).

    Image i has seed + i, whatever the batch; `steps` and `guidance` are the pipeline's own where None.
    """
    pixels = []
    for start in range(0, len(labels), batch_size):
        batch = list(labels[start : start + batch_size])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))]
        result = pipeline(
            None if batch[0] is None else batch,
            num_images_per_prompt=len(batch) if batch[0] is None else 1,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pixels",
            **({} if trace is None else {"trace": trace}),
        )
        pixels.append(result.images.cpu())
    return torch.cat(pixels)


def generate(
    model: str | Path | None = None,
    classes: list[str] | None = None,
    count: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: str | Path = "samples",
    device: str = "auto",
    batch_size: int = 64,
    trace: str | Path | None = None,
) -> Path:
    """Write ``CLASS_NUMBER.png`` for each image and ``grid.png`` with a row a class; give the grid's path.

    Args:
        model: run, pipeline folder or Hub name; None is the bundled emoji pipeline.
        classes: names or numbers; at most 16, evenly spread, where None.
        count: images of each class.
        steps, guidance: decode settings; the pipeline's own where None.
        seed: image i is drawn with seed + i, whatever the batch.
        out: folder.
        device: ``auto``, ``cpu``, ``cuda``, ...
        trace: a ``.gif`` of the first images' decode to write.
    """
    pipeline = MaskedImagePipeline.from_pretrained(model).to(pick_device(device))
    names = pipeline.class_names
    rows: list[str | None] = [class_label(pipeline, c) for c in classes or some(names)] or [None]
    labels = [row for row in rows for _ in range(count)]
    film = film_for(trace)
    everything = draw(pipeline, labels, seed, steps, guidance, batch_size, film)
    if film is not None and trace is not None:
        film.save(trace, pipeline.vqvae)
    for i, image in enumerate(to_pil(everything)):
        made = parameters(pipeline, model, {"class": labels[i], "seed": seed + i, "steps": steps, "guidance": guidance})
        path = Path(out) / f"{labels[i] or 'sample'}_{i % count:03d}.png".replace("/", "-")
        save(image, path, {"task": "sample", **made})
    return save(grid(everything, count, row_names=[r for r in rows if r] or None), Path(out) / "grid.png")


def parameters(pipeline: Any, model: str | Path | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an image says of its making: the settings, and the scheduler's where they leave it the choice."""
    kept = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items() if v is not None}
    config = pipeline.scheduler.config
    defaults = {"steps": config.num_inference_steps, "guidance": config.guidance_scale}
    return {"model": BUNDLED if model is None else str(model), "version": __version__, **defaults, **kept}
