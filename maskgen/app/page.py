"""The page: the functions that its buttons call. The work is done in `generation`, `painting` and `models`."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from maskgen.app import layout
from maskgen.app.generation import (
    LIMITS,
    SIDES,
    SOURCES,
    TASKS,
    Generated,
    Job,
    generate,
    job_from_form,
    job_from_image,
    summary_of,
)
from maskgen.app.models import Models, defaults
from maskgen.app.painting import canvas_of, layer_of, mask_of, opened

HERE = Path(__file__).parent
QUEUE = 16  # jobs that may wait; one runs at a time
UPLOAD = "12mb"
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
Updates = dict[Any, Any]


def launch(models: Models, folder: Path, host: str, port: int) -> None:
    """Serve the page of `models` until the process is stopped; files are written to `folder`."""
    page = build(models, folder).queue(max_size=QUEUE, default_concurrency_limit=1)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        pwa=False,
        run_history=False,
        max_file_size=UPLOAD,
        footer_links=[],
        theme=layout.THEME,
        css_paths=HERE / "page.css",
        js=(HERE / "page.js").read_text(),
    )


def build(models: Models, folder: Path) -> gr.Blocks:
    """Build the page; image files are written to `folder`."""
    with gr.Blocks(title="maskgen", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(layout.TITLE, elem_id="title")
        with gr.Row():
            with gr.Column(scale=3, min_width=270):
                controls, dice, sample = layout.settings(models)
                again = layout.reopening()
            with gr.Column(scale=5, min_width=440):
                work = layout.workplace()
                own, buttons, second = layout.tasks(models)
            with gr.Column(scale=5, min_width=400):
                results = layout.results()
        page = _Page(models, folder, {**controls, **own}, work, second, again, results)
        page.wire(dice, {"sample": sample, **buttons})
    return blocks


class _Page:
    """The handlers of the buttons. They take and return values by component."""

    def __init__(
        self,
        models: Models,
        folder: Path,
        controls: layout.Controls,
        work: layout.Work,
        second: layout.Second,
        again: layout.Again,
        results: layout.Results,
    ):
        self.models, self.folder, self.controls = models, folder, controls
        self.work, self.second, self.again, self.results = work, second, again, results

    def wire(self, dice: gr.Button, buttons: Mapping[str, gr.Button]) -> None:
        """Connect the components."""
        controls, work, again, results = self.controls, self.work, self.again, self.results
        on_image = [work.image, work.editor, work.caption, *(controls[side] for side in SIDES)]
        on_second = [self.second.image, self.second.shown]
        form = {*controls.values(), work.image, work.editor, self.second.image}
        options: dict[str, Any] = {"outputs": results.shown, "concurrency_id": "generate", **QUIET}
        running = [b.click(self.runner(task), form, **options) for task, b in buttons.items()]
        running.append(again.button.click(self.make_again, {again.job}, **options))
        results.stop.click(lambda: "Stopped.", None, results.status, cancels=running, queue=False, **QUIET)
        dice.click(lambda: random.randint(0, LIMITS["seed"][2]), None, controls["seed"], queue=False, **QUIET)
        controls["model"].input(self.model_chosen, controls["model"], list(controls.values()), **QUIET)
        results.gallery.select(self.image_chosen, results.files, [results.chosen, results.save], **QUIET)
        results.take.click(self.taken, [results.files, results.chosen], on_image, **QUIET)
        results.take_second.click(self.second_taken, [results.files, results.chosen], on_second, **QUIET)
        work.editor.clear(lambda: (None, layout.NO_IMAGE), None, [work.image, work.caption], **QUIET)
        work.upload.upload(self.uploaded, work.upload, on_image, **QUIET)
        self.second.upload.upload(self.second_uploaded, self.second.upload, on_second, **QUIET)
        reopened = {*controls.values(), *on_image, *on_second, again.job, again.summary, again.button}
        again.upload.upload(self.reopened, again.upload, reopened, **QUIET)

    def runner(self, task: str) -> Callable[[dict[Any, Any]], Iterator[Updates]]:
        """The handler that runs `task` with the settings of the form."""

        def run(values: dict[Any, Any]) -> Iterator[Updates]:
            with friendly():
                form = {name: values[control] for name, control in self.controls.items()}
                form["class"] = None if form["class"] == layout.ANY else form["class"]
                form["image"] = image = values[self.work.image]
                form["image_2"] = values[self.second.image]
                layers = (values[self.work.editor] or {}).get("layers", [])
                needs = image is not None and "mask" in TASKS[task]
                form["mask"] = mask_of(layers, image.size) if needs else None
                yield from self.run(job_from_form(task, form))

        return run

    def make_again(self, values: dict[Any, Any]) -> Iterator[Updates]:
        """Run the job of the image that was opened."""
        with friendly():
            yield from self.run(values[self.again.job])

    def run(self, job: Job) -> Iterator[Updates]:
        """Show the decode steps as they are done, then the images."""
        shown, start = self.results, time.perf_counter()
        yield {shown.status: "Generating ..."}
        steps = generate(self.models, job, self.folder)
        done: Generated | None = None
        while done is None:
            try:
                yield {shown.decode: next(steps)}
            except StopIteration as end:
                done = end.value
            except Exception:
                yield {shown.status: "No image was generated."}
                raise
        files, seeds = [str(file) for file in done.files], done.seeds
        frames = len(set(seeds)) < len(seeds)
        labels = [f"frame {i + 1}" if frames else f"seed {seed}" for i, seed in enumerate(seeds)]
        those = f"seed {seeds[0]}" if seeds[0] == seeds[-1] else f"seeds {seeds[0]} to {seeds[-1]}"
        film = None if done.film is None else str(done.film)
        yield {
            shown.files: files,
            shown.chosen: 0,
            shown.status: f"**Done** in {time.perf_counter() - start:.1f} s, {those}",
            shown.decode: film,
            shown.gallery: gr.Gallery(
                list(zip(files, labels)),
                columns=2 if len(files) < 3 else math.ceil(len(files) ** 0.5) + 1,
                selected_index=0,
            ),
            shown.save: gr.DownloadButton("Save number 1", value=files[0], interactive=True),
            shown.film: gr.DownloadButton(value=film, interactive=film is not None),
            shown.take: gr.Button(interactive=True),
            shown.take_second: gr.Button(interactive=True),
        }

    def image_chosen(self, files: list[str], event: gr.SelectData) -> Updates:
        """Select the image that was clicked."""
        label = f"Save number {event.index + 1}"
        return {self.results.chosen: event.index, self.results.save: gr.DownloadButton(label, value=files[event.index])}

    def taken(self, files: list[str], chosen: int) -> Updates:
        """Put the selected image into the editor."""
        with friendly():
            return self.shown(opened(files[chosen]))

    def uploaded(self, file: str) -> Updates:
        """Put an uploaded file into the editor."""
        with friendly():
            return self.shown(opened(file))

    def second_taken(self, files: list[str], chosen: int) -> Updates:
        """Make the selected image the second one."""
        return self.second_uploaded(files[chosen])

    def second_uploaded(self, file: str | Image.Image) -> Updates:
        """Make an image the second one."""
        with friendly():
            image = opened(file)
            return {self.second.image: image, self.second.shown: image}

    def shown(
        self, image: Image.Image, mask: Image.Image | None = None, added: Mapping[str, int] | None = None
    ) -> Updates:
        """Show an image in the editor, with its painted mask, and set the pixels to add to its sides."""
        canvas = canvas_of(image)
        layers = [] if mask is None else [layer_of(mask, canvas.size)]
        times = f", shown {canvas.width // image.width} times as large" if canvas.width > image.width else ""
        most = max(image.size)
        added = added or {"right": most // 2}
        sides = {side: gr.Slider(maximum=most, value=added.get(side, 0)) for side in SIDES}
        return {
            self.work.image: image,
            self.work.editor: {"background": canvas, "layers": layers, "composite": None},
            self.work.caption: f"{image.width}x{image.height} pixels{times}",
            **{self.controls[side]: slider for side, slider in sides.items()},
        }

    def model_chosen(self, name: str) -> Updates:
        """Set the classes and the defaults of the selected model."""
        names = layout.classes(self.models, name)
        values = defaults(self.models[name]) | layout.spaces(self.models, name)
        values |= {"class": gr.Dropdown(names, value=layout.first(names)), "order": layout.order(self.models, name)}
        return {self.controls[key]: value for key, value in values.items()}

    def reopened(self, file: str) -> Updates:
        """Set the settings and the sources of an image that maskgen made."""
        with friendly():
            job = job_from_image(self.models, file)
            sources = {name: job.settings[name] for name in SOURCES if name in job.settings}
            added = {side: job.settings[side] for side in SIDES if side in job.settings}
            updates = self.shown(sources["image"], sources.get("mask"), added) if sources else {}
            updates |= self.second_uploaded(sources["image_2"]) if "image_2" in sources else {}
            kept = {**job.settings, "model": job.model, "seed": job.seed}
            kept |= {"choice_temperature": job.choice_temperature, "order": job.order}
            values = {
                control: kept[name] for name, control in self.controls.items() if name in kept.keys() - set(SIDES)
            }
            names = layout.classes(self.models, job.model)
            values[self.controls["class"]] = gr.Dropdown(names, value=kept["class"] or layout.ANY)
            values[self.controls["order"]] = layout.order(self.models, job.model, job.order)
            between = layout.spaces(self.models, job.model, kept.get("gap", 0), kept.get("keep", 0))
            values |= {self.controls[name]: slider for name, slider in between.items()}
            values |= {self.again.job: job, self.again.summary: summary_of(job)}
            return {**updates, **values, self.again.button: gr.Button(interactive=True)}


@contextmanager
def friendly() -> Iterator[None]:
    """Show user errors on the page, without a traceback."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        raise gr.Error(str(error), print_exception=False) from error
