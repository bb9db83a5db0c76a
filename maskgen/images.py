"""Pixels in [-1, 1] as PIL images, grids and files, with the parameters that made them."""

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
    """Pixels, clipped to [-1, 1], as integers from 0 to 255."""
    unit = (pixels.detach().float().clamp(-1, 1) + 1) * 127.5
    return unit.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_pil(pixels: Float[Tensor, "n c h w"]) -> list[Image.Image]:
    """One PIL image per row of the batch; one channel makes a grey image."""
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in to_uint8(pixels)]


def grid(
    pixels: Float[Tensor, "n c h w"],
    columns: int,
    scale: int | None = None,
    row_names: list[str] | None = None,
    legend: Sequence[str] = (),
) -> Image.Image:
    """A grid of images, filled row by row, with optional names to the left of the rows.

    Args:
        pixels: the images, in [-1, 1].
        columns: number of images in a row.
        scale: factor by which images are enlarged, without smoothing; None makes the longer side about 64 pixels.
        row_names: one name per row.
        legend: sentences to write below the grid, each on new lines.
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
    """Break a text into lines of whole words that are at most `width` pixels wide, unless a word is wider."""
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
    """A grid in which each row of originals stands above the row of their reconstructions."""
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
    """Write an image, and make its folder where needed.

    Args:
        parameters: what made the image, kept in the file as JSON for :func:`parameters_of`; PNG only.
        sources: the images, by name, that it was made from, kept with the parameters for :func:`sources_of`.

    Raises:
        ValueError: parameters are given and the file is no PNG.
    """
    path = Path(path)
    options: dict[str, Any] = {}
    if parameters is not None:
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path} cannot keep the parameters of the image; give a name that ends in .png")
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
    """The parameters that :func:`save` kept in an image, such as task, model, class, seed, steps and version.

    Raises:
        ValueError: the file is no image, or has no parameters.
    """
    try:
        with Image.open(path) as image:
            image.load()  # the text may come after the pixels
            found = json.loads(image.info[PARAMETERS])
    except KeyError:
        raise ValueError(f"{path} has no parameters: another program wrote it") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the parameters of {path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"the parameters of {path} are not a mapping")
    return found


def sources_of(path: str | Path) -> dict[str, Image.Image]:
    """The images, by name, that :func:`save` kept in an image as its sources. Their pixels are not read yet.

    Raises:
        ValueError: the file or one of its sources is no image.
    """
    start = f"{PARAMETERS} "
    try:
        with Image.open(path) as image:
            image.load()
            kept = {str(k).removeprefix(start): v for k, v in image.info.items() if str(k).startswith(start)}
        return {name: Image.open(BytesIO(base64.b64decode(text))) for name, text in kept.items()}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the sources of {path}: {error}") from error
