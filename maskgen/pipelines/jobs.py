"""Image tasks from files to files: one task, or one task per row of a CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from maskgen.images import save
from maskgen.pipelines.generate import class_label, parameters
from maskgen.pipelines.trace import film_for
from maskgen.registry import choose, nearest


@dataclass(frozen=True)
class Task:
    """The settings of a task, by their names in :data:`SETTINGS`: those it needs and those it takes in addition."""

    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


SHARED = ("class", "count", "steps", "guidance")  # settings of every task
# Task -> its own settings. A task is a method of the pipeline; `sample` is the call of the pipeline itself.
TASKS = {
    "sample": Task(),
    "inpaint": Task(("image", "mask"), ("dilation", "crop", "feather")),
    "outpaint": Task(("image",), ("left", "top", "right", "bottom", "overlap", "dilation", "feather")),
    "edit": Task(("image",), ("mask", "box", "grow", "dilation", "crop", "feather")),
    "vary": Task(("image",), ("strength",)),
    "interpolate": Task(("image", "image_2"), ("frames", "strength")),
    "join": Task(("image", "image_2", "gap"), ("keep", "overlap", "feather")),
}


def _box(text: str) -> list[int]:
    return [int(n) for n in text.replace(",", " ").split()]


def _dilation(text: str) -> int | str:
    return text if text == "auto" else int(text)


# Setting -> the pipeline's name for it, and the function that reads it from text.
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


@dataclass(frozen=True)
class Call:
    """A method of a pipeline with its arguments, checked and ready to run, and what its images keep about it.

    method, arguments: ``method(**arguments)`` returns a `MaskedImageOutput`.
    kept: the parameters that all images share.
    seed: the seed of the first image.
    one_seed: all images have this seed (the frames of an interpolation); otherwise image i has ``seed + i``.
    """

    method: Callable[..., Any]
    arguments: dict[str, Any]
    kept: dict[str, Any]
    seed: int
    one_seed: bool

    def parameters(self, number: int) -> dict[str, Any]:
        """What image `number` keeps about how it was made."""
        return {**self.kept, "seed": self.seed + (0 if self.one_seed else number), "number": number}


def prepare(
    pipeline: Any, task: str, settings: Mapping[str, Any], seed: int = 0, model: str | Path | None = None
) -> Call:
    """Check the settings of a task and translate them to the arguments of the pipeline's method.

    Args:
        task: a name of :data:`TASKS`.
        settings: names of :data:`SETTINGS` with values or text; None leaves the default of the method.
        seed: image i is generated with seed + i; all frames of an interpolation are generated with `seed`.
        model: the name of the pipeline in the images' parameters.

    Raises:
        ValueError: the task is unknown, or a setting is unknown, missing, or not a setting of this task.
    """
    own = choose(TASKS, task, "task")
    given = {name: value for name, value in settings.items() if value is not None}
    names = [name for name in SETTINGS if name in (*SHARED, *own.needs, *own.takes)]
    for name in given:
        if name not in names:
            raise ValueError(f"{task} has no {name!r}: {nearest(name, names)}it takes {', '.join(names)}")
    if missing := [name for name in own.needs if name not in given]:
        raise ValueError(f"{task} needs {', '.join(missing)}")
    arguments = {SETTINGS[name][0]: _value(name, value) for name, value in given.items()}
    if given.get("class") is not None:
        arguments["class_labels"] = class_label(pipeline, given["class"])
    elif task == "edit":
        arguments["class_labels"] = None  # the method explains that it needs a class
    one_seed = task == "interpolate"  # the frames share one random order
    count = arguments.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(1 if one_seed else count)]
    arguments["generator"] = generators[0] if one_seed else generators
    text = {name: value for name, value in settings.items() if not isinstance(value, Image.Image)}
    kept = {"task": task, **parameters(pipeline, model, text)}
    return Call(pipeline if task == "sample" else getattr(pipeline, task), arguments, kept, seed, one_seed)


def run_task(
    pipeline: Any,
    task: str,
    settings: Mapping[str, Any],
    out: str | Path,
    seed: int = 0,
    trace: str | Path | None = None,
    model: str | Path | None = None,
) -> list[Path]:
    """Run one task and write its images, which keep how they were made.

    Args:
        task, settings, seed, model: as in :func:`prepare`.
        out: the ``.png`` file. If there are several images, a number is added to the name of each.
        trace: a ``.gif`` to write, which shows the decode steps.

    Returns:
        The paths of the images, and of the trace if there is one.

    Raises:
        ValueError: `out` is not a ``.png``; or what :func:`prepare` and the task raise.
    """
    choose(TASKS, task, "task")
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"the result {out} must end in .png, the format that keeps how an image was made")
    film = film_for(trace)
    call = prepare(pipeline, task, settings, seed, model)
    images = call.method(**call.arguments, trace=film).images
    names = [out if len(images) == 1 else out.with_stem(f"{out.stem}_{i:03d}") for i in range(len(images))]
    paths = [save(image, names[i], call.parameters(i)) for i, image in enumerate(images)]
    if film is not None and trace is not None:
        paths.append(film.save(trace, pipeline.vqvae))
    return paths


def run_table(
    pipeline: Any,
    table: str | Path,
    out: str | Path,
    task: str = "inpaint",
    trace: str | Path | None = None,
    model: str | Path | None = None,
) -> int:
    """Run one task per row of a CSV.

    The columns are ``task`` (default: `task`), ``seed`` (default: 0), ``out`` (a file name in the folder `out`,
    default: row_LINE.png) and the names of :data:`SETTINGS`. An empty cell leaves the default. Paths are
    relative to the folder of the CSV.

    Args:
        out: folder of the images.
        task: the task of rows that do not name one.
        trace: folder for a ``.gif`` of each row's decode steps, with the name of the row's image.
        model: the name of the pipeline in the images' parameters.

    Returns:
        The number of images written.

    Raises:
        ValueError: the table has unknown columns or no rows; or, after the last row, some rows failed. The message
            lists their lines, the reasons, and the number of images written.
    """
    table, out = Path(table), Path(out)
    rows = _rows(table)
    written = 0
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
            written += len(run_task(pipeline, kind, cells, out / name, seed, film, model)) - (film is not None)
        except (ValueError, OSError, RuntimeError) as error:  # the other rows still run
            failed.append(f"line {line}: {error}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(rows)} rows of {table} failed; {written} images are in {out}\n  - "
            + "\n  - ".join(failed)
        )
    return written


def _rows(table: Path) -> list[tuple[int, dict[Any, Any]]]:
    """Line number and cells of every row that is not blank."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader if any(row.values())]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is not a CSV file in UTF-8: {error}") from error
    allowed = ["task", "seed", "out", *SETTINGS]
    for name in columns:
        if name not in allowed:
            raise ValueError(f"{table}: unknown column {name!r}: {nearest(name, allowed)}allowed: {', '.join(allowed)}")
    if not rows:
        raise ValueError(f"{table} holds no rows below its header")
    return rows


def _value(name: str, given: Any) -> Any:
    """The value of a setting that may be text."""
    read = SETTINGS[name][1]
    if not isinstance(given, str) or read is str:
        return given
    try:
        return read(given)
    except ValueError:
        wanted = {"box": "left,top,right,bottom", "dilation": "a number or auto"}.get(name, "a number")
        raise ValueError(f"{name} is {given!r}; give {wanted}") from None
