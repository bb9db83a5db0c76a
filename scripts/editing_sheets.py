"""Make the images of docs/editing.md with the bundled model: docs/images/editing-*.png and editing-decode.gif.

python scripts/editing_sheets.py [inpaint outpaint edit vary interpolate join trace]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from maskgen import MaskedImagePipeline
from maskgen.data.emoji import Emoji
from maskgen.images import grid, save
from maskgen.pipelines.trace import DecodeTrace

IMAGES = Path(__file__).parents[1] / "docs" / "images"
EMOJI = Emoji(groups="subcategory")


def image(name: str) -> tuple[Tensor, int]:
    """Return pixels in [0, 1] and the class of the first emoji whose name is, or else contains, `name`."""
    names = EMOJI.names
    item = EMOJI[names.index(name) if name in names else next(i for i, n in enumerate(names) if name in n)]
    return (item["pixels"] + 1) / 2, item["label"]


def seeds(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def holed(pixels: Tensor, hidden: Tensor) -> Tensor:
    return torch.where(hidden, 0.6, pixels)


def sheet(rows: list[Tensor], names: list[str], name: str, scale: int = 2) -> None:
    pixels = torch.cat(rows) * 2 - 1
    save(grid(pixels, len(rows[0]), scale, names), IMAGES / f"editing-{name}.png")


def inpaint(pipeline: MaskedImagePipeline) -> None:
    names = ["smiling cat face with heart", "pizza", "house building", "panda face", "strawberry"]
    names += ["maple leaf", "rocket", "penguin", "rainbow", "automobile"]
    pixels, labels = zip(*map(image, names))
    holes = torch.zeros(len(names), 32, 32, dtype=torch.bool)
    for i, hole in enumerate(holes):
        if i % 3 == 0:
            hole[8:24, 8:24] = True
        elif i % 3 == 1:
            hole[:, 16:] = True
        else:
            for j in range(32):  # a diagonal stroke
                hole[j, max(0, j - 5) : j + 5] = True
    rows = [torch.stack(pixels), torch.stack([holed(p, h) for p, h in zip(pixels, holes)])]
    for first in (0, 100):
        options = {"generator": seeds(len(names), first), "output_type": "pt"}
        rows.append(pipeline.inpaint(list(pixels), list(holes), list(labels), **options).images)
    sheet(rows, ["image", "mask", "seed 0", "seed 100"], "inpaint")


def outpaint(pipeline: MaskedImagePipeline) -> None:
    rows = []
    for name in ("cityscape at dusk", "sunrise over mountains", "night with stars", "water wave", "bridge at night"):
        pixels, label = image(name)
        hidden = torch.ones(3, 32, 96, dtype=torch.bool)
        hidden[:, :, 32:64] = False
        shown = holed(torch.nn.functional.pad(pixels, (32, 32)), hidden)
        options = {"left": 32, "right": 32, "class_labels": label, "output_type": "pt"}
        rows.append(torch.cat([shown[None], pipeline.outpaint(pixels, generator=seeds(1)[0], **options).images]))
    sheet(rows, [], "outpaint", scale=3)


def edit(pipeline: MaskedImagePipeline) -> None:
    cases = [("grinning face", "face-glasses", (4, 6, 28, 16)), ("full moon", "face-affection", (6, 6, 26, 26))]
    cases += [("red apple", "face-smiling", (6, 8, 26, 26)), ("soccer ball", "face-smiling", (6, 6, 26, 26))]
    cases += [("smiling face with sunglasses", "cat-face", (0, 0, 32, 14)), ("dog face", "cat-face", (0, 0, 32, 14))]
    rows, names = [], []
    for name, label, box in cases:
        pixels, _ = image(name)
        hidden = torch.zeros(32, 32, dtype=torch.bool)
        hidden[box[1] : box[3], box[0] : box[2]] = True
        options = {"num_images_per_prompt": 4, "generator": seeds(4), "output_type": "pt"}
        made = pipeline.edit(pixels, label, box=box, **options).images
        rows.append(torch.cat([pixels[None], holed(pixels, hidden)[None], made]))
        names.append(f"{name} > {label}")
    sheet(rows, names, "edit")


def vary(pipeline: MaskedImagePipeline) -> None:
    names = ["smiling cat face with heart", "tangerine", "hatching chick", "guitar", "tulip", "sailboat", "penguin"]
    pixels, labels = zip(*map(image, names))
    rows = [torch.stack(pixels)]
    strengths = (0.25, 0.5, 0.75, 1.0)
    for strength in strengths:
        options = {"generator": seeds(len(names)), "output_type": "pt"}
        rows.append(pipeline.vary(torch.stack(pixels), strength, list(labels), **options).images)
    sheet(rows, ["image", *(f"strength {s}" for s in strengths)], "vary")


def interpolate(pipeline: MaskedImagePipeline) -> None:
    pairs = [("grinning face", "smiling cat face with heart"), ("heavy black heart", "blue heart")]
    pairs += [("full moon symbol", "new moon symbol"), ("clock face one", "clock face seven"), ("tulip", "rose")]
    rows = []
    for a, b in pairs:
        (first, label), (second, other) = image(a), image(b)
        options = {"class_labels": label if label == other else None, "output_type": "pt"}
        rows.append(pipeline.interpolate(first, second, 9, 0.5, generator=seeds(1)[0], **options).images)
    sheet(rows, [], "interpolate")


def join(pipeline: MaskedImagePipeline) -> None:
    pairs = [("cityscape at dusk", "bridge at night"), ("sunrise over mountains", "night with stars")]
    rows = []
    for a, b in pairs:
        (first, label), (second, _) = image(a), image(b)
        shown = torch.cat([first, torch.full((3, 32, 24), 0.6), second], 2)
        options = {"class_labels": label, "generator": seeds(1)[0], "output_type": "pt"}
        rows.append(torch.cat([shown[None], pipeline.join(first, second, gap=24, **options).images]))
    sheet(rows, [], "join", scale=3)


def trace(pipeline: MaskedImagePipeline) -> None:
    film, (pixels, label) = DecodeTrace(), image("smiling cat face with heart")
    hidden = torch.zeros(32, 32, dtype=torch.bool)
    hidden[4:28, 4:28] = True
    pipeline.inpaint(pixels, hidden, label, generator=seeds(1)[0], trace=film)
    film.save(IMAGES / "editing-decode.gif", pipeline.vqvae)


SHEETS = {f.__name__: f for f in (inpaint, outpaint, edit, vary, interpolate, join, trace)}

if __name__ == "__main__":
    pipeline = MaskedImagePipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    for name in sys.argv[1:] or SHEETS:
        SHEETS[name](pipeline)
        print(name)
