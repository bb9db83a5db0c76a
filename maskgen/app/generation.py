"""The jobs of the page: settings -> decode steps and image files, and an image file -> its settings."""

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
from maskgen.pipelines.jobs import prepare
from maskgen.pipelines.trace import DecodeTrace
from maskgen.registry import choose
from maskgen.renamed import moved

MAX_JOBS = 256  # jobs whose files are kept
MAX_TRACED = 4  # images of a batch whose decode is shown
SIDES = ("left", "top", "right", "bottom")
# Number -> its type, and the smallest and largest value that the page accepts.
LIMITS = {
    "count": (int, 1, 16),
    "steps": (int, 1, 256),
    "guidance": (float, 0, 20),
    "choice_temperature": (float, 0, 30),
    "seed": (int, 0, 2**31 - 1),
    "strength": (float, 0, 1),
    "grow": (int, 0, 16),
    "frames": (int, 2, 16),
    **dict.fromkeys(("gap", "keep"), (int, 1, MAX_SIDE)),
    **dict.fromkeys(SIDES, (int, 0, MAX_SIDE)),
}
SHARED = ("class", "steps", "guidance")  # settings of every task
# Task -> its own settings.
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
    """One task with all its settings.

    model: a name of :class:`maskgen.app.models.Models`.
    task: a name of :data:`TASKS`.
    settings: :data:`SHARED` and the settings of the task; those of :data:`SOURCES` are PIL images.
    seed: image i is generated with seed + i; all frames of an interpolation are generated with `seed`.
    choice_temperature, order: options of the scheduler.

    The numbers may still be invalid; :func:`check` rejects those.
    """

    model: str
    task: str
    settings: Mapping[str, Any]
    seed: Any
    choice_temperature: Any
    order: str


@dataclass(frozen=True)
class Generated:
    """The result of a job: the image files, which keep how they were made, and the seed of each.

    film: the decode steps as a GIF, or None for tokens without a position in the image.
    """

    files: list[Path]
    seeds: list[int]
    film: Path | None


def check(job: Job, models: Models) -> None:
    """Check a job against the limits of the page.

    Raises:
        ValueError: a setting is missing, unknown or out of range; the message names it and what is allowed.
    """
    models[job.model].labels_of(job.settings.get("class"), 1)
    names = choose(TASKS, job.task, "task")
    choose(ORDERS, job.order, "order")
    if job.order == "critic" and models[job.model].critic is None:
        raise ValueError(f"{job.model} has no critic: choose another order, or train a critic (docs/decoding.md)")
    numbers = {**job.settings, "seed": job.seed, "choice_temperature": job.choice_temperature}
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
        raise ValueError("choose the new class in the settings")
    if job.task == "outpaint":
        image, sides = job.settings["image"], [job.settings.get(side, 0) for side in SIDES]
        check_side(image.width + sides[0] + sides[2], image.height + sides[1] + sides[3])
    if job.task == "join":
        check_side(job.settings.get("gap", 0) + 2 * job.settings.get("keep", 0), models[job.model].size[0])


def generate(models: Models, job: Job, folder: Path) -> Generator[Image.Image, None, Generated]:
    """Run a job. Yield an image of each decode step as it is done, and return the result.

    Tokens without a position in the image have no images of their steps.

    Args:
        folder: each job gets a new folder in it; the oldest of more than :data:`MAX_JOBS` is removed.

    Raises:
        ValueError: what :func:`check` and the task raise.
    """
    check(job, models)
    pipeline = scheduled(models[job.model], job.choice_temperature, job.order)
    model = None if job.model == BUNDLED else job.model
    call = prepare(pipeline, job.task, job.settings, job.seed, model)
    film = DecodeTrace(MAX_TRACED)
    side = 192 if job.settings.get("count", job.settings.get("frames", 1)) == 1 else 96
    has_positions = len(pipeline.transformer.grid) == 2

    def work(send: Callable[[Image.Image], None]) -> list[Image.Image]:
        def trace(*step: Tensor) -> None:
            film(*step)
            send(film.frame(pipeline.vqvae, len(film.steps) - 1, side))

        images: list[Image.Image] = call.method(**call.arguments, trace=trace if has_positions else None).images
        return images

    images = yield from streamed(work)
    target = folder / "generated" / uuid4().hex
    for old in sorted(target.parent.glob("*"), key=lambda path: path.stat().st_mtime)[: 1 - MAX_JOBS]:
        rmtree(old, ignore_errors=True)
    sources = {name: job.settings[name] for name in SOURCES if job.settings.get(name) is not None}
    scheduler = {"choice_temperature": job.choice_temperature, "order": job.order}
    kept = [call.parameters(i) | scheduler for i in range(len(images))]
    name = f"{job.task}-{{seed}}{'-{number}' if call.one_seed else ''}.png"
    files = [save(image, target / name.format(**own), own, sources) for image, own in zip(images, kept)]
    gif = film.save(target / f"{job.task}-{job.seed}.gif", pipeline.vqvae, side) if has_positions else None
    return Generated(files, [own["seed"] for own in kept], gif)


def streamed(work: Callable[[Callable[[S], None]], T]) -> Generator[S, None, T]:
    """Run `work(send)` in a thread. Yield each value that it sends at once; return its result or raise its error.

    If the generator is closed, the next `send` ends the work.
    """
    steps: SimpleQueue[S | None] = SimpleQueue()
    closed = Event()

    def send(step: S) -> None:
        if closed.is_set():
            raise RuntimeError("the job was stopped")
        steps.put(step)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, send)
        future.add_done_callback(lambda _: steps.put(None))
        try:
            while (step := steps.get()) is not None:
                yield step
        finally:
            closed.set()
        return future.result()


def job_from_image(models: Models, file: str | Path) -> Job:
    """The job that makes an image of maskgen again: this image with its own seed, or all frames of an interpolation.

    Raises:
        ValueError: maskgen did not write the file, its model is not open, or its sources are missing.
    """
    name = Path(file).name
    try:
        kept = moved("image parameters", parameters_of(file))
    except ValueError as error:
        raise ValueError(f"{name} does not hold its settings: give a PNG that maskgen wrote") from error
    task = str(kept.get("task"))
    names = choose(TASKS, task, "task")
    sources = {key: opened(source) for key, source in sources_of(file).items() if key in names}
    if missing := [key for key in SOURCES if key in names and key not in sources]:
        raise ValueError(
            f"{name} does not hold the {' and the '.join(missing)} that it was made from: upload the sources instead"
        )
    pipeline = models[str(kept.get("model"))]
    known = {**defaults(pipeline), "seed": 0, **kept}
    known["class"] = None if known.get("class") is None else class_label(pipeline, str(known["class"]))
    known |= {"count": 1, **sources}
    settings = {key: known[key] for key in (*SHARED, *names) if key in known}
    model, order = str(known["model"]), str(known["order"])
    job = Job(model, task, settings, known["seed"], known["choice_temperature"], order)
    try:
        check(job, models)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made again: {error}") from error
    return job


def job_from_form(task: str, form: Mapping[str, Any]) -> Job:
    """The job of a filled form, which holds the fields of :class:`Job` and the settings of all tasks by name."""
    settings = {name: form[name] for name in (*SHARED, *choose(TASKS, task, "task"))}
    return Job(form["model"], task, settings, form["seed"], form["choice_temperature"], form["order"])


def summary_of(job: Job) -> str:
    """A job as one line of text."""
    settings = {name: value for name, value in job.settings.items() if name not in (*SOURCES, "count", "class")}
    numbers = {"seed": job.seed, **settings, "choice_temperature": job.choice_temperature, "order": job.order}
    listed = ", ".join(f"{name} {value}" for name, value in numbers.items())
    return f"{job.task} of {job.settings.get('class') or 'no class'} by {job.model}: {listed}"
