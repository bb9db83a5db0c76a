"""MAGE on the core: one checkpoint trains with dropped tokens, draws with and without a class, and gives features."""

import numpy as np
import pytest
import torch

from flat import merged
from maskgen import MaskedImagePipeline
from maskgen.config import load
from maskgen.training.loop import Training
from maskgen.training.metrics import read_metrics
from maskgen.training.run import run

TINY = {"width": 16, "depth": 2, "block": {"heads": 2}, "decoder": {"depth": 1, "heads": 2}}


@pytest.fixture
def folder(colours):
    """A run of configs/generation/mage.yaml in everything but its size, on noisy images of three colours."""
    data, coder = colours(48), {"width": 8, "multipliers": [1, 2], "blocks": 1}
    tokenizer = {"encoder": coder, "quantizer": {"codebook_size": 16, "dim": 4}, "decoder": coder}
    run("tokenizer", {"type": "tokenizer", "tokenizer": tokenizer}, data, Training(steps=20, batch_size=16))
    stage = load("generation/mage", [])["stage"]
    stage = {**stage, "tokenizer": "runs/tokenizer", "model": merged(stage["model"], TINY)}
    stage["scheduler"] = {**stage["scheduler"], "num_inference_steps": 3}
    return run("mage", stage, data, Training(steps=3, batch_size=8, log_every=1))


def test_half_of_the_tokens_is_dropped_and_more_are_hidden(folder):
    for line in read_metrics(folder / "metrics.jsonl"):
        assert line["model/drop_ratio"] == 0.5
        assert 0.5 <= line["model/mask_ratio"] <= 1
        assert np.isfinite(line["model/loss"])


@pytest.mark.train
def test_one_checkpoint_draws_with_and_without_a_class(folder):
    pipeline = MaskedImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    drawn = {}
    for scale in (0.0, 1.0, 3.0):  # u + s (c - u): at 0 the class counts for nothing
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        drawn[scale] = pipeline([0, 1], generator=generators, guidance_scale=scale, output_type="codes").images
        assert drawn[scale].shape == (2, 4, 4)


@pytest.mark.train
def test_its_encoder_gives_features(folder):
    pipeline = MaskedImagePipeline.from_pretrained(folder)
    codes = pipeline.vqvae.encode(torch.zeros(2, 3, 8, 8))
    with torch.no_grad():
        layers = pipeline.transformer.layers(codes)
    assert [layer.shape for layer in layers] == [(2, 17, 16)] * 2
