"""The components of the page, by the names that they have in forms and jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from maskgen.app.generation import LIMITS, SIDES
from maskgen.app.models import Models, defaults, orders
from maskgen.app.painting import EDITOR, PAINT

ANY = "any (no class)"
NO_IMAGE = "or take a result with *Edit this image*"
Controls = dict[str, Any]
FONTS = {
    "font": [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],  # fonts of the machine: nothing is downloaded
    "font_mono": [gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
}
THEME = gr.themes.Soft(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", **FONTS).set(
    body_background_fill="*neutral_100",
    body_text_color_subdued="*neutral_500",
    block_title_background_fill="transparent",
    block_title_padding="0",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)
TITLE = """# maskgen
Generate images, inpaint a painted part, extend, vary or join images. The model predicts hidden tokens from the rest."""


@dataclass
class Work:
    """The image to edit: at its own size, and enlarged in the editor."""

    upload: gr.UploadButton
    image: gr.State
    editor: gr.ImageEditor
    caption: gr.Markdown


@dataclass
class Second:
    """The second image, for tasks that take two."""

    upload: gr.UploadButton
    image: gr.State
    shown: gr.Image


@dataclass
class Again:
    """An opened image that holds its settings."""

    upload: gr.UploadButton
    job: gr.State
    summary: gr.Markdown
    button: gr.Button


@dataclass
class Results:
    """The results: paths of the files, the number of the selected one, and the components that show them."""

    files: gr.State
    chosen: gr.State
    status: gr.Markdown
    decode: gr.Image
    gallery: gr.Gallery
    save: gr.DownloadButton
    film: gr.DownloadButton
    take: gr.Button
    take_second: gr.Button
    stop: gr.Button

    @property
    def shown(self) -> list[Any]:
        """The components that a job changes."""
        kept = [self.files, self.chosen, self.status, self.decode, self.gallery, self.save, self.film]
        return [*kept, self.take, self.take_second]


def settings(models: Models) -> tuple[Controls, gr.Button, gr.Button]:
    """The settings of every task, the button for a random seed, and the button that generates."""
    name = models.names[0]
    own, names = defaults(models[name]), classes(models, name)
    _heading("Settings")
    with gr.Group():
        controls: Controls = {
            "model": gr.Dropdown(models.names, value=name, label="Model"),
            "class": gr.Dropdown(names, value=first(names), label="Class", elem_id="class"),
            "count": _slider("count", 4, "Images"),
            "steps": _slider("steps", own["steps"], "Steps", "Fewer steps are faster."),
            "guidance": _slider("guidance", own["guidance"], "Guidance", "Strength of the class; 1 is no guidance."),
        }
        with gr.Row(elem_id="seed-row"):
            controls["seed"] = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=120, elem_id="seed")
            dice = gr.Button("Random seed", size="sm", min_width=100, elem_id="dice")
        with gr.Accordion("Order of the tokens", open=False):
            note = "Randomness in which tokens are kept; 0 keeps the most confident."
            value = own["choice_temperature"]
            controls["choice_temperature"] = _slider("choice_temperature", value, "Choice temperature", note)
            controls["order"] = order(models, name)
    return controls, dice, _button("Generate", "sample")


def classes(models: Models, name: str) -> list[str]:
    """The classes of a model, after the choice of no class."""
    return [ANY, *models[name].class_names]


def first(names: list[str]) -> str:
    """The first class, or no class if the model has none."""
    return names[min(1, len(names) - 1)]


def order(models: Models, name: str, value: str | None = None) -> gr.Dropdown:
    """The orders of a model; the default is the model's."""
    lacks = "This model has no critic, so it has no order critic."
    return gr.Dropdown(
        choices := orders(models[name]),
        value=value or defaults(models[name])["order"],
        label="Order",
        info=None if "critic" in choices else lacks,
        elem_id="order",
    )


def spaces(models: Models, name: str, gap: int = 0, keep: int = 0) -> dict[str, gr.Slider]:
    """The pixels between two images and those kept of each; 0 is half and a quarter of the model's width."""
    width = models[name].size[1]
    values = {"gap": gap or width // 2, "keep": keep or width // 4}
    labels = {"gap": "Gap", "keep": "Keep of each"}
    return {n: gr.Slider(1, 2 * width, v, step=1, label=labels[n], min_width=120, elem_id=n) for n, v in values.items()}


def reopening() -> Again:
    """The part of the page that opens an image and makes it again."""
    with gr.Accordion("Make again", open=False):
        _help("A PNG of this page or of `maskgen sample` holds its settings. Open one to make it again.")
        upload = gr.UploadButton("Open an image", size="sm", file_types=[".png"], elem_id="reopen")
        summary = gr.Markdown("", elem_classes="help", elem_id="summary")
        button = gr.Button("Make it again", size="sm", interactive=False, elem_id="remake")
    return Again(upload, gr.State(None), summary, button)


def workplace() -> Work:
    """The image to edit."""
    _heading("Your image")
    editor = gr.ImageEditor(
        type="pil",
        format="png",
        sources=(),
        transforms=(),
        layers=False,
        buttons=[],
        brush=gr.Brush(default_size=32, colors=["#{:02x}{:02x}{:02x}".format(*PAINT)], color_mode="fixed"),
        eraser=gr.Eraser(default_size=32),
        canvas_size=(EDITOR, EDITOR),
        height=EDITOR + 72,
        show_label=False,
        placeholder="# Upload an image\nor take a result",
        elem_id="editor",
    )
    with gr.Row():
        upload = gr.UploadButton("Upload an image", size="sm", file_types=["image"], elem_id="upload")
        caption = gr.Markdown(NO_IMAGE, elem_classes="help", elem_id="caption")
    return Work(upload, gr.State(None), editor, caption)


def tasks(models: Models) -> tuple[Controls, dict[str, gr.Button], Second]:
    """The tasks on the image: settings, the button of each task, and the second image."""
    controls: Controls = {}
    buttons = {}
    with gr.Tabs():
        with gr.Tab("Inpaint"):
            _help("Paint over the part to replace. All other pixels stay the same, bit for bit.")
            buttons["inpaint"] = _button("Inpaint", "inpaint")
        with gr.Tab("Edit"):
            _help("Paint over a region. It becomes the class that is selected in the settings.")
            controls["grow"] = gr.Slider(0, 4, 1, step=1, label="Grow by tokens", info="Prevents a visible rim.")
            buttons["edit"] = _button("Change the class", "edit")
        with gr.Tab("Extend"):
            _help("Choose how many pixels to add on each side.")
            for pair in (SIDES[::2], SIDES[1::2]):
                with gr.Row():
                    for side in pair:
                        controls[side] = gr.Slider(
                            0, 64, 0, step=1, label=side.capitalize(), min_width=120, elem_id=side
                        )
            buttons["outpaint"] = _button("Extend", "outpaint")
        with gr.Tab("Vary"):
            _help("Generate variations: a random share of the tokens is replaced.")
            controls["strength"] = gr.Slider(0, 1, 0.5, step=0.05, label="Share replaced")
            buttons["vary"] = _button("Vary", "vary")
        with gr.Tab("Two images"):
            second = _second()
            with gr.Tabs():
                with gr.Tab("Interpolate"):
                    _help("Generate frames from your image to the second. *Vary* sets the share replaced half-way.")
                    controls["frames"] = gr.Slider(2, 16, 8, step=1, label="Frames", elem_id="frames")
                    buttons["interpolate"] = _button("Interpolate", "interpolate")
                with gr.Tab("Join"):
                    _help("Your image is on the left, the second on the right. Pixels count at the model's height.")
                    with gr.Row():
                        controls |= spaces(models, models.names[0])
                    buttons["join"] = _button("Join", "join")
    return controls, buttons, second


def _second() -> Second:
    with gr.Row():
        shown = gr.Image(
            show_label=False,
            interactive=False,
            format="png",
            buttons=[],
            height=96,
            min_width=96,
            placeholder="",
            elem_id="second",
        )
        with gr.Column(scale=3, min_width=160):
            _help("Upload the second image, or take a result with *Take as second*.")
            upload = gr.UploadButton("Upload a second", size="sm", file_types=["image"], elem_id="upload-second")
    return Second(upload, gr.State(None), shown)


def results() -> Results:
    """The images and their decode."""
    _heading("Result")
    gallery = gr.Gallery(
        show_label=False,
        columns=2,
        fit_columns=False,
        height=300,
        object_fit="contain",
        allow_preview=False,
        buttons=[],
        interactive=False,
        elem_id="gallery",
    )
    with gr.Row():
        save = gr.DownloadButton("Save as PNG", size="sm", interactive=False, min_width=100, elem_id="save")
        take = gr.Button("Edit this image", size="sm", interactive=False, min_width=100, elem_id="take")
        take_second = gr.Button("Take as second", size="sm", interactive=False, min_width=100, elem_id="take-second")
    with gr.Row():
        status = gr.Markdown("There is no image yet.", elem_classes="help", elem_id="status")
        stop = gr.Button("Stop", size="sm", min_width=80, scale=0, elem_id="stop")
    decode = gr.Image(
        show_label=False, interactive=False, format="png", buttons=[], height=300, placeholder="", elem_id="decode"
    )
    _help("The decode shows the tokens decided so far and their probabilities, from blue to yellow.")
    film = gr.DownloadButton("Save the decode as GIF", size="sm", interactive=False)
    return Results(gr.State([]), gr.State(0), status, decode, gallery, save, film, take, take_second, stop)


def _heading(text: str) -> None:
    gr.Markdown(f"### {text}", elem_classes="heading")


def _help(text: str) -> None:
    gr.Markdown(text, elem_classes="help")


def _button(label: str, task: str) -> gr.Button:
    return gr.Button(label, variant="primary", elem_id=f"run-{task}")


def _slider(name: str, value: float, label: str, info: str | None = None) -> gr.Slider:
    kind, low, high = LIMITS[name]
    return gr.Slider(low, high, value, step=1 if kind is int else 0.1, label=label, info=info)
