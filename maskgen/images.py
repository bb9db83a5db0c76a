"""Pixels in [-1, 1] to images: PIL, grids with names beside the rows, side-by-side sheets."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

LINE = 18  # pixels from one line of a legend to the next
PARAMETERS = "maskgen"  # the tEXt chunk's keyword


def to_uint8(pixels: Float[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n h w c"]:
    """Clip to [-1, 1], scale to 0-255, round."""
    unit = (pixels.detach().float().clamp(-1, 1) + 1) * 127.5
    return unit.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_pil(pixels: Float[Tensor, "n c h w"]) -> list[Image.Image]:
    """One image a row; one channel becomes grey."""
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in to_uint8(pixels)]


def grid(
    pixels: Float[Tensor, "n c h w"],
    columns: int,
    scale: int | None = None,
    row_names: list[str] | None = None,
    legend: Sequence[str] = (),
) -> Image.Image:
    """Images side by side, row by row, enlarged `scale` times without smoothing and named at the left of each row.

    `scale` None enlarges so that an image is about 64 pixels. The sentences of `legend` stand below, each on lines of
    its own.
    """
    images = to_pil(pixels)
    height, width = pixels.shape[2:]
    scale = scale or max(1, round(64 / max(height, width)))
    gap, font = 4, ImageFont.load_default(size=14)
    margin = int(max((font.getlength(name) for name in row_names or []), default=-2 * gap)) + 2 * gap
    cell_h, cell_w = height * scale + gap, width * scale + gap
    rows = -(-len(images) // columns)
    wide, high = margin + columns * cell_w + gap, rows * cell_h + gap
    lines = [line for text in legend for line in wrapped(text, wide - 2 * gap, font)]
    sheet = Image.new("RGB", (wide, high + LINE * len(lines) + gap * bool(lines)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        big = image.convert("RGB").resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(big, (margin + gap + i % columns * cell_w, gap + i // columns * cell_h))
    for row, name in enumerate(row_names or []):
        draw.text((gap, gap + row * cell_h + cell_h // 2), name, fill="black", font=font, anchor="lm")
    for i, line in enumerate(lines):
        draw.text((gap, high + LINE * i), line, fill="black", font=font)
    return sheet


def wrapped(text: str, width: int, font: Any) -> list[str]:
    """Lines of whole words, no wider than `width` pixels where the words allow it."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def side_by_side(
    originals: Float[Tensor, "n c h w"], others: Float[Tensor, "n c h w"], columns: int = 8
) -> Image.Image:
    """Rows of originals, each above the row of their counterparts."""
    pixels, names = [], []
    for start in range(0, len(originals), columns):
        for name, batch in (("original", originals), ("reconstruction", others)):
            row = batch[start : start + columns].detach().float().cpu()
            blank = row.new_ones((columns - len(row), *row.shape[1:]))
            pixels.append(torch.cat([row, blank]))
            names.append(name)
    return grid(torch.cat(pixels), columns, row_names=names)


def save(
    image: Image.Image,
    path: str | Path,
    parameters: Mapping[str, Any] | None = None,
    sources: Mapping[str, Image.Image] | None = None,
) -> Path:
    """Write an image, making its folder.

    Args:
        parameters: what made it, kept in the file as JSON for :func:`parameters_of`; PNG only.
        sources: images that it was made from, by name, kept beside the parameters for :func:`sources_of`.

    Raises:
        ValueError: parameters for another kind of file.
    """
    path = Path(path)
    options: dict[str, Any] = {}
    if parameters is not None:
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path} cannot hold what made it; give a name that ends in .png")
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(PARAMETERS, json.dumps(parameters))
        for name, source in (sources or {}).items():
            data = BytesIO()
            source.save(data, "png")
            options["pnginfo"].add_text(f"{PARAMETERS} {name}", base64.b64encode(data.getvalue()).decode())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def parameters_of(path: str | Path) -> dict[str, Any]:
    """What made an image of ours, as :func:`save` kept it: task, model, class, seed, steps, guidance, version ...

    Raises:
        ValueError: no image, or one without parameters.
    """
    try:
        with Image.open(path) as image:
            image.load()  # text may stand behind the pixels
            found = json.loads(image.info[PARAMETERS])
    except KeyError:
        raise ValueError(f"{path} holds no parameters: another program wrote it") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the parameters of {path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"the parameters of {path} are no mapping")
    return found


def sources_of(path: str | Path) -> dict[str, Image.Image]:
    """The images, by name, that an image of ours was made from, as :func:`save` kept them; their pixels are not
    read yet.

    Raises:
        ValueError: no image, or sources that are none.
    """
    start = f"{PARAMETERS} "
    try:
        with Image.open(path) as image:
            image.load()
            kept = {str(k).removeprefix(start): v for k, v in image.info.items() if str(k).startswith(start)}
        return {name: Image.open(BytesIO(base64.b64decode(text))) for name, text in kept.items()}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read what {path} was made from: {error}") from error
