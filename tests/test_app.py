"""The web page without a browser: models, painted masks, drawings, and images that say how to make them again."""

import sys
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

import flat
from given import an_image, array, mask
from maskgen import MaskedImagePipeline
from maskgen.app import serve
from maskgen.app.generation import (
    TASKS,
    Job,
    check,
    generate,
    job_from_form,
    job_from_image,
    streamed,
    summary_of,
)
from maskgen.app.models import Models, defaults, orders, scheduled
from maskgen.app.painting import canvas_of, layer_of, mask_of, opened
from maskgen.images import parameters_of, save, sources_of, to_pil
from maskgen.pipelines.jobs import TASKS as COMMANDS
from maskgen.pipelines.jobs import run_task


@pytest.fixture(scope="module")
def run(make_pipeline, tmp_path_factory):
    """The folder of a saved pipeline."""
    folder = tmp_path_factory.mktemp("app") / "run"
    make_pipeline(choice_temperature=(3.0, 1.0)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(run):
    return Models([run], "cpu")


def form(run, **changes):
    """As the page fills it."""
    numbers = {"count": 1, "steps": 3, "guidance": 1.5, "seed": 5, "choice_temperature": 2.0}
    more = {"grow": 1, "strength": 0.5, "left": 0, "top": 0, "right": 3, "bottom": 0, "frames": 4, "gap": 4, "keep": 3}
    filled = {"model": run, "class": "bee", "order": "halton", "image": an_image(), "mask": mask()}
    return {**numbers, **more, **filled, "image_2": an_image(9, 7, 1), **changes}


def drawn(models, job, folder):
    """The steps' images and the result."""
    frames, steps = [], generate(models, job, folder)
    while True:
        try:
            frames.append(next(steps))
        except StopIteration as end:
            return frames, end.value


# ------------------------------------------------------------------------------------------------------------- models


def test_the_models_given_come_first_and_the_bundled_one_is_there(models, run, tmp_path):
    assert models.names == [run, "bundled emoji"]
    assert models["bundled emoji"].class_names[0] == "face-smiling"
    with pytest.raises(ValueError, match=r"model 'bundled emojy' is not open here: did you mean 'bundled emoji'"):
        models["bundled emojy"]
    with pytest.raises(FileNotFoundError, match=r"no run or pipeline at .*none"):
        Models([str(tmp_path / "none")], "cpu")


def test_another_order_or_temperature_leaves_the_model_as_it_is(models, run):
    pipeline = models[run]
    assert defaults(pipeline) == {"steps": 4, "guidance": 1.0, "choice_temperature": 3.0, "order": "confidence"}
    view = scheduled(pipeline, 0.5, "raster")
    assert (view.scheduler.config.choice_temperature, view.scheduler.config.order) == (0.5, "raster")
    assert view.transformer is pipeline.transformer
    assert view.class_names == ["ant", "bee", "cat"]
    assert defaults(pipeline)["order"] == "confidence"
    untouched = scheduled(pipeline, **{k: defaults(pipeline)[k] for k in ("choice_temperature", "order")})
    assert tuple(untouched.scheduler.config.choice_temperature) == (3.0, 1.0)


# ----------------------------------------------------------------------------------------------------------- painting


def test_small_images_are_enlarged_pixel_by_pixel():
    image = an_image(32, 24)
    canvas = canvas_of(image)
    assert canvas.size == (384, 288)
    np.testing.assert_array_equal(array(canvas), array(image).repeat(12, 0).repeat(12, 1))
    assert canvas_of(an_image(1000, 500)).size == (384, 192)


@pytest.mark.parametrize("size", [(8, 8), (32, 24), (500, 300)])
def test_a_pixel_is_hidden_if_any_part_of_it_is_painted(size):
    canvas = canvas_of(an_image(*size))
    painted = np.zeros((canvas.height, canvas.width, 4), np.uint8)
    painted[canvas.height // 2, 5:200, 3] = 255
    painted[0, 0, 3] = 127  # the faint rim of a stroke
    hidden = array(mask_of([None, Image.fromarray(painted)], size)) > 0
    width, height = size
    for y, x in np.ndindex(height, width):
        rows = slice(y * canvas.height // height, -(-(y + 1) * canvas.height // height))
        columns = slice(x * canvas.width // width, -(-(x + 1) * canvas.width // width))
        assert hidden[y, x] == (painted[rows, columns, 3] >= 128).any()


def test_a_mask_painted_again_is_the_same():
    hole = mask((1, 2, 5, 7))
    layer = layer_of(hole, canvas_of(an_image()).size)
    np.testing.assert_array_equal(array(mask_of([layer], (8, 8))), array(hole))


def test_images_that_cannot_be_worked_on_are_told(tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ValueError, match=r"^bad.png cannot be read as an image; give a PNG, JPEG"):
        opened(tmp_path / "bad.png")
    with pytest.raises(ValueError, match="1025x2 pixels; the page takes sides of at most 1024"):
        opened(an_image(1025, 2))
    for layers in ([], [None], [layer_of(mask((0, 0, 0, 0)), (8, 8))]):
        with pytest.raises(ValueError, match="nothing is painted yet"):
            mask_of(layers, (8, 8))
    clear = Image.new("RGBA", (2, 2), (9, 9, 9, 0))
    np.testing.assert_array_equal(array(opened(clear)), np.full((2, 2, 3), 255))


# ------------------------------------------------------------------------------------------------------------ drawing


def test_a_drawing_shows_its_steps_and_is_what_the_command_draws(models, run, tmp_path):
    job = job_from_form("sample", form(run, order="confidence", choice_temperature=3.0, count=3))
    frames, result = drawn(models, job, tmp_path)
    assert len(frames) == 4  # the blank canvas and 3 steps
    with Image.open(result.film) as film:
        assert film.n_frames == 4
    settings = {"class": "bee", "count": 3, "steps": 3, "guidance": 1.5}
    expected = run_task(models[run], "sample", settings, tmp_path / "x.png", 5)
    for got, wanted in zip(result.files, expected, strict=True):
        np.testing.assert_array_equal(array(got), array(wanted))
    kept = {**settings, "task": "sample", "model": run, "seed": 7, "number": 2, "choice_temperature": 3.0}
    assert kept.items() <= parameters_of(result.files[2]).items()


def test_the_order_and_the_class_of_the_form_are_used(models, run, tmp_path):
    made = {}
    for changes in ({}, {"order": "raster"}, {"class": "ant"}, {"class": None}):
        _, result = drawn(models, job_from_form("sample", form(run, **changes)), tmp_path)
        made[str(changes)] = array(result.files[0]).tobytes()
    assert len(set(made.values())) == 4


def test_what_is_not_painted_stays_bit_for_bit(models, run, tmp_path):
    _, result = drawn(models, job_from_form("inpaint", form(run, count=2)), tmp_path)
    hidden = array(mask()) > 0
    for file in result.files:
        np.testing.assert_array_equal(array(file)[~hidden], array(an_image())[~hidden])
        assert (array(file)[hidden] != array(an_image())[hidden]).any()


@pytest.mark.parametrize("task", TASKS)
def test_any_image_of_a_batch_can_be_made_again_from_its_file(models, run, tmp_path, task):
    _, result = drawn(models, job_from_form(task, form(run, count=3)), tmp_path)
    frames = task == "interpolate"  # of one seed, and made again together
    assert result.seeds == ([5, 5, 5, 5] if frames else [5, 6, 7])
    job = job_from_image(models, result.files[2])
    assert (job.task, job.seed, job.order, job.choice_temperature) == (task, result.seeds[2], "halton", 2.0)
    assert job.settings.get("count") == (None if frames else 1)
    _, again = drawn(models, job, tmp_path)
    assert len(again.files) == (4 if frames else 1)
    np.testing.assert_array_equal(array(again.files[2 if frames else 0]), array(result.files[2]))
    assert summary_of(job).startswith(f"{task} of bee by {run}: seed {job.seed}")


def test_every_task_of_the_commands_is_on_the_page():
    assert TASKS.keys() == COMMANDS.keys()


def test_two_images_are_joined_and_pass_into_each_other(models, run, tmp_path):
    first, second = an_image(), an_image(seed=1)
    _, joined = drawn(models, job_from_form("join", form(run, image_2=second, gap=4, keep=4)), tmp_path)
    made = array(joined.files[0])
    assert made.shape == (8, 12, 3)
    np.testing.assert_array_equal(made[:, :4], array(first)[:, :4])
    np.testing.assert_array_equal(made[:, -4:], array(second)[:, -4:])
    _, frames = drawn(models, job_from_form("interpolate", form(run, image_2=second)), tmp_path)
    tokenizer = models[run].vqvae
    for file, end in ((frames.files[0], first), (frames.files[-1], second)):
        pixels = torch.from_numpy(array(end).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        (expected,) = to_pil(tokenizer.decode(tokenizer.encode(pixels)))
        np.testing.assert_array_equal(array(file), array(expected))


def test_order_critic_is_there_where_a_critic_is(models, run, tmp_path):
    pipeline = models[run]
    assert "critic" not in orders(pipeline)
    with pytest.raises(ValueError, match=r"run has no critic: choose another order, or train"):
        drawn(models, job_from_form("sample", form(run, order="critic")), tmp_path)
    torch.manual_seed(1)
    critic = flat.transformer(32, (4, 4), num_classes=3, width=16, depth=1, heads=2, predictions=1)
    torch.nn.init.normal_(critic.head.weight)
    parts = {**pipeline.components, "critic": critic}
    MaskedImagePipeline(**parts, class_names=pipeline.class_names).save_pretrained(tmp_path / "judged")
    judged = str(tmp_path / "judged")
    both = Models([judged], "cpu")
    assert "critic" in orders(both[judged])
    made = {}
    for order in ("critic", "confidence"):
        _, result = drawn(both, job_from_form("sample", form(judged, order=order)), tmp_path)
        made[order] = array(result.files[0]).tobytes()
    assert made["critic"] != made["confidence"]


def test_an_image_of_the_command_uses_its_models_own_scheduler(models, run, tmp_path):
    (file,) = run_task(models[run], "sample", {"class": "2"}, tmp_path / "x.png", 3, model=run)
    job = job_from_image(models, file)
    assert job == Job(run, "sample", {"class": "cat", "steps": 4, "guidance": 1.0, "count": 1}, 3, 3.0, "confidence")
    _, again = drawn(models, job, tmp_path)
    np.testing.assert_array_equal(array(again.files[0]), array(file))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("sample", {"steps": 0}, "steps is 0; give a whole number from 1 to 256"),
        ("sample", {"count": 17}, "count is 17; give a whole number from 1 to 16"),
        ("sample", {"seed": None}, "seed is None; give a whole number from 0"),
        ("sample", {"guidance": float("nan")}, "guidance is nan; give a number from 0 to 20"),
        ("sample", {"choice_temperature": "hot"}, "choice_temperature is 'hot'; give a number from 0"),
        ("sample", {"class": "be"}, "unknown class 'be': did you mean 'bee'?"),
        ("sample", {"order": "rastr"}, "did you mean 'raster'?"),
        ("inpaint", {"image": None, "mask": None}, "there is no image yet: upload one"),
        ("edit", {"class": None}, "choose the new class"),
        ("outpaint", {"right": 0}, "0 pixels on every side"),
        ("outpaint", {"right": 1020}, "1028x8 pixels; the page takes sides of at most 1024"),
        ("vary", {"strength": 2}, "strength is 2; give a number from 0 to 1"),
        ("interpolate", {"image_2": None}, "there is no second image yet: upload one"),
        ("interpolate", {"frames": 17}, "frames is 17; give a whole number from 2 to 16"),
        ("join", {"image": None}, "there is no image yet"),
        ("join", {"gap": 0}, "gap is 0; give a whole number from 1"),
        ("join", {"gap": 1000, "keep": 13}, "1026x8 pixels; the page takes sides of at most 1024"),
        ("join", {"gap": 1, "keep": 1}, "8: keep more"),
        ("paint", {}, "unknown task 'paint': did you mean 'inpaint'?"),
    ],
)
def test_what_cannot_be_drawn_is_told(models, run, tmp_path, task, changes, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        drawn(models, job_from_form(task, form(run, **changes)), tmp_path)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_say_how_they_were_made_are_told(models, run, tmp_path):
    an_image().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"^a.png does not hold its settings: give a PNG that maskgen wrote"):
        job_from_image(models, tmp_path / "a.png")
    an_image().save(tmp_path / "b.png")
    mask().save(tmp_path / "m.png")
    settings = {"image": tmp_path / "b.png", "mask": tmp_path / "m.png"}
    (file,) = run_task(models[run], "inpaint", settings, tmp_path / "c.png", model=run)
    with pytest.raises(ValueError, match=r"c.png does not hold the image and the mask that it was made from"):
        job_from_image(models, file)
    kept = {"task": "sample", "model": run}
    for wrong, message in (
        ({"model": "runs/other"}, "the model 'runs/other' is not open here"),
        ({"task": ["sample"]}, "unknown task"),
        ({"steps": "many"}, "d.png cannot be made again: steps is 'many'"),
        ({"seed": -1}, "d.png cannot be made again: seed is -1"),
        ({"class": "dog"}, "unknown class 'dog'"),
    ):
        file = save(an_image(), tmp_path / "d.png", {**kept, **wrong})
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            job_from_image(models, file)


def test_an_image_with_old_parameter_names_can_be_made_again(models, run, tmp_path):
    old = {"task": "sample", "model": run, "class": "bee", "seed": 3, "temperature": 0.5, "order": "raster"}
    job = job_from_image(models, save(an_image(), tmp_path / "old.png", old))
    assert (job.choice_temperature, job.order, job.seed) == (0.5, "raster", 3)


def test_an_image_keeps_its_sources_and_its_parameters(tmp_path):
    file = save(an_image(), tmp_path / "a.png", {"seed": 1}, {"image": an_image(9, 7, 1), "mask": mask()})
    assert parameters_of(file) == {"seed": 1}
    kept = sources_of(file)
    assert set(kept) == {"image", "mask"}
    np.testing.assert_array_equal(array(kept["image"]), array(an_image(9, 7, 1)))
    np.testing.assert_array_equal(array(kept["mask"]), array(mask()))
    an_image().save(tmp_path / "b.png")
    assert sources_of(tmp_path / "b.png") == {}
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read the sources of .*c.png"):
        sources_of(tmp_path / "c.png")


# ------------------------------------------------------------------------------------------------- a thread that tells


def test_steps_come_while_the_work_goes_on():
    proceed = Event()

    def work(tell):
        tell("first")
        assert proceed.wait(10)
        tell("second")
        return "result"

    steps = streamed(work)
    assert next(steps) == "first"  # though the work has not ended
    proceed.set()
    assert next(steps) == "second"
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == "result"


def test_an_error_of_the_work_comes_after_its_steps():
    def work(tell):
        tell(1)
        raise ValueError("no more")

    steps = streamed(work)
    assert next(steps) == 1
    with pytest.raises(ValueError, match="no more"):
        next(steps)


def test_the_work_ends_when_nobody_waits():
    told = []

    def work(tell):
        while True:
            tell(1)
            told.append(1)

    steps = streamed(work)
    next(steps)
    steps.close()  # returns when the thread has ended
    count = len(told)
    Event().wait(0.01)
    assert count == len(told)


# ------------------------------------------------------------------------------------------------------------ the page


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"the page needs Gradio: pip install 'maskgen\[app\]'"):
        serve.serve()


def test_a_check_before_the_page_is_a_check_in_it(models, run):
    job = job_from_form("sample", form(run))
    check(job, models)
    with pytest.raises(ValueError, match="count is True"):
        check(replace(job, settings={**job.settings, "count": True}), models)
