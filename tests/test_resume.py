"""Exact resume: killed at any moment, a run ends with the bits of one that was left alone."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from maskgen.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from maskgen.training.loop import Training, train
from maskgen.training.metrics import MetricsFile, read_metrics
from maskgen.training.run import run_config
from maskgen.training.stages.tokenizer import TokenizerStage
from runs import TOKENIZER, Images, scaled_on_cpu

pytestmark = pytest.mark.usefixtures("cpu")
ADVERSARIAL = {"weight": 0.5, "start": 3, "warmup": 9, "lecam": 0.1, "r1": 1.0, "r1_every": 4, "width": 4, "layers": 1}


class Command:
    """`maskgen train` in a process group of its own, to be killed."""

    def __init__(self, folder, run_folder, arguments):
        self.run, self.log = folder / run_folder, folder / "stderr.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "maskgen", "train", *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("w"),
            start_new_session=True,
        )

    def step(self):
        lines = read_metrics(self.run / "metrics.jsonl")
        return lines[-1]["step"] if lines else 0

    def interrupt(self, number, first, last):
        """Send a signal at a random moment after a random step; give the exit code."""
        step = random.randint(first, last)
        while self.process.poll() is None and self.step() < step:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.03))
        os.killpg(self.process.pid, number)
        return self.process.wait(timeout=300)


def assert_same_run(a, b, steps):
    """The weights of both runs, their averages and their exported pipelines are the same to the bit."""
    last = f"checkpoints/step_{steps:08d}"
    names = {p.relative_to(a) for p in (a / "pipeline").rglob("*") if p.is_file()}
    assert {p.relative_to(b) for p in (b / "pipeline").rglob("*") if p.is_file()} == names
    names |= {p.relative_to(a) for p in (a / last).glob("*.safetensors")}
    assert {"model.safetensors", "ema.safetensors"} <= {name.name for name in names}
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    one, two = (read_metrics(folder / "metrics.jsonl") for folder in (a, b))
    for lines in (one, two):
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
    for x, y in zip(one, two):
        assert {**x, "seconds": 0} == {**y, "seconds": 0}


@pytest.mark.train
def test_a_generator_killed_at_three_random_moments_ends_with_the_very_same_weights(here):
    settings = ["generator.yaml", "name=killed", "training.steps=120", "training.checkpoint_every=3"]
    whole = run_config(settings[0], [*settings[1:], "folder=whole", "training.checkpoint_every=120"])
    for first, last in ((4, 10), (28, 34), (52, 58)):  # far from each other and from the end: none comes too late
        command = Command(here, "runs/killed", settings)
        assert command.interrupt(signal.SIGKILL, first, last) == -signal.SIGKILL
        assert first <= command.step() < 120
    run_config(settings[0], settings[1:])
    assert_same_run(whole, here / "runs/killed", 120)
    drawn = {line["model/mask_ratio"] for line in read_metrics(whole / "metrics.jsonl")}
    assert len(drawn) > 30  # each step has masks of its own (and some as many)


@pytest.mark.train
def test_a_tokenizer_with_discriminator_killed_then_terminated_ends_with_the_very_same_weights(here):
    settings = ["tokenizer.yaml", "name=gan", "training.steps=60", "training.checkpoint_every=3", "augment.flip=0.5"]
    settings += [f"stage.adversarial.{key}={value}" for key, value in ADVERSARIAL.items()]
    whole = run_config(settings[0], [*settings[1:], "folder=whole", "training.checkpoint_every=60"])

    killed = Command(here, "runs/gan", settings)
    assert killed.interrupt(signal.SIGKILL, 4, 10) == -signal.SIGKILL

    # Loader workers read the same images, and the signal, which the whole group gets, does not end them first.
    stopped = Command(here, "runs/gan", [*settings, "training.workers=1"])
    assert stopped.interrupt(signal.SIGTERM, 26, 32) == 128 + signal.SIGTERM
    message = re.search(r"stopped at step (\d+) of 60; the same command continues from there", stopped.log.read_text())
    reached = int(message[1])
    assert 26 <= reached < 60
    assert checkpoints(here / "runs/gan/checkpoints")[-1].name == f"step_{reached:08d}"
    assert read_metrics(here / "runs/gan/metrics.jsonl")[-1]["step"] == reached

    run_config(settings[0], settings[1:])
    assert_same_run(whole, here / "runs/gan", 60)


@pytest.mark.train
def test_killed_between_the_last_export_and_its_checkpoint_a_run_still_ends_whole(here):
    whole = run_config("generator.yaml", ["folder=whole"])
    broken = run_config("generator.yaml", ["name=generator", "folder=broken"])
    os.replace(broken / "checkpoints/step_00000012", broken / "checkpoints/.part_00000012")
    os.replace(broken / "pipeline", broken / "pipeline.old")
    run_config("generator.yaml", ["folder=broken"])
    assert_same_run(whole, broken, 12)
    assert not list((broken / "checkpoints").glob(".part_*"))
    assert not (broken / "pipeline.old").exists()


def test_where_the_export_fails_there_is_no_checkpoint_that_says_all_is_done(tmp_path):
    class FullDisk(TokenizerStage):
        def export(self, model, folder):
            raise OSError("disk full")

    stage = FullDisk(dataset=Images(), tokenizer=TOKENIZER["stage"]["tokenizer"])
    with pytest.raises(OSError, match="disk full"):
        train(stage, Images(), Training(steps=2, batch_size=4, precision="fp32"), tmp_path)
    assert checkpoints(tmp_path / "checkpoints") == []


def test_only_complete_checkpoints_count_and_the_newest_are_kept(tmp_path):
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    for step in (1, 2, 30):
        with torch.no_grad():
            module.weight.fill_(step)
        save_checkpoint(tmp_path, step, {"model": module}, {"model": optimizer}, keep=2)
    (tmp_path / "step_00000031").mkdir()  # no state.json
    (tmp_path / ".part_00000032").mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == ["step_00000002", "step_00000030"]
    other = nn.Linear(2, 2)
    state = {"model": torch.optim.AdamW(other.parameters())}
    assert load_checkpoint(checkpoints(tmp_path)[-1], {"model": other}, state) == 30
    assert torch.equal(other.weight, torch.full((2, 2), 30.0))


def test_fp16_skips_steps_that_overflow_and_its_scale_is_resumed(tmp_path, monkeypatch):
    """A scale of 2^40 overflows, so the first steps are skipped; a resumed run goes on with the scale found so far."""
    scaled_on_cpu(monkeypatch)

    def run(steps, folder):
        torch.manual_seed(0)
        stage = TokenizerStage(Images(), tokenizer=TOKENIZER["stage"]["tokenizer"], l2=1.0, adversarial=ADVERSARIAL)
        settings = Training(
            steps=steps, batch_size=4, precision="fp16", decay="constant", log_every=1, checkpoint_every=20
        )
        train(stage, Images(), settings, folder)
        return json.loads((checkpoints(folder / "checkpoints")[-1] / "state.json").read_text())

    whole = run(60, tmp_path / "whole")
    first = run(40, tmp_path / "parts")
    assert run(60, tmp_path / "parts") == whole
    assert 1 < first["scaler"]["scale"] < 2**30
    for name in ("model", "discriminator", "ema"):
        a, b = (tmp_path / run / f"checkpoints/step_00000060/{name}.safetensors" for run in ("whole", "parts"))
        assert a.read_bytes() == b.read_bytes(), name
    lines = read_metrics(tmp_path / "whole/metrics.jsonl")
    norms = [line.get("model/gradient_norm") for line in lines]
    assert norms[0] is None  # skipped
    assert norms[-1] is not None


def test_a_checkpoint_without_a_scale_leaves_the_scaler_as_it_is(tmp_path):
    module = nn.Linear(2, 2)
    optimizers = {"model": torch.optim.AdamW(module.parameters())}
    path = save_checkpoint(tmp_path, 1, {"model": module}, optimizers, keep=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = scaler.state_dict()
    assert load_checkpoint(path, {"model": module}, optimizers, scaler) == 1
    assert scaler.state_dict() == before


def test_metrics_forget_what_lies_beyond_the_checkpoint_and_a_line_cut_short(tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(file, 0)
    for step in (1, 2, 3):
        metrics.write(step, {"loss": 0.5})
    file.write_text(file.read_text()[:-5])
    assert [line["step"] for line in read_metrics(file)] == [1, 2]
    MetricsFile(file, 1).write(2, {"loss": 0.25})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25},
    ]
