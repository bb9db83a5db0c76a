"""The tasks on files: commands, the parameters that images keep, and tables of many rows."""

import inspect
import json

import numpy as np
import pytest
from PIL import Image

from given import an_image, array, mask, seeded
from maskgen.images import parameters_of, save
from maskgen.pipelines.jobs import SETTINGS, SHARED, TASKS, run_table, run_task


@pytest.fixture
def folder(pipeline, tmp_path, monkeypatch):
    pipeline.save_pretrained(tmp_path / "model")
    an_image(seed=1).save(tmp_path / "a.png")
    an_image(seed=2).save(tmp_path / "b.png")
    mask().save(tmp_path / "m.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = {
    "inpaint": ["a.png", "m.png", "--class", "bee", "--dilation", "1", "--crop", "2"],
    "outpaint": ["a.png", "--left", "2", "--bottom", "5", "--overlap", "1"],
    "edit": ["a.png", "--class", "2", "--box", "2,2,6,6", "--feather", "1"],
    "vary": ["a.png", "--strength", "0.7", "-n", "1"],
    "interpolate": ["a.png", "b.png", "--frames", "3"],
    "join": ["a.png", "b.png", "--gap", "4", "--keep", "6"],
}


@pytest.mark.parametrize("task", COMMANDS)
def test_every_command_writes_what_its_parameters_make_again(pipeline, maskgen, folder, task):
    common = ["--model", "model", "--steps", "3", "--seed", "5", "--out", "made/x.png", "--trace", "t.gif"]
    done = maskgen(task, *COMMANDS[task], *common)
    assert done.code == 0
    names = done.out.split()
    assert names.pop() == "t.gif"
    with Image.open("t.gif") as gif:
        assert gif.n_frames >= 4
    expected = [f"made/x_{i:03d}.png" for i in range(3)] if task == "interpolate" else ["made/x.png"]
    assert names == expected
    kept = parameters_of(names[-1])
    assert {"task": task, "model": "model", "seed": 5, "steps": 3}.items() <= kept.items()
    assert kept["guidance"] == 1.0
    assert kept["version"]
    settings = {k: v for k, v in kept.items() if k not in ("task", "model", "version", "seed", "number")}
    again = run_task(pipeline, task, settings, folder / "again.png", kept["seed"])
    for old, new in zip(names, again):
        np.testing.assert_array_equal(array(old), array(new))


def test_samples_carry_their_parameters_and_a_trace(maskgen, folder):
    assert maskgen("sample", "model", "--class", "ant", "-n", 2, "--seed", 7, "--trace", "t.gif").code == 0
    assert parameters_of("samples/ant_001.png") == {
        "task": "sample", "model": "model", "version": "0.1.0", "steps": 4, "guidance": 1.0, "class": "ant", "seed": 8,
    }  # fmt: skip
    with Image.open("t.gif") as gif:
        assert gif.n_frames == 5
    shown = json.loads(maskgen("parameters", "samples/ant_001.png").out)
    assert shown["seed"] == 8
    assert maskgen("sample", "model", "--class", "ant", "-n", 1, "--seed", 8, "--out", "one").code == 0
    np.testing.assert_array_equal(array("samples/ant_001.png"), array("one/ant_000.png"))


def test_images_without_parameters_are_told(tmp_path):
    an_image().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png has no parameters: another program wrote it"):
        parameters_of(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read the parameters of .*b.png"):
        parameters_of(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"c.jpg .*; give a name that ends in .png"):
        save(an_image(), tmp_path / "c.jpg", {"seed": 1})
    save(an_image(), tmp_path / "d.png", {"class": "Fréchet", "box": [1, 2]})
    assert parameters_of(tmp_path / "d.png") == {"class": "Fréchet", "box": [1, 2]}


TABLE = """task,image,mask,box,class,seed,right,out
inpaint,a.png,m.png,,bee,3,,first.png
edit,b.png,,2 2 6 6,ant,,,
edit,b.png,,2 2 60 6,ant,,,

outpaint,a.png,,,,1,7,sub/third.png
,a.png,m.png,,catt,,,
inpaint,gone.png,m.png,,,,,
inpaint,a.png,m.png,,,x,,
vary,a.png,m.png,,,,,
enhance,a.png,,,,,,
inpaint,a.png,,,,,,
inpaint,a.png,m.png,,,,,../out.png
outpaint,a.png,,,,,much,
"""


def test_a_batch_does_every_row_it_can_and_tells_of_the_others(pipeline, folder):
    (folder / "t.csv").write_text(TABLE)
    with pytest.raises(ValueError, match=r"9 of 12 rows of .*t.csv failed; 3 images are in .*results") as told:
        run_table(pipeline, folder / "t.csv", folder / "results", trace=folder / "films")
    lines = str(told.value).splitlines()[1:]
    for line, (number, message) in zip(
        lines,
        [
            (4, "box (2, 2, 60, 6)"),
            (7, "unknown class 'catt': did you mean 'cat'"),
            (8, "gone.png"),
            (9, "invalid literal"),
            (10, "vary has no 'mask'"),
            (11, "unknown task 'enhance'"),
            (12, "inpaint needs mask"),
            (13, "out '../out.png' must lie in the folder"),
            (14, "right is 'much'; give a number"),
        ],
        strict=True,
    ):
        assert line.startswith(f"  - line {number}: ")
        assert message in line
    made = sorted(str(p.relative_to(folder / "results")) for p in (folder / "results").rglob("*.png"))
    assert made == ["first.png", "row_0003.png", "sub/third.png"]
    films = sorted((folder / "films").rglob("*.*"))
    assert [str(p.relative_to(folder / "films")) for p in films] == ["first.gif", "row_0003.gif", "sub/third.gif"]
    (alone,) = pipeline.inpaint("a.png", "m.png", "bee", generator=[seeded(3)]).images
    np.testing.assert_array_equal(array(folder / "results/first.png"), array(alone))


def test_a_batch_from_the_command(maskgen, folder):
    (folder / "t.csv").write_text("image, mask, class\na.png, m.png, bee\nb.png, m.png, 1\n")
    assert maskgen("batch", "t.csv", "--model", "model").out.strip() == "2 images in batch"
    assert parameters_of("batch/row_0003.png")["class"] == "1"
    assert not list(folder.rglob("*.gif"))


def test_a_batch_traces_each_row(maskgen, folder):
    (folder / "t.csv").write_text(
        "task, image, image_2, frames, steps\nvary, a.png,,, 3\ninterpolate, a.png, b.png, 3, 2\n"
    )
    assert maskgen("batch", "t.csv", "--model", "model", "--trace", "films").out.strip() == "4 images in batch"
    for name, steps in (("row_0002", 3), ("row_0003", 2)):
        with Image.open(f"films/{name}.gif") as film:
            assert film.n_frames == 1 + steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,maske\na.png,m.png\n", "unknown column 'maske': did you mean 'mask'"),
        ("image,mask\n", "holds no rows"),
        ("", "holds no rows"),
        ("image,mask\na.png,m.png,bee\n", "line 2: more cells than the header has columns"),
    ],
)
def test_tables_that_cannot_be_are_refused(pipeline, folder, text, message):
    (folder / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        run_table(pipeline, folder / "t.csv", folder / "results")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inpaint", "a.png", "m.png", "--out", "x.jpg"], "x.jpg must end in .png"),
        (["inpaint", "a.png", "m.png", "--trace", "x.mp4"], "the trace x.mp4 must end in .gif"),
        (["sample", "model", "--trace", "x.mp4"], "the trace x.mp4 must end in .gif"),
        (["inpaint", "a.png", "m.png", "--dilation", "some"], "dilation is 'some'; give a number or auto"),
        (["inpaint", "a.png", "m.png", "--class", "antt"], "unknown class 'antt': did you mean 'ant'"),
        (["inpaint", "a.png", "m.png", "--steps", "0"], "steps must be at least 1"),
        (["edit", "a.png", "--class", "ant", "--box", "1,2"], "has 2 numbers; give left, top, right, bottom"),
        (["edit", "a.png", "--class", "ant", "--box", "a,b"], "box is 'a,b'; give left,top,right,bottom"),
        (["outpaint", "a.png"], "0 pixels on every side"),
        (["parameters", "a.png"], "has no parameters"),
        (["batch", "gone.csv"], "gone.csv"),
    ],
)
def test_an_error_of_a_command_is_one_message(maskgen, folder, arguments, message):
    if arguments[0] not in ("sample", "parameters"):
        arguments = [*arguments, "--model", "model"]
    done = maskgen(*arguments)
    assert done.code == 1
    assert done.message.startswith("maskgen: ")
    assert message in done.message


def test_the_tables_of_tasks_agree(pipeline):
    assert set(TASKS) == {*COMMANDS, "sample"}
    for name, task in TASKS.items():
        method = pipeline.__call__ if name == "sample" else getattr(pipeline, name)
        known = inspect.signature(method).parameters
        needed = {n for n, p in known.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        assert needed - {"class_labels"} == {SETTINGS[n][0] for n in task.needs}
        open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
        assert open_ended or {SETTINGS[n][0] for n in (*SHARED, *task.takes)} <= known.keys()
