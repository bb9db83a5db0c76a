"""`maskgen probe` and `maskgen features` on saved backbones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flat import transformer
from maskgen.cli import app
from maskgen.data.arrays import NpzArrays
from maskgen.evaluation.probes.features import load_features
from maskgen.evaluation.probes.probing import Classifier, options_of, probe, train_and_test
from maskgen.pipelines.backbone import Backbone, load_backbone, save_backbone
from maskgen.training.stages.representation import patches


@pytest.fixture
def data(colours, tmp_path):
    """60 images of three colours, which any features tell apart; and a random backbone, saved."""
    colours(60, noise=40)
    torch.manual_seed(0)
    model = transformer(0, (2, 2), token_dim=48, width=16, depth=3, heads=2, registers=1, decoder_depth=1)
    save_backbone(patches(4), model, tmp_path / "run" / "pipeline")
    return NpzArrays("data.npz")


def test_every_fifth_image_of_a_class_is_the_test(data):
    train, test = train_and_test(data)
    assert (len(train), len(test)) == (48, 12)
    assert np.bincount(test.labels).tolist() == [4, 4, 4]
    assert not set(train.indices) & set(test.indices)


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("knn", {"ks": [3]}),
        ("sweep", {"steps": 200, "batch_size": 48}),
        ("linear", {"epochs": 300, "warmup_epochs": 2, "batch_size": 48, "blr": 50.0}),
        ("lowshot", {"share": 0.2}),
        ("finetune", {"epochs": 30, "batch_size": 16, "blr": 0.02, "warmup_epochs": 2, "mixup": 0, "cutmix": 0}),
    ],
)
def test_every_protocol_tells_three_colours_apart(data, protocol, options):
    result = probe("run", data, protocol=protocol, options={**options, "progress": False})
    assert result.protocol.startswith(protocol)
    assert result.accuracy["top1"] >= 0.9
    assert result.counts["test"] == 12


def test_finetuning_trains_embeddings_blocks_and_head_alone(data):
    backbone = load_backbone("run", -2)
    classifier = Classifier(backbone, 3)
    groups = classifier.by_depth()
    assert len(groups) == 1 + 2 + 1  # the last block lies behind the layer
    trained = {id(p) for group in groups for p in group}
    for name, parameter in classifier.named_parameters():
        assert parameter.requires_grad == (id(parameter) in trained), name
    assert not any(id(p) in trained for p in backbone.transformer.decoder.parameters())
    assert any(p is backbone.transformer.embedding.projection.weight for p in groups[0])


@pytest.mark.parametrize("bias", ["shared", "block"])
def test_finetuning_trains_a_relative_bias_with_its_block(data, bias):
    options = {"width": 16, "depth": 3, "heads": 2, "relative_bias": bias, "embedding_norm": True}
    network = transformer(0, (2, 2), token_dim=48, **options)
    groups = Classifier(Backbone(patches(4), network, 1), 3).by_depth()
    where = [[i for i, group in enumerate(groups) if any(p is t.table for p in group)] for t in network.relative]
    assert where == ([[2]] if bias == "shared" else [[1], [2], []])
    assert any(p is network.embedding_norm.weight for p in groups[0])


def test_the_commands_write_what_they_found(data):
    runner = CliRunner()
    arguments = ["--protocol", "knn", "--option", "ks=[3]", "--layer", "0", "--out", "out/probe.json"]
    shown = runner.invoke(app, ["probe", "run", "--data", "data.npz", *arguments])
    assert shown.exit_code == 0, shown.output
    assert "layer 0 of 0 to 2" in shown.output
    assert "pool mean" in shown.output
    assert "top1" in json.loads(Path("out/probe.json").read_text())["accuracy"]
    written = runner.invoke(app, ["features", "run", "f.npz", "--data", "data.npz", "--pool", "cls"])
    assert written.exit_code == 0, written.output
    assert load_features("f.npz").values.shape == (60, 16)


def test_what_cannot_be_probed_is_said(data, tmp_path):
    with pytest.raises(ValueError, match="unknown protocol 'lineer': did you mean 'linear'"):
        probe("run", data, protocol="lineer")
    with pytest.raises(ValueError, match="unknown option of knn 'k': "):
        options_of("knn", ["k=3"])
    with pytest.raises(ValueError, match=r"give key=value"):
        options_of("knn", ["ks"])
    assert options_of("lowshot", ["share=0.1"]) == {"share": 0.1}
    with pytest.raises(FileNotFoundError, match="no transformer at"):
        load_backbone(tmp_path)
    with pytest.raises(ValueError, match="layer 3: this transformer has layers 0 to 2, or -1 to -3"):
        Backbone(patches(4), load_backbone("run").transformer, 3)
    with pytest.raises(ValueError, match="finetune always classifies the mean"):
        probe("run", data, protocol="finetune", pool="cls")
