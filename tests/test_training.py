"""Training: batches shared out, what stops a run, and that it learns."""

import copy
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from maskgen.config import ConfigError
from maskgen.data.tokens import write_token_cache
from maskgen.evaluation.reconstruction.measures import psnr
from maskgen.pipelines.store import fingerprint, load_tokenizer
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.batches import BatchPlan
from maskgen.training.checkpoint import checkpoints
from maskgen.training.loop import Training, train
from maskgen.training.metrics import read_metrics
from maskgen.training.run import run, run_config
from maskgen.training.stages.tokenizer import TokenizerStage
from runs import TOKENIZER, Images

pytestmark = pytest.mark.usefixtures("cpu")


# ------------------------------------------------------------------------- the same batch, however it is shared out


def assert_close_runs(a, b, start, steps, leave_out=("bias",)):
    """The weights and statistics of two runs agree to far less than they moved from `start`.

    Biases are left out: most are undone by the normalisation behind them, so that their gradients are rounding noise,
    which Adam makes as large as any. What they do matter for is seen in the images.
    """
    last = f"checkpoints/step_{steps:08d}"
    for file in ("model", "ema"):
        one, two = load_file(a / last / f"{file}.safetensors"), load_file(b / last / f"{file}.safetensors")
        assert one.keys() == two.keys()
        for name in (name for name in one if not name.endswith(leave_out)):
            torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    norms = [[line["model/gradient_norm"] for line in read_metrics(run / "metrics.jsonl")] for run in (a, b)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)  # Adam and clipping would hide a wrong factor
    for name in (name for name in start if "conv2.weight" in name or "quantizer.embedding" in name):
        assert (one[f"module.{name}"] - start[name]).abs().max() > 1e-3
    pixels = Images().pixels
    made = [load_tokenizer(run).eval()(pixels).pixels for run in (a, b)]
    torch.testing.assert_close(*made, atol=1e-4, rtol=0)


def weights_at_the_start(settings):
    """What the first step starts from: one step at a learning rate of almost 0."""
    folder = run_config(
        settings[0], [*settings[1:], "folder=start", "training.steps=1", "training.learning_rate=1e-12"]
    )
    return load_file(folder / "checkpoints/step_00000001/model.safetensors")


@pytest.mark.train
def test_accumulated_micro_batches_are_the_whole_batch(here):
    settings = ["tokenizer.yaml", "name=parts", "training.steps=6", "augment.crop=0.6"]
    settings += [f"stage.tokenizer.quantizer.{x}" for x in ("revive_below=0", "init=random", "learned=true")]
    whole = run_config(settings[0], settings[1:])
    parts = run_config(settings[0], [*settings[1:], "training.accumulation=2", "folder=accumulated"])
    statistics = ("quantizer.usage", "quantizer.sums")  # of each micro-batch in turn; a learned codebook needs none
    assert_close_runs(whole, parts, weights_at_the_start(settings), 6, ("bias", *statistics))


@pytest.mark.train
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
    with pytest.raises(ValueError, match=r"3 processes were started.*joined 1"):
        run_config("tokenizer.yaml", ["name=lonely"])


def test_runs_of_one_process_may_differ_in_precision(here):
    run_config("tokenizer.yaml", ["name=half", "training.steps=1", "training.precision=bf16"])
    run_config("tokenizer.yaml", ["name=full", "training.steps=1"])
    half, full = (read_metrics(here / f"runs/{n}/metrics.jsonl")[0]["model/l1"] for n in ("half", "full"))
    assert half != full
    assert half == pytest.approx(full, rel=0.02)


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
    stage = TokenizerStage(dataset=Images(), tokenizer=TOKENIZER["stage"]["tokenizer"])
    with pytest.raises(FloatingPointError, match=r"step 6: a loss is not finite.*last checkpoint"):
        train(stage, Images(broken=broken), settings, tmp_path)
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
        (["holdout=48"], "holdout is 48; it must be at least 0 and below the 48 images"),
        (["stage.tokenizer.encoder.channels=1"], "data has 3 channels and stage.tokenizer.encoder.channels is 1"),
        (["stage.tokenizer.encoder.patch=8"], r"image size \(8, 8\).*multiple of 16; resize to \(16, 16\)"),
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
    """White images with one small tile of one of many colours and patterns: a ground that dominates by far."""
    rng = np.random.default_rng(0)
    images = np.full((n, size, size, 3), 255, np.uint8)
    for image in images:
        y, x = 4 * rng.integers(0, size // 4, 2)
        image[y : y + 4, x : x + 4] = rng.integers(0, 255, (2, 2, 3)).repeat(2, 0).repeat(2, 1)
    return images


@pytest.mark.train
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


@pytest.mark.train
def test_a_generator_learns_what_a_class_looks_like(here):
    """Codes that a class determines: held-out images are predicted, by chance one in 16 would be."""
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


def test_a_run_written_in_python_is_the_same_run(here):
    config = copy.deepcopy(TOKENIZER)
    training = Training(**{**config.pop("training"), "steps": 2})
    folder = run(**{**config, "name": "python"}, training=training)
    other = run_config("tokenizer.yaml", ["name=yaml", "training.steps=2"])
    weights = [load_file(f / "pipeline/vqvae/diffusion_pytorch_model.safetensors") for f in (folder, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    with pytest.raises(ConfigError, match=r"training\.ema changed from 0\.999 to 0\.5"):
        run_config("tokenizer.yaml", ["name=python", "training.steps=2", "training.ema=0.5"])
