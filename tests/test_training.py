"""Training: exact resume under real kills, many processes, what stops a run, and that it learns."""

import copy
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from maskgen.config import ConfigError
from maskgen.data.augment import Augmentation
from maskgen.data.tokens import TokenCache, write_token_cache
from maskgen.evaluation.reconstruction import psnr
from maskgen.pipelines.store import fingerprint, load_tokenizer
from maskgen.tokenizer.model import Tokenizer
from maskgen.tokenizer.quantizers import VectorQuantizer
from maskgen.training.batches import BatchPlan, loader
from maskgen.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from maskgen.training.loop import Training, _average, _optimizer, train
from maskgen.training.metrics import MetricsFile, read_metrics
from maskgen.training.run import run, run_config
from maskgen.training.tokenizer_stage import TokenizerStage
from maskgen.transformer.model import MaskTransformer

TOKENIZER = {
    "name": "tokenizer",
    "stage": {
        "type": "tokenizer",
        "tokenizer": {
            "encoder": {"width": 8, "multipliers": [1, 2], "blocks": 1},
            "quantizer": {"codebook_size": 16, "dim": 4},
            "decoder": {"width": 8, "multipliers": [1, 2], "blocks": 1},
        },
        "l2": 1.0,
    },
    "data": {"type": "npz", "path": "data.npz"},
    "training": {
        "steps": 12, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2, "precision": "fp32", "log_every": 1,
        "checkpoint_every": 4,
    },
}  # fmt: skip
ADVERSARIAL = {"weight": 0.5, "start": 3, "warmup": 9, "lecam": 0.1, "r1": 1.0, "r1_every": 4, "width": 4, "layers": 1}
GENERATOR = {
    "name": "generator",
    "stage": {
        "type": "generator",
        "tokenizer": "runs/tokenizer",
        "model": {"width": 16, "depth": 2, "heads": 2, "dropout": 0.1, "class_dropout": 0.3},
        "scheduler": {"num_inference_steps": 2},
    },
    "data": {"type": "npz", "path": "data.npz"},
    "augment": {"flip": 0.5, "crop": 0.6},
    "training": {**TOKENIZER["training"], "ema": 0.9},
}


def pictures(n=48, size=8, classes=3):
    """A coloured square somewhere on a grey ground."""
    rng = np.random.default_rng(0)
    images = np.full((n, size, size, 3), 230, np.uint8)
    for image in images:
        y, x = rng.integers(0, size // 2, 2)
        image[y : y + size // 2, x : x + size // 2] = rng.integers(0, 255, 3)
    return images, np.arange(n) % classes


class Pictures:
    """The same as a data set in memory; item `broken`, if any, is NaN."""

    def __init__(self, n=48, size=8, broken=None):
        images, self.labels = pictures(n, size)
        self.pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        self.class_names = ["a", "b", "c"]
        if broken is not None:
            self.pixels[broken] = torch.nan

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixels": self.pixels[index], "label": int(self.labels[index])}


@pytest.fixture(scope="module", autouse=True)
def cpu():
    """Also where there is a GPU: what is true to the bit is true of the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("TQDM_DISABLE", "1")
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with pictures, configurations and a trained tokenizer."""
    folder = tmp_path_factory.mktemp("work")
    images, labels = pictures()
    np.savez(folder / "data.npz", images=images, labels=labels)
    for config in (TOKENIZER, GENERATOR):
        (folder / f"{config['name']}.yaml").write_text(yaml.safe_dump(config))
    with inside(folder):
        run_config("tokenizer.yaml")
    return folder


@contextmanager
def inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def here(work):
    with inside(work):
        yield work


# ----------------------------------------------------------------------------------------------------- exact resume


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


def test_a_tokenizer_with_discriminator_killed_then_terminated_ends_with_the_very_same_weights(here):
    settings = ["tokenizer.yaml", "name=gan", "training.steps=60", "training.checkpoint_every=3", "augment.flip=0.5"]
    settings += [f"stage.adversarial.{key}={value}" for key, value in ADVERSARIAL.items()]
    whole = run_config(settings[0], [*settings[1:], "folder=whole", "training.checkpoint_every=60"])

    killed = Command(here, "runs/gan", settings)
    assert killed.interrupt(signal.SIGKILL, 4, 10) == -signal.SIGKILL

    # Loader workers read the same pictures, and the signal, which the whole group gets, does not end them first.
    stopped = Command(here, "runs/gan", [*settings, "training.workers=1"])
    assert stopped.interrupt(signal.SIGTERM, 26, 32) == 128 + signal.SIGTERM
    message = re.search(r"stopped at step (\d+) of 60; the same command goes on from there", stopped.log.read_text())
    reached = int(message[1])
    assert 26 <= reached < 60
    assert checkpoints(here / "runs/gan/checkpoints")[-1].name == f"step_{reached:08d}"
    assert read_metrics(here / "runs/gan/metrics.jsonl")[-1]["step"] == reached

    run_config(settings[0], settings[1:])
    assert_same_run(whole, here / "runs/gan", 60)


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

    stage = FullDisk(dataset=Pictures(), tokenizer=TOKENIZER["stage"]["tokenizer"])
    with pytest.raises(OSError, match="disk full"):
        train(stage, Pictures(), Training(steps=2, batch_size=4, precision="fp32"), tmp_path)
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


# ------------------------------------------------------------------------- the same batch, however it is shared out


def assert_close_runs(a, b, start, steps, leave_out=("bias",)):
    """The weights and statistics of two runs agree to far less than they moved from `start`.

    Biases are left out: most are undone by the normalisation behind them, so that their gradients are rounding noise,
    which Adam makes as large as any. What they do matter for is seen in the pictures.
    """
    last = f"checkpoints/step_{steps:08d}"
    for file in ("model", "ema"):
        one, two = load_file(a / last / f"{file}.safetensors"), load_file(b / last / f"{file}.safetensors")
        assert one.keys() == two.keys()
        for name in (name for name in one if not name.endswith(leave_out)):
            torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    norms = [[line["model/gradient_norm"] for line in read_metrics(run / "metrics.jsonl")] for run in (a, b)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)  # Adam and clipping would hide a wrong factor
    for name in (name for name in start if "conv2.weight" in name or "quantizer.codebook" in name):
        assert (one[f"module.{name}"] - start[name]).abs().max() > 1e-3
    pixels = Pictures().pixels
    made = [load_tokenizer(run).eval()(pixels).pixels for run in (a, b)]
    torch.testing.assert_close(*made, atol=1e-4, rtol=0)


def weights_at_the_start(settings):
    """What the first step starts from: one step at a learning rate of almost 0."""
    folder = run_config(
        settings[0], [*settings[1:], "folder=start", "training.steps=1", "training.learning_rate=1e-12"]
    )
    return load_file(folder / "checkpoints/step_00000001/model.safetensors")


def test_accumulated_micro_batches_are_the_whole_batch(here):
    settings = ["tokenizer.yaml", "name=parts", "training.steps=6", "augment.crop=0.6"]
    settings += [f"stage.tokenizer.quantizer.{x}" for x in ("revive_below=0", "init=random", "learned=true")]
    whole = run_config(settings[0], settings[1:])
    parts = run_config(settings[0], [*settings[1:], "training.accumulation=2", "folder=accumulated"])
    statistics = ("quantizer.usage", "quantizer.sums")  # of each micro-batch in turn; a learned codebook needs none
    assert_close_runs(whole, parts, weights_at_the_start(settings), 6, ("bias", *statistics))


def test_two_processes_are_one(here):
    """A tokenizer ends as in one process: k-means start, statistics, codes revived at each step; a generator ends."""
    tokenizer = ["tokenizer.yaml", "name=shared", "training.steps=6", "augment.flip=0.5"]
    tokenizer += ["stage.tokenizer.quantizer.revive_below=0.9", "stage.tokenizer.quantizer.init=kmeans"]
    generator = ["generator.yaml", "name=shared_generator", "training.steps=3"]
    whole = run_config(tokenizer[0], tokenizer[1:])
    (here / "both.py").write_text(
        "from maskgen.cli import app\n"
        f"for arguments in ({tokenizer + ['folder=two']!r}, {generator + ['folder=two']!r}):\n"
        "    app(['train', *arguments], standalone_mode=False)\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    del env["ACCELERATE_USE_CPU"]  # the command alone is enough on a machine without a GPU
    done = subprocess.run([*launch, "both.py"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close_runs(whole, here / "two/shared", weights_at_the_start(tokenizer), 6)
    assert [line["step"] for line in read_metrics(here / "two/shared/metrics.jsonl")] == list(range(1, 7))
    assert (here / "two/shared_generator/pipeline/model_index.json").is_file()


def test_processes_that_do_not_find_each_other_are_refused(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")  # three were started, but this one already trains alone
    with pytest.raises(ValueError, match="3 processes were started and accelerate joined 1"):
        run_config("tokenizer.yaml", ["name=lonely"])


def test_runs_of_one_process_may_differ_in_precision(here):
    run_config("tokenizer.yaml", ["name=half", "training.steps=1", "training.precision=bf16"])
    run_config("tokenizer.yaml", ["name=full", "training.steps=1"])
    half, full = (read_metrics(here / f"runs/{n}/metrics.jsonl")[0]["model/l1"] for n in ("half", "full"))
    assert half != full
    assert half == pytest.approx(full, rel=0.02)


# ------------------------------------------------------------------------------------------------------- batch plan


def flat(plan):
    return [draw for batch in plan for draw in batch]


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (10, 5), (3, 8)])
def test_every_epoch_is_a_permutation(n, batch_size):
    plan = BatchPlan(range(n), batch_size, 0, 30, seed=1)
    draws = flat(plan)
    assert len(list(plan)) == len(plan) == 30
    epochs = [[index for index, _ in draws[i : i + n]] for i in range(0, len(draws) - n + 1, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert max(Counter(seed for _, seed in draws).values()) == 1  # no two draws share their augmentation
    assert flat(BatchPlan(range(n), batch_size, 0, 30, seed=2)) != draws


@pytest.mark.parametrize(("accumulation", "processes"), [(1, 2), (2, 1), (3, 2), (2, 3)])
def test_the_global_batch_does_not_depend_on_who_shares_it(accumulation, processes):
    whole = [sorted(batch) for batch in BatchPlan(range(10), 12, 0, 7, seed=0)]
    ranks = [list(BatchPlan(range(10), 12, 0, 7, 0, accumulation, rank, processes)) for rank in range(processes)]
    shared = [
        sorted(draw for batches in ranks for a in range(accumulation) for draw in batches[step * accumulation + a])
        for step in range(7)
    ]
    assert shared == whole
    assert {len(batch) for batches in ranks for batch in batches} == {12 // (accumulation * processes)}


@pytest.mark.parametrize("start", [0, 1, 5, 7])
def test_a_plan_from_step_k_is_the_rest_of_the_whole_plan(start):
    whole = list(BatchPlan(range(10), 4, 0, 7, seed=0, accumulation=2))
    rest = BatchPlan(range(10), 4, start, 7, seed=0, accumulation=2)
    assert list(rest) == whole[start * 2 :]
    assert len(rest) == (7 - start) * 2


def test_batches_do_not_depend_on_the_number_of_workers():
    plan = BatchPlan(range(48), 4, 0, 5, seed=0)
    one, two = (list(loader(Pictures(), Augmentation(0.5, 0.5), plan, workers, False)) for workers in (0, 2))
    assert all(torch.equal(a["pixels"], b["pixels"]) and torch.equal(a["label"], b["label"]) for a, b in zip(one, two))
    assert not torch.equal(one[0]["pixels"], next(iter(loader(Pictures(), Augmentation(), plan, 0, False)))["pixels"])


# ----------------------------------------------------------------------------------------------------- augmentation


def test_augmentation_flips_crops_and_leaves_alone():
    x = torch.rand(3, 8, 6)
    assert torch.equal(Augmentation()(x, torch.Generator()), x)
    assert torch.equal(Augmentation(flip=1.0)(x, torch.Generator()), x.flip(-1))
    seeds = [torch.Generator().manual_seed(i) for i in range(200)]
    flipped = [torch.equal(Augmentation(flip=0.3)(x, g), x.flip(-1)) for g in seeds]
    assert 0.2 < np.mean(flipped) < 0.4

    ramp = torch.linspace(-1, 1, 64).expand(1, 64, 64).contiguous()  # a crop shows what share of the ramp it kept
    crops = [Augmentation(crop=0.3)(ramp, torch.Generator().manual_seed(i)) for i in range(100)]
    assert all(c.shape == ramp.shape and c.min() >= -1 and c.max() <= 1 for c in crops)
    kept = torch.tensor([(c.amax() - c.amin()) / 2 for c in crops])
    assert kept.min() > 0.3**0.5 * 0.75**0.5 - 0.06  # least area, narrowest aspect
    assert kept.min() < 0.6
    assert kept.max() > 0.9
    again = Augmentation(crop=0.3)(ramp, torch.Generator().manual_seed(7))
    assert torch.equal(again, crops[7])
    assert not torch.equal(crops[8], crops[7])


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"flip": -0.1}, {"crop": 0.0}, {"crop": 1.1}])
def test_augmentation_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=r"flip lies in \[0, 1\] and crop in \(0, 1\]"):
        Augmentation(**wrong)


# ------------------------------------------------------------------------------------------------ what stops a run


def test_a_resumed_run_names_the_settings_that_changed(here):
    run_config("generator.yaml", ["name=changed", "training.steps=1"])
    with pytest.raises(ConfigError) as error:
        run_config(
            "generator.yaml",
            ["name=changed", "training.learning_rate=5e-3", "augment.flip=0", "stage.model.depth=3", "training.seed=1"],
        )
    message = str(error.value)
    assert "4 problems" in message
    assert "training.learning_rate changed from 0.001 to 0.005" in message
    assert "augment.flip changed from 0.5 to 0.0" in message
    assert "stage.model.depth changed from 2 to 3" in message
    assert "training.seed changed from 0 to 1" in message
    assert "another name (name=...), or remove" in message

    free = ["steps=3", "log_every=2", "sample_every=2", "checkpoint_every=1", "keep_checkpoints=3"]
    spelt_out = ["weight_decay=0.045", "accumulation=1"]
    folder = run_config("generator.yaml", ["name=changed", *(f"training.{s}" for s in free + spelt_out)])
    assert len(checkpoints(folder / "checkpoints")) == 3
    assert sorted(p.name for p in (folder / "samples").iterdir()) == [f"step_{i:08d}.png" for i in (1, 2, 3)]


def test_a_run_without_a_checkpoint_may_begin_anew_with_other_settings(here):
    folder = run_config("tokenizer.yaml", ["name=anew", "training.steps=1"])
    shutil.rmtree(folder / "checkpoints")
    run_config("tokenizer.yaml", ["name=anew", "training.steps=1", "stage.l1=2"])
    assert yaml.safe_load((folder / "config.yaml").read_text())["stage"]["l1"] == 2


def test_a_loss_that_is_not_finite_ends_the_run_with_its_last_good_checkpoint(tmp_path):
    settings = Training(steps=12, batch_size=4, log_every=12, checkpoint_every=1, precision="fp32")
    draws = [[index for index, _ in batch] for batch in BatchPlan(range(48), 4, 0, 12, seed=0)]
    broken = draws[5][2]  # first met in step 6, long before the next line of metrics
    stage = TokenizerStage(dataset=Pictures(), tokenizer=TOKENIZER["stage"]["tokenizer"])
    with pytest.raises(FloatingPointError, match=r"step 6: a loss is not finite.*last checkpoint"):
        train(stage, Pictures(broken=broken), settings, tmp_path)
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step_00000005"
    weights = load_file(tmp_path / "checkpoints/step_00000005/model.safetensors")
    assert all(w.isfinite().all() for w in weights.values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.accumulation=3"],
            r"batch_size 8 cannot be shared by 1 processes x accumulation 3; .*multiple of 3",
        ),
        (["augment.type=views"], "only stages generator and representation learn from; .*set augment.type=standard"),
        (["holdout=48"], "holdout 48 must be at least 0 and below the data's 48 pictures"),
        (["stage.tokenizer.encoder.channels=1"], "data has 3 channels and stage.tokenizer.encoder.channels is 1"),
        (["stage.tokenizer.encoder.patch=8"], r"picture size \(8, 8\).*multiple of 16; resize to \(16, 16\)"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused_in_words(here, overrides, message):
    with pytest.raises(ValueError, match=message):
        run_config("tokenizer.yaml", ["name=wrong", *overrides])


def test_limits_of_the_loops_settings_are_told_all_at_once():
    with pytest.raises(ValueError, match="steps") as error:
        Training(steps=0, clip=0.0, ema=1.0, warmup_steps=-1, batch_size=0)
    assert str(error.value).splitlines() == [
        "training.steps must be at least 1, got 0",
        "training.batch_size must be at least 1, got 0",
        "training.warmup_steps must be at least 0, got -1",
        "training.clip must be above 0, got 0.0",
        "training.ema must be at least 0 and below 1, got 1.0",
    ]


def test_a_token_cache_of_another_tokenizer_is_refused(here, tmp_path):
    def cache(made_by):
        codes = iter([torch.zeros(4, 4, 4, dtype=torch.long)])
        return write_token_cache(tmp_path, codes, np.arange(4), (4, 4), 16, list("abcd"), made_by)

    generator = ["generator.yaml", f"data={{type: tokens, path: {tmp_path}}}", "training.steps=1"]
    cache("0123456789abcdef")
    own = fingerprint(load_tokenizer("runs/tokenizer"))
    with pytest.raises(ValueError, match=rf"made by tokenizer 0123456789abcdef, this run's is {own}; encode the data"):
        run_config(generator[0], ["name=cache", *generator[1:]])
    cache(own)
    assert (run_config(generator[0], ["name=cache", *generator[1:]]) / "pipeline").is_dir()


def test_a_cache_that_was_not_finished_does_not_load(tmp_path):
    def batches():
        yield torch.zeros(2, 4, 4, dtype=torch.long)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_token_cache(tmp_path, batches(), np.arange(4), (4, 4), 16, ["a"], "0" * 16)
    with pytest.raises(FileNotFoundError, match=r"holds no token cache.*maskgen encode"):
        TokenCache(str(tmp_path))


def test_fingerprints_tell_weights_apart_whatever_their_type():
    model = Tokenizer(**TOKENIZER["stage"]["tokenizer"])
    other = copy.deepcopy(model)
    assert fingerprint(model) == fingerprint(other)
    with torch.no_grad():
        other.quantizer.codebook[3, 1] += 1e-3
    assert fingerprint(model) != fingerprint(other)
    assert len(fingerprint(model.to(torch.bfloat16))) == 16


# --------------------------------------------------------------------------------------------------------- learning


def tiles(n=64, size=16):
    """White pictures with one small tile of one of many colours and patterns: a ground that dominates by far."""
    rng = np.random.default_rng(0)
    images = np.full((n, size, size, 3), 255, np.uint8)
    for image in images:
        y, x = 4 * rng.integers(0, size // 4, 2)
        image[y : y + 4, x : x + 4] = rng.integers(0, 255, (2, 2, 3)).repeat(2, 0).repeat(2, 1)
    return images


def test_a_tokenizer_learns_and_revival_keeps_its_codes_in_use(here):
    images = tiles()
    np.savez("tiles.npz", images=images)
    overrides = ["data.path=tiles.npz", "training.steps=100", "training.log_every=100", "training.batch_size=16"]
    overrides += ["training.learning_rate=4e-3", "training.ema=0.9", "stage.tokenizer.quantizer.codebook_size=32"]
    overrides += ["stage.tokenizer.encoder.patch=2", "stage.tokenizer.decoder.patch=2", "training.checkpoint_every=100"]
    found = {}
    for name, extra in {
        "revived": [],
        "left": [f"stage.tokenizer.quantizer.{x}" for x in ("revive_below=0", "init=random")],
    }.items():
        folder = run_config("tokenizer.yaml", [f"name={name}", *overrides, *extra])
        found[name] = read_metrics(folder / "metrics.jsonl")[-1]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    control = float(psnr(pixels.mean(0, keepdim=True).expand_as(pixels), pixels).mean())
    assert found["revived"]["train/psnr"] > control + 1.5
    assert found["revived"]["codebook/use"] >= 0.9
    assert found["left"]["codebook/use"] <= 0.75


def test_a_generator_learns_what_a_class_looks_like(here):
    """Codes that a class determines: held-out pictures are predicted, by chance one in 16 would be."""
    labels = np.arange(48) % 3
    codes = (5 * torch.from_numpy(labels)[:, None, None] + torch.arange(16).view(4, 4)) % 16
    write_token_cache("cache", [codes], labels, (4, 4), 16, list("abc"), fingerprint(load_tokenizer("runs/tokenizer")))
    folder = run_config(
        "generator.yaml",
        ["name=learns", "training.steps=80", "training.learning_rate=1e-2", "training.sample_every=20", "holdout=16",
         "data={type: tokens, path: cache}", "training.checkpoint_every=80", "stage.samples_per_class=1"],
    )  # fmt: skip
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "holdout/loss" in line]
    assert [line["step"] for line in lines] == [20, 40, 60, 80]
    assert lines[-1]["holdout/loss"] < lines[0]["holdout/loss"]
    assert lines[-1]["holdout/accuracy"] > 0.9


# ----------------------------------------------------------------------------------------------- losses, optimizers


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_beta_scales_the_commitment_of_the_encoder_and_not_the_codebooks_own_term(beta):
    """Fault 5 of public code (beta on the wrong term): loss = |sg[z] - e|^2 + beta |z - sg[e]|^2."""
    quantizer = VectorQuantizer(8, 4, commitment=beta, learned=True, revive_below=0.0)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = quantizer(z)
    e = quantizer.embed(out.codes).detach()
    out.loss.backward(retain_graph=True)
    torch.testing.assert_close(z.grad, beta * 2 * (z.detach() - e) / z.numel())
    pull = 2 * (e - z.detach()) / z.numel()
    expected = torch.zeros(8, 4).index_add_(0, out.codes.flatten(), pull.movedim(1, -1).reshape(-1, 4))
    torch.testing.assert_close(quantizer.codebook.grad, expected)
    error = (z.detach() - e).square().mean()
    torch.testing.assert_close(out.loss.detach(), (1 + beta) * error)

    weight = torch.randn_like(z)  # straight through: the latents' gradient is the encoder's
    through = torch.autograd.grad((out.latents * weight).sum(), z)[0]
    assert torch.equal(through, weight)
    torch.testing.assert_close(out.latents.detach(), e)


def test_a_codebook_that_follows_has_no_gradient_and_goes_to_its_latents_mean():
    quantizer = VectorQuantizer(2, 2, decay=0.5, revive_below=0.0)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        quantizer.sums.copy_(quantizer.codebook)
    z = torch.tensor([[-3.0, 1.0], [-2.0, 0.0], [4.0, 2.0]]).T[None, :, :, None].requires_grad_()
    for _ in range(60):
        loss = quantizer(z).loss
    assert not quantizer.codebook.requires_grad
    torch.testing.assert_close(quantizer.codebook.data, torch.tensor([[-2.5, 0.5], [4.0, 2.0]]))
    torch.testing.assert_close(quantizer.usage, torch.tensor([4 / 3, 2 / 3]))  # 1 under uniform use
    loss.backward()
    torch.testing.assert_close(loss.detach(), 0.25 * torch.tensor([0.25, 0.25, 0.25, 0.25, 0, 0]).mean())


def test_dead_codes_come_back_to_life_and_living_ones_stay():
    quantizer = VectorQuantizer(4, 2, learned=True, revive_below=0.05)
    quantizer.initialised.fill_(True)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0], [-50.0, 0.0]]))
        quantizer.usage.copy_(torch.tensor([1.0, 1.0, 0.02, 0.5]))
    z = torch.rand(1, 2, 8, 8)
    quantizer(z)
    assert torch.equal(quantizer.codebook[[0, 1, 3]], torch.tensor([[0.0, 0.0], [1.0, 1.0], [-50.0, 0.0]]))
    born = quantizer.codebook[2]
    assert (born == z[0].flatten(1).T).all(1).any()  # one of the batch's latents
    before = quantizer.codebook.clone()
    quantizer.eval()(z)
    assert torch.equal(quantizer.codebook, before)


def groups(module):
    """Names of the parameters with and without weight decay."""
    optimizer = _optimizer(module, Training(steps=1, weight_decay=0.1))
    names = {id(p): name for name, p in module.named_parameters()}
    found = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert found.keys() == {0.1, 0.0}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert found[0.1] | found[0.0] == trained
    assert not found[0.1] & found[0.0]
    return found[0.1], found[0.0]


@pytest.mark.parametrize("condition", ["adaln", "in_context"])
def test_embeddings_biases_norms_and_lone_tokens_do_not_decay(condition):
    model = MaskTransformer(
        16, (4, 4), 3, width=16, depth=1, heads=2, positions="learned", registers=2, condition=condition, norm="rms"
    )
    decayed, plain = groups(model)
    matrices = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert decayed == matrices
    assert {"code_embedding.weight", "class_embedding.weight", "position_embedding"} <= plain
    assert {"mask_token", "register_tokens", "blocks.0.attention.q_norm.weight", "head.bias"} <= plain


def test_the_codebook_does_not_decay_and_convolutions_do():
    parts = copy.deepcopy(TOKENIZER["stage"]["tokenizer"])
    parts["quantizer"]["learned"] = True
    model = Tokenizer(**parts)
    decayed, plain = groups(model)
    assert decayed == {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert "quantizer.codebook" in plain


def test_learning_rate_warms_up_then_falls_or_stays():
    settings = Training(steps=110, learning_rate=2.0, warmup_steps=10)
    assert [settings.rate(i) for i in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert settings.rate(60) == pytest.approx(1.0)
    assert 0 < settings.rate(109) < 1e-3
    assert all(settings.rate(i) > settings.rate(i + 1) for i in range(10, 109))
    constant = Training(steps=110, learning_rate=2.0, warmup_steps=0, decay="constant")
    assert {constant.rate(i) for i in range(110)} == {2.0}


def test_the_average_follows_the_weights_and_copies_buffers():
    model = nn.BatchNorm1d(1)
    with torch.no_grad():
        model.weight.fill_(0)
    averaged, expected = _average(model, 0.5), 0.0
    for n, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(value)
        averaged.update_parameters(model)
        keep = 0 if n == 0 else min(0.5, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * value
        assert averaged.module.weight.item() == pytest.approx(expected)
        assert averaged.module.running_mean.item() == value


def test_a_run_written_in_python_is_the_same_run(here):
    config = copy.deepcopy(TOKENIZER)
    training = Training(**{**config.pop("training"), "steps": 2})
    folder = run(**{**config, "name": "python"}, training=training)
    other = run_config("tokenizer.yaml", ["name=yaml", "training.steps=2"])
    weights = [load_file(f / "pipeline/tokenizer/diffusion_pytorch_model.safetensors") for f in (folder, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    with pytest.raises(ConfigError, match=r"training\.ema changed from 0\.999 to 0\.5"):
        run_config("tokenizer.yaml", ["name=python", "training.steps=2", "training.ema=0.5"])
