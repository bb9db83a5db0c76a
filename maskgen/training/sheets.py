"""Sheets of what a generator makes during its training."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from maskgen.images import grid as image_grid
from maskgen.pipelines.conditions import Conditions
from maskgen.training.batches import MapDataset
from maskgen.videos import strip


def sample_sheet(pipeline: Any, columns: int, rows: int) -> Image.Image:
    """A sheet with one row of samples per class, for at most `rows` classes; without classes it has four rows."""
    generator = torch.Generator().manual_seed(0)
    names = pipeline.class_names[:rows]
    labels = list(range(len(names))) if names else None
    count = columns if names else columns * 4
    pixels = pipeline(labels, num_images_per_prompt=count, generator=generator, output_type="pixels").images
    return image_grid(pixels.cpu(), columns, row_names=names or None)


def prediction_sheet(
    pipeline: Any, data: MapDataset, context: int, conditional: bool, actions: bool, count: int = 4
) -> Image.Image:
    """A sheet of clips, each above its prediction from the first `context` frames of tokens.

    Clips of a data set of codes are decoded. `conditional` gives the model their labels, and `actions` their actions.
    """
    tokenizer, rows = pipeline.vqvae, dict[str, Tensor]()
    given = 1 + (context - 1) * tokenizer.temporal_downsampling
    for i in range(min(count, len(data))):
        item = {k: v[None].to(pipeline.device) for k, v in data[i].items() if isinstance(v, Tensor)}
        clip = item["pixels"] if "pixels" in item else tokenizer.decode(item["codes"]).clamp(-1, 1)
        made = pipeline.predict(
            clip[:, :, :given],
            clip.shape[2] - given,
            class_labels=int(data[i]["label"]) if conditional else None,
            actions=item["actions"] if actions else None,
            generator=torch.Generator().manual_seed(0),
            output_type="pixels",
        ).frames
        rows |= {f"clip {i + 1}": clip[0], f"clip {i + 1} from {given}": made[0]}
    return strip(rows)


def task_sheet(pipeline: Any, data: MapDataset, conditions: Conditions) -> Image.Image:
    """A sheet of one clip, with two rows per task: the condition, and the clip that the model makes from it."""
    item = data[0]
    pixels = item["pixels"][None].to(pipeline.device)
    rows = {"clip": pixels[0]}
    for i, task in enumerate(conditions.tasks):
        videos, hidden = conditions.videos(pixels, [i])
        made = pipeline.inpaint(
            pixels,
            hidden,
            class_labels=int(item["label"]) if task.classes else None,
            generator=torch.Generator().manual_seed(0),
            output_type="pixels",
            task=task.name,
        ).frames
        rows |= {f"{i + 1} {task.prompt}": videos[0], f"{i + 1} made": made[0]}
    return strip(rows)
