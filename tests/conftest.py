"""Every test runs on one thread (two beside another busy process fall 20-50x) and with shapes checked."""

import os

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
    """A function: a pipeline of 8x8 pictures, 4x4 tokens and random weights, of the classes named."""
    from maskgen import MaskedImagePipeline, MaskScheduler, MaskTransformer, Tokenizer  # not every test needs them

    def make(classes=("ant", "bee", "cat")):
        torch.manual_seed(0)
        small = {"width": 16, "multipliers": [1, 2], "blocks": 1}
        tokenizer = Tokenizer(encoder=small, quantizer={"codebook_size": 32, "dim": 4}, decoder=small).eval()
        count, names = (len(classes), list(classes)) if classes else (None, None)
        transformer = MaskTransformer(32, (4, 4), num_classes=count, width=32, depth=2, heads=2).eval()
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        pipeline = MaskedImagePipeline(tokenizer, transformer, MaskScheduler(num_inference_steps=4), names)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


@pytest.fixture(scope="module")
def pipeline(make_pipeline):
    return make_pipeline()


@pytest.fixture(scope="module")
def cpu():
    """Trains on the CPU also where there is a GPU: what is true to the bit is true of the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("TQDM_DISABLE", "1")
        yield


@pytest.fixture(scope="module")
def work(cpu, tmp_path_factory):
    """A folder with pictures, configurations and a trained tokenizer: those of runs.py."""
    from maskgen.training.run import run_config

    folder = tmp_path_factory.mktemp("work")
    images, labels = runs.pictures()
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
