"""The benchmarks of representation learners: MAGE's authors, training steps, gains over controls."""

import json
from types import SimpleNamespace

import budget
import mage_authors
import pytest
import representation
import timing
import torch
import train_step

from maskgen.config import check
from maskgen.training.run import run
from recorded import GOLDEN, Fixture

pytestmark = pytest.mark.bench

THEIR_NAMES = {
    "token_emb.word_embeddings": "words",
    "token_emb.position_embeddings": "positions",
    "token_emb.LayerNorm": "embedding_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
    "decoder_pos_embed_learned": "decoder_positions",
    "mlm_layer.bias": "word_bias",
    "mlm_layer.fc": "to_word",
    "mlm_layer.ln": "word_norm",
}
KEYS = {"width": "embed_dim", "depth": "depth", "heads": "num_heads"}
MADE = representation.TOKENIZERS


def test_the_authors_mage_is_theirs():
    """Given their weights, codes, ratio and noise: their logits and loss."""
    f = Fixture(GOLDEN / "mage/pretrain/a", "generator")
    c, ratio, noise = f.config["model"], f.config["forward"]["mask_rate"], f.inputs["noise"]
    weights = {}
    for name, value in f.weights.items():
        for theirs, ours in THEIR_NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = value
    n = (c["img_size"] // c["patch_size"]) ** 2
    decoder = {f"decoder_{name}": c[f"decoder_{key}"] for name, key in KEYS.items()}
    size = {name: c[key] for name, key in KEYS.items()}
    model = mage_authors.MAGE(f.config["vqgan"]["n_embed"], n, **size, **decoder).eval()
    weights["positions.weight"] = weights["positions.weight"][: n + 1]
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    codes = f.outputs["gt_indices"].long()
    logits, masked = model.logits(codes, ratio, noise)
    f.check("logits", logits[..., : model.codes])
    f.check("token_all_mask", masked)
    f.check("loss", model(codes, ratio, noise))


def test_training_steps_are_timed_side_by_side(monkeypatch):
    """Every side that is installed trains; a table has a line a pair that is there."""
    small = {"width": 16, "depth": 2, "heads": 2}
    monkeypatch.setattr(train_step, "SIZE", small)
    block = {**train_step.ENCODER["block"], "heads": 2}
    monkeypatch.setattr(train_step, "ENCODER", {**train_step.ENCODER, "width": 16, "depth": 2, "block": block})
    monkeypatch.setattr(train_step, "DECODER", {"depth": 1, "heads": 2})
    model = {**train_step.ENCODER, "decoder": {**train_step.DECODER, "width": 16}}
    monkeypatch.setattr(train_step, "MAE_MODEL", model)
    monkeypatch.setattr(train_step, "GRID", (4, 4))
    sides, missing = train_step.build(2)
    before = {name: [p.detach().clone() for p in side[0].parameters()] for name, side in sides.items()}
    found = train_step.measure(sides, "fp32", 1)
    assert set(sides) | set(missing) == set(train_step.SIDES)
    assert all(len(times["seconds"]) == len(times["cpu_seconds"]) == 1 for times in found.values())
    for name, (network, _) in sides.items():
        assert any(not now.equal(then) for now, then in zip(network.parameters(), before[name])), name
    results = {"seconds": {"fp32": found}, "batch": 2, "rounds": 1, "parameters": {}, "versions": {}}
    lines = train_step.table(
        {**results, "machine": {"cpu": "a processor", "threads": 1, "load_before": 0}}
    ).splitlines()
    assert len(lines) == 4 + sum(one in sides and other in sides for one, other in train_step.PAIRS)


def test_a_step_is_as_many_times_as_fast_as_its_rounds_say():
    assert timing.as_text(timing.spread([1.0, 2.0, 4.0], [2.0, 4.0, 12.0])) == "**2.00x** (2.00 to 3.00)"


@pytest.mark.parametrize("method", list(representation.METHODS))
def test_learners_are_configurations(method, tmp_path, monkeypatch):
    """Checked as `maskgen train` checks them; what they need of tokenizers is named."""
    monkeypatch.setattr(representation, "tokenizer", lambda name, options: {"of": name})
    monkeypatch.setattr(representation, "load_tokenizer", lambda path: torch.nn.Identity())
    monkeypatch.setattr(representation, "FashionMNIST", lambda size: None)
    monkeypatch.setattr(representation, "encode_dataset", lambda *_, **__: None)
    options = SimpleNamespace(work=tmp_path)
    config, trained = representation.configuration(method, 1, options)
    assert (trained is not None) == any(name in json.dumps(representation.METHODS[method]) for name in MADE)
    checked = check(run, budget._with_steps(config, "x", 20, 4), method)
    assert checked["training"].seed == 1
    assert not any(f'"{name}"' in json.dumps(config) for name in MADE)


def test_gains_are_over_the_best_control():
    def row(seed: int, top1: float) -> dict:
        training = {"steps": 7, "budget_seconds": 90}
        where = {"machine": {"cpu": "a processor", "threads": 1}, "versions": {"torch": "2"}}
        return {"seed": seed, "top1": {"1%": top1, "10%": 0.5}, "training": training, **where}

    top1 = {"raw pixels": {"1%": 0.6, "10%": 0.7}, "random weights, seed 0": {"1%": 0.65, "10%": 0.6}}
    results = {"controls": {"top1": top1}, "MAE/0": row(0, 0.7), "MAE/1": row(1, 0.72)}
    lines = representation.table(results).splitlines()
    assert lines[2] == "| raw pixels | 60.0% | | 70.0% | | |"
    assert lines[4] == "| MAE | 70.0%, 72.0% | +6.0 | 50.0%, 50.0% | -20.0 | 7 |"
