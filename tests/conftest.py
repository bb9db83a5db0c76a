"""Every test runs on one thread (two beside another busy process fall 20-50x) and with shapes checked."""

import os
import sys
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("maskgen", "beartype.beartype")

import numpy as np
import pytest
import torch
import yaml

import runs

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_pipeline():
    """A function: a pipeline of the classes named and random weights, of `side` x `side` tokens of 2x2 pixels."""
    from flat import transformer as network
    from maskgen import MaskedImagePipeline, MaskScheduler, Tokenizer  # not every test needs them

    def make(classes=("ant", "bee", "cat"), side=4, depth=2, num_inference_steps=4, **settings):
        torch.manual_seed(0)
        small = {"width": 16, "multipliers": [1, 2], "blocks": 1}
        tokenizer = Tokenizer(encoder=small, quantizer={"codebook_size": 32, "dim": 4}, decoder=small).eval()
        count, names = (len(classes), list(classes)) if classes else (None, None)
        transformer = network(32, (side, side), num_classes=count, width=32, depth=depth, heads=2).eval()
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        scheduler = MaskScheduler(num_inference_steps=num_inference_steps, **settings)
        pipeline = MaskedImagePipeline(tokenizer, transformer, scheduler, names)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture(scope="module")
def pipeline(make_pipeline):
    return make_pipeline()


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory):
    """A small classifier of random weights, saved."""
    from maskgen.evaluation.classifier import SmallClassifier, save_classifier

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    save_classifier(SmallClassifier(3, 5, width=8).eval(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def cpu():
    """Trains on the CPU also where there is a GPU: what is true to the bit is true of the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("TQDM_DISABLE", "1")
        yield


@pytest.fixture(scope="module")
def work(cpu, tmp_path_factory):
    """A folder with images, configurations and a trained tokenizer: those of runs.py."""
    from maskgen.training.run import run_config

    folder = tmp_path_factory.mktemp("work")
    images, labels = runs.images()
    np.savez(folder / "data.npz", images=images, labels=labels)
    for config in (runs.TOKENIZER, runs.GENERATOR):
        (folder / f"{config['name']}.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_config("tokenizer.yaml")
    return folder


@pytest.fixture
def here(work, monkeypatch):
    """The same, as the working folder."""
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def maskgen(monkeypatch, capsys):
    """Run a command as the shell would: `.code`, `.out`, and `.message`, what a failure says."""
    from maskgen import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["maskgen", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        failed = isinstance(stop.value.code, str)  # the interpreter prints it and exits with 1
        return SimpleNamespace(
            code=1 if failed else stop.value.code, out=said.out, message=stop.value.code if failed else said.err
        )

    return run


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """A function: images of three noisy colours, their classes, in data.npz of a new working folder; its options."""
    monkeypatch.chdir(tmp_path)

    def write(count=24, side=8, noise=50):
        rng, labels = np.random.default_rng(0), np.arange(count) % 3
        ground = np.eye(3)[labels][:, None, None] * (250 - noise)
        images = (ground + rng.integers(0, noise, (count, side, side, 3))).astype(np.uint8)
        np.savez("data.npz", images=images, labels=labels)
        return {"type": "npz", "path": "data.npz"}

    return write
