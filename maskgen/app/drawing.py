"""One drawing: settings -> the steps of the decode as they come -> the images' files. And a file -> its settings."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from shutil import rmtree
from threading import Event
from typing import Any, TypeVar
from uuid import uuid4

from PIL import Image
from torch import Tensor

from maskgen.app.models import Models, defaults, scheduled
from maskgen.app.painting import MAX_SIDE, check_side, opened
from maskgen.decoding.orders import ORDERS
from maskgen.images import parameters_of, save, sources_of
from maskgen.pipelines.generate import BUNDLED, class_label
from maskgen.pipelines.jobs import make
from maskgen.pipelines.trace import DecodeTrace
from maskgen.registry import choose

KEPT = 256  # drawings whose files are kept
WATCHED = 4  # images of the batch whose decode is shown
SIDES = ("left", "top", "right", "bottom")
# Number -> its type, the least and the most that the page takes.
LIMITS = {
    "count": (int, 1, 16),
    "steps": (int, 1, 256),
    "guidance": (float, 0, 20),
    "temperature": (float, 0, 30),
    "seed": (int, 0, 2**31 - 1),
    "strength": (float, 0, 1),
    "grow": (int, 0, 16),
    "frames": (int, 2, 16),
    **dict.fromkeys(("gap", "keep"), (int, 1, MAX_SIDE)),
    **dict.fromkeys(SIDES, (int, 0, MAX_SIDE)),
}
EVERYWHERE = ("class", "steps", "guidance")
# Task -> the settings of its own, beside those of every task.
TASKS = {
    "sample": ("count",),
    "inpaint": ("count", "image", "mask"),
    "edit": ("count", "image", "mask", "grow"),
    "outpaint": ("count", "image", *SIDES),
    "vary": ("count", "image", "strength"),
    "interpolate": ("image", "image_2", "frames", "strength"),
    "join": ("count", "image", "image_2", "gap", "keep"),
}
SOURCES = ("image", "image_2", "mask")
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What is to be drawn.

    model: a name of :class:`maskgen.app.models.Models`.
    task: of :data:`TASKS`.
    settings: ``class``, ``steps``, ``guidance`` and those of the task; those of :data:`SOURCES` are PIL images.
    seed: image i is drawn with seed + i; all frames of an interpolation with the seed.
    temperature, order: the scheduler's.

    Numbers are as they were given: :func:`check` refuses wrong ones.
    """

    model: str
    task: str
    settings: Mapping[str, Any]
    seed: Any
    temperature: Any
    order: str


@dataclass(frozen=True)
class Drawn:
    """The images' files, which hold what made them, the seed of each, and the decode as a GIF (None where it cannot
    be drawn)."""

    files: list[Path]
    seeds: list[int]
    film: Path | None


def check(job: Job, models: Models) -> None:
    """Refuse what is outside the page's limits.

    Raises:
        ValueError: says what, and what is allowed.
    """
    models[job.model].labels_of(job.settings.get("class"), 1)
    names = choose(TASKS, job.task, "task")
    choose(ORDERS, job.order, "order")
    if job.order == "critic" and models[job.model].critic is None:
        raise ValueError(f"{job.model} has no critic to go by: choose another order, or train one (docs/decoding.md)")
    numbers = {**job.settings, "seed": job.seed, "temperature": job.temperature}
    for name, (kind, low, high) in LIMITS.items():
        value = numbers.get(name, low)
        right = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not right or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name} is {value!r}; give {what} from {low} to {high}")
    if "image" in names and job.settings.get("image") is None:
        raise ValueError("there is no image yet: upload one, or take one that you generated")
    if "image_2" in names and job.settings.get("image_2") is None:
        raise ValueError("there is no second image yet: upload one, or take one that you generated")
    if job.task == "edit" and job.settings.get("class") is None:
        raise ValueError("choose the class to change to, in the settings")
    if job.task == "outpaint":
        image, sides = job.settings["image"], [job.settings.get(side, 0) for side in SIDES]
        check_side(image.width + sides[0] + sides[2], image.height + sides[1] + sides[3])
    if job.task == "join":
        check_side(job.settings.get("gap", 0) + 2 * job.settings.get("keep", 0), models[job.model].size[0])


def draw(models: Models, job: Job, folder: Path) -> Generator[Image.Image, None, Drawn]:
    """Yield an image of each step of the decode as it is done (of tokens that have a place); return the result.

    Args:
        folder: where a new folder for the files is made; of many the oldest goes.

    Raises:
        ValueError: what :func:`check` and the task raise.
    """
    check(job, models)
    pipeline = scheduled(models[job.model], job.temperature, job.order)
    model = None if job.model == BUNDLED else job.model
    film = DecodeTrace(WATCHED)
    side = 192 if job.settings.get("count", job.settings.get("frames", 1)) == 1 else 96
    placed = len(pipeline.transformer.grid) == 2  # other tokens have no place in the image

    def work(tell: Callable[[Image.Image], None]) -> list[tuple[Image.Image, dict[str, Any]]]:
        def trace(*step: Tensor) -> None:
            film(*step)
            tell(film.frame(pipeline.vqvae, len(film.steps) - 1, side))

        return make(pipeline, job.task, job.settings, job.seed, trace if placed else None, model)

    made = yield from as_told(work)
    target = folder / "drawn" / uuid4().hex
    for old in sorted(target.parent.glob("*"), key=lambda path: path.stat().st_mtime)[: 1 - KEPT]:
        rmtree(old, ignore_errors=True)
    sources = {name: job.settings[name] for name in SOURCES if job.settings.get(name) is not None}
    more = {"temperature": job.temperature, "order": job.order}
    seeds = [told["seed"] for _, told in made]
    each = "-{number}" if len(set(seeds)) < len(seeds) else ""
    name = f"{job.task}-{{seed}}{each}.png"
    files = [save(image, target / name.format(**told), {**told, **more}, sources) for image, told in made]
    gif = film.save(target / f"{job.task}-{job.seed}.gif", pipeline.vqvae, side) if placed else None
    return Drawn(files, seeds, gif)


def as_told(work: Callable[[Callable[[S], None]], T]) -> Generator[S, None, T]:
    """Run `work(tell)` in a thread; yield what it tells when it does, and return its result or raise its error.

    If the generator is closed, the next `tell` ends the work.
    """
    steps: SimpleQueue[S | None] = SimpleQueue()
    closed = Event()

    def tell(step: S) -> None:
        if closed.is_set():
            raise RuntimeError("nobody waits for the result any more")
        steps.put(step)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, tell)
        future.add_done_callback(lambda _: steps.put(None))
        try:
            while (step := steps.get()) is not None:
                yield step
        finally:
            closed.set()
        return future.result()


def job_of(models: Models, file: str | Path) -> Job:
    """What an image of ours was made with, to make it again: one image, with its own seed; of an interpolation, all
    its frames.

    Raises:
        ValueError: the file is no image of ours, its model is not open, or it lacks what made it.
    """
    name = Path(file).name
    try:
        kept = parameters_of(file)
    except ValueError as error:
        raise ValueError(f"{name} does not say what made it: give a PNG that maskgen wrote") from error
    task = str(kept.get("task"))
    names = choose(TASKS, task, "task")
    sources = {key: opened(source) for key, source in sources_of(file).items() if key in names}
    if lacking := [key for key in SOURCES if key in names and key not in sources]:
        raise ValueError(
            f"{name} does not hold the {' and the '.join(lacking)} that it was made from: open them instead"
        )
    pipeline = models[str(kept.get("model"))]
    known = {**defaults(pipeline), "seed": 0, **kept}
    known["class"] = None if known.get("class") is None else class_label(pipeline, str(known["class"]))
    known |= {"count": 1, **sources}
    settings = {key: known[key] for key in (*EVERYWHERE, *names) if key in known}
    model, order = str(known["model"]), str(known["order"])
    job = Job(model, task, settings, known["seed"], known["temperature"], order)
    try:
        check(job, models)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made again: {error}") from error
    return job


def job_from(task: str, form: Mapping[str, Any]) -> Job:
    """The job of a filled form: :class:`Job`'s fields and the settings of all tasks by their names."""
    settings = {name: form[name] for name in (*EVERYWHERE, *choose(TASKS, task, "task"))}
    return Job(form["model"], task, settings, form["seed"], form["temperature"], form["order"])


def told_of(job: Job) -> str:
    """A job in a line, for people."""
    settings = {name: value for name, value in job.settings.items() if name not in (*SOURCES, "count", "class")}
    numbers = {"seed": job.seed, **settings, "temperature": job.temperature, "order": job.order}
    listed = ", ".join(f"{name} {value}" for name, value in numbers.items())
    return f"{job.task} of {job.settings.get('class') or 'no class'} by {job.model}: {listed}"
