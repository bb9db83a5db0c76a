"""Evaluations of a pipeline: seeds, processes, kills, protocols of classes, sweeps, reports and their comparison."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from maskgen import MaskedImagePipeline, MaskScheduler
from maskgen.cli import app
from maskgen.data.arrays import NpzArrays
from maskgen.evaluation.classifier import SmallClassifier, classifier_extractor, save_classifier
from maskgen.evaluation.command import run
from maskgen.evaluation.fid import extraction as extraction
from maskgen.evaluation.fid.evaluate import evaluate
from maskgen.evaluation.fid.report import compare
from maskgen.evaluation.fid.sampling import Sampling, labels_of
from maskgen.evaluation.fid.sources import Images, Reading, Source
from maskgen.evaluation.fid.sweep import parse_sweep

COUNT = 60


@pytest.fixture(scope="module")
def folder(make_pipeline, tmp_path_factory):
    """A pipeline of three classes, a classifier, labelled images and an unconditional pipeline."""
    folder = tmp_path_factory.mktemp("evaluation")
    for name, classes in (("pipeline", ["ant", "bee", "cat"]), ("plain", None)):
        make_pipeline(classes, depth=1, num_inference_steps=2).save_pretrained(folder / name)
    save_classifier(SmallClassifier(3, 4, width=4).eval(), folder / "classifier")
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "real.npz", images=images, labels=np.arange(COUNT) // 25)
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pipeline", "plain", "classifier", "real.npz"):
        (tmp_path / name).symlink_to(folder / name)
    return tmp_path


def command(*arguments):
    """`maskgen evaluate` in this process."""
    line = ["evaluate", *map(str, arguments), "--classifier", "classifier", "--device", "cpu"]
    return CliRunner().invoke(app, line, catch_exceptions=False)


def quiet(*arguments, **options):
    torch.manual_seed(0)
    network = classifier_extractor(SmallClassifier(3, 4, width=2), "cpu")
    return evaluate(*arguments, extractor=lambda: network, **{"bootstrap": 0, "progress": False, **options})


# ------------------------------------------------------------------------------------------------- seeds and processes


def test_samples_are_the_pipelines_own_with_a_seed_a_image(here):
    pipe = MaskedImagePipeline.from_pretrained(here / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    reports = [
        quiet(pipe, "real.npz", sampling=Sampling(20, seed=5, guidance=2.0, choice_temperature=3.0), batch_size=size)
        for size in (20, 3)
    ]
    before = pipe.scheduler.config.choice_temperature
    pipe.scheduler = MaskScheduler(num_inference_steps=2, choice_temperature=3.0)
    assert before == 4.5  # the caller's pipeline is as it was
    images = pipe(
        [i % 3 for i in range(20)],
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(5 + i) for i in range(20)],
        output_type="pil",
    ).images
    given = quiet(np.stack([np.asarray(image) for image in images]), "real.npz")
    assert {report.samples["pixels_sha256"] for report in (*reports, given)} == {given.samples["pixels_sha256"]}
    for name, result in given.metrics.items():
        assert [r.metrics[name]["value"] for r in reports] == pytest.approx([result["value"]] * 2, rel=1e-4)
    sampling = reports[0].samples["sampling"]
    assert (sampling["steps"], sampling["guidance"], sampling["choice_temperature"], sampling["classes"]) == (
        2,
        2,
        3,
        "equal",
    )
    assert sampling["scheduler"]["mask_schedule"] == "cosine"


@pytest.mark.train
def test_two_processes_are_one(here):
    """The report of `accelerate launch` with two is that of one, byte for byte."""
    arguments = ["pipeline", "real.npz", "-n", "40", "--batch-size", "3", "--metrics", "fid,is,kid"]
    assert command(*arguments, "--work", "one", "--out", "one.json").exit_code == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch += ["-m", "maskgen", "evaluate", *arguments, "--classifier", "classifier", "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, "--work", "two", "--out", "two.json"], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (here / "two.json").read_bytes() == (here / "one.json").read_bytes()
    assert done.stdout.count("careful") == 1  # one process speaks
    files = [sorted(p.relative_to(here / name) for p in (here / name).rglob("*.npz")) for name in ("one", "two")]
    assert files[0] == files[1]


def test_processes_need_a_folder_to_share(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes share a folder of finished work; give `work`"):
        quiet("pipeline", "real.npz", sampling=Sampling(8))


# --------------------------------------------------------------------------------------------------------------- kills


def slow_worker(out, seconds):
    """An evaluation of `COUNT` samples whose batches of 2 take `seconds` more."""
    torch.set_num_threads(1)
    inner = extraction._chunk

    def chunk(*arguments):
        time.sleep(seconds)
        return inner(*arguments)

    extraction._chunk = chunk
    quiet_report("killed").save(out)


def quiet_report(work):
    return quiet("pipeline", "real.npz", sampling=Sampling(COUNT), batch_size=2, work=work, bootstrap=5)


@pytest.mark.train
def test_an_evaluation_killed_twice_goes_on_and_ends_with_the_same_report(here):
    whole = quiet_report("whole")
    finished = []
    for enough in (2, 5):  # of 8 files of samples
        process = multiprocessing.get_context("fork").Process(target=slow_worker, args=("killed.json", 0.1))
        process.start()  # forked: no imports to wait for
        while process.is_alive() and len(list((here / "killed").rglob("*.npz"))) < enough:
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        finished.append(len(list((here / "killed").rglob("*.npz"))))
    assert 2 <= finished[0] < finished[1] < 8
    assert not (here / "killed.json").exists()
    (folder,) = (here / "killed").iterdir()
    (folder / "000000000.123.part").write_bytes(b"half a file")
    times = {file: file.stat().st_mtime_ns for file in folder.glob("*.npz")}
    assert quiet_report("killed").to_json() == whole.to_json()
    assert {file: file.stat().st_mtime_ns for file in times} == times  # none was made again
    assert json.loads((folder / "settings.json").read_text())["count"] == COUNT


def test_other_settings_share_no_features(here):
    folders = []
    for options in (
        {},
        {"seed": 1},
        {"guidance": 2.0},
        {"choice_temperature": 1.0},
        {"classes": "uniform"},
        {"count": 12},
    ):
        quiet("pipeline", "real.npz", ("is",), sampling=Sampling(**{"count": 10, **options}), work="work")
        folders.append(len(list((here / "work").iterdir())))
    quiet("pipeline", "real.npz", ("is",), sampling=Sampling(10), batch_size=5, work="work")
    assert [*folders, len(list((here / "work").iterdir()))] == [1, 2, 3, 4, 5, 6, 7]


def test_a_folder_whose_images_changed_is_read_anew(here):
    (here / "images").mkdir()
    for i in range(12):
        Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(f"images/{i:02}.png")
    first = quiet("images", "real.npz", work="work")
    assert quiet("images", "real.npz", work="work").to_json() == first.to_json()
    Image.new("RGB", (8, 8), "white").save("images/00.png")
    again = quiet("images", "real.npz", work="work")
    assert again.samples["pixels_sha256"] != first.samples["pixels_sha256"]
    assert again.reference == first.reference


# ------------------------------------------------------------------------------------------------------------- classes


def test_classes_are_drawn_as_the_protocol_says():
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    images = Images(100, lambda start, stop: np.zeros((stop - start, 1, 1, 3), np.uint8), {}, labels, ("a", "b", "c"))
    reference, names = Source("real", "data set", images), ["a", "b", "c"]

    def shares(protocol, count=3000, **options):
        found, drawn = labels_of(names, Sampling(count, classes=protocol, **options), reference)
        assert found == protocol
        return np.bincount(drawn, minlength=3) / count

    assert labels_of(names, Sampling(7), None)[1].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert shares("equal").tolist() == [1 / 3] * 3
    np.testing.assert_allclose(shares("uniform"), 1 / 3, atol=0.04)
    np.testing.assert_allclose(shares("reference"), [0.7, 0.2, 0.1], atol=0.04)
    many, few = (labels_of(names, Sampling(n, classes="reference"), reference)[1] for n in (50, 20))
    assert many[:20].tolist() == few.tolist()
    assert labels_of(names, Sampling(classes="none"), None) == ("none", None)
    assert labels_of([], Sampling(), None) == ("none", None)
    with pytest.raises(
        ValueError, match="unknown protocol classes='balanced'; choose one of equal, uniform, reference"
    ):
        labels_of(names, Sampling(classes="balanced"), None)
    with pytest.raises(ValueError, match="classes=equal needs a pipeline with classes"):
        labels_of([], Sampling(classes="equal"), None)
    with pytest.raises(ValueError, match="labelled with the pipeline's 2 classes"):
        labels_of(["a", "b"], Sampling(classes="reference"), reference)


def test_a_pipeline_without_classes_is_drawn_without_them(here):
    report = quiet("plain", NpzArrays("real.npz"), sampling=Sampling(10))
    assert report.samples["sampling"]["classes"] == "none"
    assert report.reference["kind"] == "data set"


# -------------------------------------------------------------------------------------------------- reports and sweeps


def test_reports_say_whether_they_may_be_compared(here):
    base = ["pipeline", "real.npz", "-n", "20", "--metrics", "fid,is,kid"]
    for name, more in {
        "a": [],
        "seed": ["--seed", "7", "--guidance", "3"],
        "count": ["-n", "24"],
        "classes": ["--classes", "uniform"],
        "reference": ["--limit", "50"],
    }.items():
        assert command(*base, *more, "--out", f"{name}.json", "--work", "work").exit_code == 0
    save_classifier(SmallClassifier(3, 4, width=4).eval(), here / "other")
    distance, score, kernel = json.loads((here / "a.json").read_text())["metrics"]

    def verdict(name):
        found = compare("a.json", f"{name}.json")
        return {key: [reason.split(":")[0] for reason in reasons] for key, reasons in found.reasons.items()}, str(found)

    reasons, text = verdict("seed")
    assert reasons == {distance: [], score: [], kernel: []}
    assert f"{distance}: comparable, " in text
    assert "the intervals " in text
    assert "note: sampling's seed: 0 and 7" in text
    assert "note: sampling's guidance: 1.0 and 3.0" in text
    reasons, text = verdict("count")
    assert reasons == {
        distance: (n := ["number of samples"]),
        score: n,
        kernel: ["subset_size"],
    }
    assert f"{distance}: NOT comparable\n  - number of samples: 20 and 24" in text
    assert set(map(tuple, verdict("classes")[0].values())) == {("protocol of the classes",)}
    reasons, _ = verdict("reference")
    assert reasons[score] == []
    assert reasons[distance] == ["reference's pixels_sha256"]
    assert "the samples are the same, pixel by pixel" in verdict("a")[1]
    edited = json.loads((here / "a.json").read_text())
    edited["extractor"]["resize"], edited["reading"]["crop"] = "another", 8
    (here / "edited.json").write_text(json.dumps(edited))
    assert verdict("edited")[0][score] == ["extractor's resize", "crop"]
    done = CliRunner().invoke(app, ["evaluate", "--compare", "a.json", "count.json"])
    assert done.exit_code == 0
    assert "NOT comparable" in done.stdout
    edited["metrics"] = {"fid": {"value": 1.0}}
    (here / "edited.json").write_text(json.dumps(edited))
    with pytest.raises(ValueError, match="have no metric in common"):
        compare("a.json", "edited.json")
    (here / "edited.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a report of `maskgen evaluate`"):
        compare("a.json", "edited.json")


def test_a_sweep_leaves_a_report_a_point_and_a_plot(here):
    done = command(
        "pipeline", "real.npz", "-n", "20", "--metrics", "fid,is", "--sweep", "guidance=1,3", "--sweep",
        "choice_temperature=0.5,4", "--work", "work", "--out", "sweep.json", "--bootstrap", "5",
    )  # fmt: skip
    assert done.exit_code == 0
    points = json.loads((here / "sweep.json").read_text())
    expected = [{"guidance": g, "choice_temperature": t} for g in (1, 3) for t in (0.5, 4)]
    assert [point["settings"] for point in points] == expected
    alone = quiet_point(3.0, 0.5)
    assert points[2]["metrics"] == alone.metrics
    whole = json.loads((here / "sweep/guidance=3_choice_temperature=0.5.json").read_text())
    assert whole == json.loads(alone.to_json())
    assert len({json.dumps(point["metrics"]) for point in points}) == 4
    image = np.asarray(Image.open("sweep.png").convert("RGB"))
    colours = {tuple(c) for c in image.reshape(-1, 3)[::7].tolist()}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # a line a temperature
    assert "guidance=3 choice_temperature=0.5: frechet_distance[small" in done.stdout


def quiet_point(guidance, temperature):
    from maskgen.evaluation.classifier import load_classifier

    network = classifier_extractor(load_classifier("classifier"), "cpu")
    sampling = Sampling(20, guidance=guidance, choice_temperature=temperature)
    return evaluate(
        "pipeline", "real.npz", ["fid", "is"], lambda: network, sampling=sampling, bootstrap=5, progress=False
    )


def test_bad_sweeps_and_mixed_questions_are_refused(here):
    assert parse_sweep(["steps=4,8", "guidance=1.5"]) == {"steps": [4, 8], "guidance": [1.5]}
    for bad in (["seed=1,2"], ["guidance=1", "guidance=2"], ["guidance"], ["guidance=1,x"], ["steps=1.5"]):
        with pytest.raises(ValueError, match=r"cannot sweep '.*'.*guidance=1,2,3"):
            parse_sweep(bad)
    nothing = CliRunner().invoke(app, ["evaluate"])
    assert nothing.exit_code == 2
    assert "--compare A.json B.json" in nothing.output
    options = {"sampling": Sampling(8), "reading": Reading(), "classifier": "classifier"}
    with pytest.raises(ValueError, match=r"a sweep needs a pipeline .*real\.npz is none"):
        run("real.npz", "real.npz", "fid", sweeps=["guidance=1"], **options)
    with pytest.raises(ValueError, match="psnr measure a tokenizer"):
        run("pipeline", "real.npz", "psnr,fid", **options)
    with pytest.raises(ValueError, match="need the images to reconstruct: maskgen evaluate TOKENIZER DATA"):
        run("pipeline", None, "psnr", **options)
    with pytest.raises(ValueError, match="unknown metric 'fidd'"):
        run("pipeline", "real.npz", "fidd", **options)
    with pytest.raises(ValueError, match="a classifier replaces Inception"):
        run("pipeline", "real.npz", "fid", weights="x.pth", **options)


def test_reconstructions_are_evaluated_by_the_same_command(here):
    from maskgen.evaluation.reconstruction.report import reconstruct
    from maskgen.pipelines.store import load_tokenizer

    done = CliRunner().invoke(
        app,
        ["evaluate", "pipeline", "real.npz", "--metrics", "psnr", "--out", "psnr.json", "--device", "cpu"],
        catch_exceptions=False,
    )
    assert done.stdout.startswith("psnr = ")
    report = json.loads((here / "psnr.json").read_text())
    expected = reconstruct(load_tokenizer("pipeline"), NpzArrays("real.npz"), progress=False)
    assert report["metrics"] == {"psnr": {"value": pytest.approx(expected.metrics["psnr"], rel=1e-6)}}
    assert report["samples"]["tokenizer"] == expected.tokenizer
    assert str(compare("psnr.json", "psnr.json")).startswith("psnr: comparable")
    with pytest.raises(ValueError, match="ssim cannot be measured: needs images of at least 11x11, found 8x8"):
        run("pipeline", "real.npz", "ssim", sampling=Sampling(), reading=Reading(), device="cpu")


def test_fid_takes_its_sides_in_either_order(here, monkeypatch):
    """The pipeline is the side that is drawn and resampled; Inception is stood in for, it is not what is tested."""
    network = classifier_extractor(SmallClassifier(3, 4, width=2), "cpu")
    monkeypatch.setattr("maskgen.evaluation.command.load_extractor", lambda *_: network)
    found = []
    for sides in (("real.npz", "pipeline"), ("pipeline", "real.npz")):
        line = ["fid", *sides, "--num-samples", "30", "--crop", "8", "--out", "fid.json"]
        done = CliRunner().invoke(app, line, catch_exceptions=False)
        assert "(30 images against 60)" in done.stdout
        found.append((here / "fid.json").read_text())
    assert found[0] == found[1]
    assert json.loads(found[0])["samples"]["kind"] == "pipeline"
