"""The page's components, laid out; by the names that forms and jobs have for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from maskgen.app.drawing import LIMITS, SIDES
from maskgen.app.models import Models, defaults, orders
from maskgen.app.painting import EDITOR, PAINT

ANY = "any (no class)"
NO_IMAGE = "or take a result: *Edit this image*"
Controls = dict[str, Any]
FONTS = {
    "font": [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],  # the machine's own: nothing is fetched
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
Hide tokens and predict them from the rest: generate, paint over a part and complete it, extend, vary, join two."""


@dataclass
class Work:
    """The image that is worked on: itself, at its own size, and enlarged in the editor."""

    upload: gr.UploadButton
    image: gr.State
    editor: gr.ImageEditor
    caption: gr.Markdown


@dataclass
class Second:
    """Another image, for the tasks of two."""

    upload: gr.UploadButton
    image: gr.State
    shown: gr.Image


@dataclass
class Again:
    """An image that says what made it."""

    upload: gr.UploadButton
    job: gr.State
    summary: gr.Markdown
    button: gr.Button


@dataclass
class Results:
    """What was drawn: paths of the files, which of them is chosen, and what shows them."""

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
        """What a drawing changes."""
        kept = [self.files, self.chosen, self.status, self.decode, self.gallery, self.save, self.film]
        return [*kept, self.take, self.take_second]


def settings(models: Models) -> tuple[Controls, gr.Button, gr.Button]:
    """How to draw, for every task; the buttons of a random seed and of generating."""
    name = models.names[0]
    own, names = defaults(models[name]), classes(models, name)
    _heading("Settings")
    with gr.Group():
        controls: Controls = {
            "model": gr.Dropdown(models.names, value=name, label="Model"),
            "class": gr.Dropdown(names, value=first(names), label="Class", elem_id="class"),
            "count": _slider("count", 4, "Images"),
            "steps": _slider("steps", own["steps"], "Steps", "Fewer are faster."),
            "guidance": _slider("guidance", own["guidance"], "Guidance", "How much to insist on the class; 1: not."),
        }
        with gr.Row(elem_id="seed-row"):
            controls["seed"] = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=120, elem_id="seed")
            dice = gr.Button("Random seed", size="sm", min_width=100, elem_id="dice")
        with gr.Accordion("Order of the tokens", open=False):
            note = "Chance in which tokens are kept; 0: the surest."
            controls["temperature"] = _slider("temperature", own["temperature"], "Temperature", note)
            controls["order"] = order(models, name)
    return controls, dice, _button("Generate", "sample")


def classes(models: Models, name: str) -> list[str]:
    """What may be asked of a model."""
    return [ANY, *models[name].class_names]


def first(names: list[str]) -> str:
    """The first class, if there are any."""
    return names[min(1, len(names) - 1)]


def order(models: Models, name: str, value: str | None = None) -> gr.Dropdown:
    """The orders of a model, its own chosen unless another is."""
    lacks = "Order critic is for models that have one; this has none."
    return gr.Dropdown(
        choices := orders(models[name]),
        value=value or defaults(models[name])["order"],
        label="Order",
        info=None if "critic" in choices else lacks,
        elem_id="order",
    )


def spaces(models: Models, name: str, gap: int = 0, keep: int = 0) -> dict[str, gr.Slider]:
    """What is put between two images and kept of each: a half and a quarter of a model's width if 0."""
    width = models[name].size[1]
    values = {"gap": gap or width // 2, "keep": keep or width // 4}
    labels = {"gap": "Gap", "keep": "Keep of each"}
    return {n: gr.Slider(1, 2 * width, v, step=1, label=labels[n], min_width=120, elem_id=n) for n, v in values.items()}


def reopening() -> Again:
    """A file that says what made it."""
    with gr.Accordion("Make again", open=False):
        _help("A PNG that this page or `maskgen sample` wrote says what made it. Open one, and draw it once more.")
        upload = gr.UploadButton("Open an image", size="sm", file_types=[".png"], elem_id="reopen")
        summary = gr.Markdown("", elem_classes="help", elem_id="summary")
        button = gr.Button("Make it again", size="sm", interactive=False, elem_id="remake")
    return Again(upload, gr.State(None), summary, button)


def workplace() -> Work:
    """The image to work on."""
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
    """What can be done with the image: settings, the button of each task, and a second image."""
    controls: Controls = {}
    buttons = {}
    with gr.Tabs():
        with gr.Tab("Complete"):
            _help("Paint over what is to be drawn anew. All other pixels stay as they are, bit for bit.")
            buttons["inpaint"] = _button("Complete", "inpaint")
        with gr.Tab("Change"):
            _help("Paint a region; it becomes the class that is chosen in the settings.")
            controls["grow"] = gr.Slider(0, 4, 1, step=1, label="Grow by tokens", info="So that no rim is left.")
            buttons["edit"] = _button("Change the class", "edit")
        with gr.Tab("Extend"):
            _help("Pixels to add on each side.")
            for pair in (SIDES[::2], SIDES[1::2]):
                with gr.Row():
                    for side in pair:
                        controls[side] = gr.Slider(
                            0, 64, 0, step=1, label=side.capitalize(), min_width=120, elem_id=side
                        )
            buttons["outpaint"] = _button("Extend", "outpaint")
        with gr.Tab("Vary"):
            _help("Images like this one: a random share of its tokens is drawn anew.")
            controls["strength"] = gr.Slider(0, 1, 0.5, step=0.05, label="Share drawn anew")
            buttons["vary"] = _button("Vary", "vary")
        with gr.Tab("Two images"):
            second = _second()
            with gr.Tabs():
                with gr.Tab("Interpolate"):
                    _help("Frames from your image to the second. *Vary* says the share drawn anew half-way.")
                    controls["frames"] = gr.Slider(2, 16, 8, step=1, label="Frames", elem_id="frames")
                    buttons["interpolate"] = _button("Interpolate", "interpolate")
                with gr.Tab("Join"):
                    _help("Your image on the left, the second on the right. In pixels at the model's height.")
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
            _help("The second image: a file, or a result by *Take as second*.")
            upload = gr.UploadButton("Upload a second", size="sm", file_types=["image"], elem_id="upload-second")
    return Second(upload, gr.State(None), shown)


def results() -> Results:
    """What was drawn, and how."""
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
        status = gr.Markdown("Nothing is drawn yet.", elem_classes="help", elem_id="status")
        stop = gr.Button("Stop", size="sm", min_width=80, scale=0, elem_id="stop")
    decode = gr.Image(
        show_label=False, interactive=False, format="png", buttons=[], height=300, placeholder="", elem_id="decode"
    )
    _help("The decode: tokens decided so far, and the probability that each had, from blue to yellow.")
    film = gr.DownloadButton("Save the decode as GIF", size="sm", interactive=False)
    return Results(gr.State([]), gr.State(0), status, decode, gallery, save, film, take, take_second, stop)


def _heading(text: str) -> None:
    gr.Markdown(f"### {text}", elem_classes="heading")


def _help(text: str) -> None:
    gr.Markdown(text, elem_classes="help")


def _button(label: str, task: str) -> gr.Button:
    return gr.Button(label, variant="primary", elem_id=f"draw-{task}")


def _slider(name: str, value: float, label: str, info: str | None = None) -> gr.Slider:
    kind, low, high = LIMITS[name]
    return gr.Slider(low, high, value, step=1 if kind is int else 0.1, label=label, info=info)
