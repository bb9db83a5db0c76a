"""Tasks from files to files: what the commands run, one by one or as the rows of a CSV."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from maskgen.images import save
from maskgen.pipelines.generate import class_label, parameters, pick_device
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.trace import Tracer, film_for
from maskgen.registry import choose, nearest


def _sample(pipeline: Any, class_labels: Any = None, **options: Any) -> Any:
    return pipeline(class_labels, **options)


# Task -> function of a pipeline. Sketch guidance and super-resolution belong here once they exist.
TASKS: dict[str, Callable[..., Any]] = {
    "sample": _sample,
    "inpaint": MaskedImagePipeline.inpaint,
    "outpaint": MaskedImagePipeline.outpaint,
    "edit": MaskedImagePipeline.edit,
    "vary": MaskedImagePipeline.vary,
    "interpolate": MaskedImagePipeline.interpolate,
    "join": MaskedImagePipeline.join,
}


def _box(text: str) -> list[int]:
    return [int(n) for n in text.replace(",", " ").split()]


def _dilation(text: str) -> int | str:
    return text if text == "auto" else int(text)


# Setting -> the tasks' own name of it, and what reads it from a CSV's cell.
SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "image": ("image", str),
    "image_2": ("image_2", str),
    "mask": ("mask_image", str),
    "box": ("box", _box),
    "class": ("class_labels", str),
    "count": ("num_images_per_prompt", int),
    "steps": ("num_inference_steps", int),
    "guidance": ("guidance_scale", float),
    "left": ("left", int),
    "top": ("top", int),
    "right": ("right", int),
    "bottom": ("bottom", int),
    "overlap": ("overlap", int),
    "strength": ("strength", float),
    "frames": ("num_frames", int),
    "gap": ("gap", int),
    "keep": ("keep", int),
    "grow": ("grow", int),
    "dilation": ("dilation", _dilation),
    "crop": ("padding_mask_crop", int),
    "feather": ("feather", int),
}
EVERYWHERE = {"class_labels", "num_images_per_prompt", "num_inference_steps", "guidance_scale"}


def load(model: str | Path | None, device: str) -> Any:
    """The pipeline of a run, a folder or the Hub, on a device; the bundled one where None."""
    return MaskedImagePipeline.from_pretrained(model).to(pick_device(device))


def make(
    pipeline: Any,
    task: str,
    settings: Mapping[str, Any],
    seed: int = 0,
    trace: Tracer | None = None,
    model: str | Path | None = None,
) -> list[tuple[Image.Image, dict[str, Any]]]:
    """Run one task; give its images, each with what made it.

    Args:
        task: of :data:`TASKS`.
        settings: of :data:`SETTINGS`, as values or as text; None leaves a task's own default.
        seed: image i is drawn with seed + i.
        trace: told of every step.
        model: as the images shall name it.

    Raises:
        ValueError: an unknown task or setting, one that is missing or that the task does not have; what the task
            raises.
    """
    function = choose(TASKS, task, "task")
    arguments = _arguments(task, function, {k: v for k, v in settings.items() if v is not None})
    name = arguments.get("class_labels")
    if name is not None:
        arguments["class_labels"] = class_label(pipeline, name)
    one = task == "interpolate"  # one random order for all frames
    seeds = [seed] if one else [seed + i for i in range(arguments.get("num_images_per_prompt", 1))]
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    images = function(pipeline, **arguments, generator=generators[0] if one else generators, trace=trace).images
    told = {k: v for k, v in settings.items() if not isinstance(v, Image.Image)}
    made = {"task": task, **parameters(pipeline, model, told)}
    each = seeds * len(images) if one else seeds
    return [(image, {**made, "seed": s, "number": i}) for i, (image, s) in enumerate(zip(images, each))]


def perform(
    pipeline: Any,
    task: str,
    settings: Mapping[str, Any],
    out: str | Path,
    seed: int = 0,
    trace: str | Path | None = None,
    model: str | Path | None = None,
) -> list[Path]:
    """Run one task, write its images with what made them, and give their paths.

    Args:
        task, settings, seed, model: as :func:`make` takes them.
        out: the ``.png`` file; where there are several, numbers go before the suffix.
        trace: a ``.gif`` of the decode to write.

    Raises:
        ValueError: a result that is no ``.png``; what :func:`make` raises.
    """
    choose(TASKS, task, "task")
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"the result {out} must end in .png, which keeps what made it")
    film = film_for(trace)
    made = make(pipeline, task, settings, seed, film, model)
    numbered = len(made) > 1
    paths = [
        save(image, out.with_stem(f"{out.stem}_{i:03d}") if numbered else out, told)
        for i, (image, told) in enumerate(made)
    ]
    if film is not None and trace is not None:
        paths.append(film.save(trace, pipeline.vqvae))
    return paths


def _arguments(task: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by the task's own names."""
    known = inspect.signature(function).parameters
    inner = inspect.signature(MaskedImagePipeline.inpaint).parameters if task == "edit" else {}
    allowed = EVERYWHERE | {*known, *inner} | ({"overlap"} if task in ("outpaint", "join") else set())
    names = [n for n, (argument, _) in SETTINGS.items() if argument in allowed]
    for setting in settings:
        if setting not in names:
            raise ValueError(f"{task} has no {setting!r}: {nearest(setting, names)}it takes {', '.join(names)}")
    arguments = {SETTINGS[setting][0]: _value(setting, value) for setting, value in settings.items()}
    needed = [n for n in names if n in ("image", "image_2", "mask", "gap") and SETTINGS[n][0] in known]
    required = [n for n in needed if known[SETTINGS[n][0]].default is inspect.Parameter.empty]
    if missing := [n for n in required if n not in settings]:
        raise ValueError(f"{task} needs {', '.join(missing)}")
    if task == "edit":
        arguments.setdefault("class_labels", None)
    return arguments


def batch(
    pipeline: Any,
    table: str | Path,
    out: str | Path,
    task: str = "inpaint",
    model: str | Path | None = None,
    trace: str | Path | None = None,
) -> list[Path]:
    """One task a row of a CSV; give the paths written.

    Columns are ``task`` (else `task`), ``seed`` (else 0), ``out`` (a name in the folder `out`; else row_LINE.png) and
    the settings of :data:`SETTINGS`; an empty cell leaves the default. Paths are relative to the CSV's folder. `trace`
    is a folder for a GIF of each row's decode, named as the row's image.

    Raises:
        ValueError: unknown columns, no rows; and after the last row, if some failed: their lines, why, and how many
            images were written.
    """
    table, out = Path(table), Path(out)
    rows = _rows(table)
    paths: list[Path] = []
    failed = []
    for line, row in tqdm(rows, desc="rows", unit="row"):
        try:
            if None in row:
                raise ValueError("more cells than the header has columns")
            cells = {k: v.strip() for k, v in row.items() if v is not None and v.strip()}
            kind, seed = cells.pop("task", task), int(cells.pop("seed", "0"))
            name = cells.pop("out", f"row_{line:04d}.png")
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"out {name!r} must lie in the folder of the results")
            for key in cells.keys() & {"image", "image_2", "mask"}:
                cells[key] = str(table.parent / cells[key])
            film = None if trace is None else Path(trace) / Path(name).with_suffix(".gif")
            paths += perform(pipeline, kind, cells, out / name, seed, film, model)
        except (ValueError, OSError, RuntimeError) as error:  # one bad row loses nothing of the others
            failed.append(f"line {line}: {error}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(rows)} rows of {table} failed; {images_in(paths)} images are in {out}\n  - "
            + "\n  - ".join(failed)
        )
    return paths


def images_in(paths: list[Path]) -> int:
    """How many of the files that a task wrote are no traces."""
    return sum(path.suffix != ".gif" for path in paths)


def _rows(table: Path) -> list[tuple[int, dict[Any, Any]]]:
    """Line number and cells of every row that is not blank."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader if any(row.values())]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is no CSV in UTF-8: {error}") from error
    allowed = ["task", "seed", "out", *SETTINGS]
    for name in columns:
        if name not in allowed:
            raise ValueError(f"{table}: unknown column {name!r}: {nearest(name, allowed)}allowed: {', '.join(allowed)}")
    if not rows:
        raise ValueError(f"{table} holds no rows below its header")
    return rows


def _value(setting: str, given: Any) -> Any:
    """A setting that may be text."""
    read = SETTINGS[setting][1]
    if not isinstance(given, str) or read is str:
        return given
    try:
        return read(given)
    except ValueError:
        wanted = {"box": "left,top,right,bottom", "dilation": "a number or auto"}.get(setting, "a number")
        raise ValueError(f"{setting} is {given!r}; give {wanted}") from None
