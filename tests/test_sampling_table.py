"""benchmarks/sampling_table.py on a pipeline of seconds: what is measured, kept, shown."""

import json

import pytest
import sampling_table as sampling
import torch

import flat
from maskgen import MaskedImagePipeline, MaskScheduler, Tokenizer

pytestmark = pytest.mark.bench

CONV = {"width": 8, "multipliers": [1, 2, 2], "blocks": 1}
MODEL = {"width": 16, "depth": 1, "block": {"heads": 2}}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A masked pipeline with a critic, and a causal transformer, untrained."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer = Tokenizer(encoder=CONV, quantizer={"codebook_size": 16, "dim": 4}, decoder=CONV)
    masked = flat.transformer(16, (8, 8), num_classes=99, **MODEL)
    critic = flat.transformer(16, (8, 8), num_classes=99, predictions=1, **MODEL)
    for name in ("masked", "critic"):
        MaskedImagePipeline(tokenizer, masked, MaskScheduler(), None, critic).save_pretrained(
            folder / name / "pipeline"
        )
    flat.causal(16, (8, 8), 99, **MODEL).save_pretrained(folder / "causal" / "pipeline" / "transformer")
    tokenizer.save_pretrained(folder / "causal" / "pipeline" / "tokenizer")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """A classifier of one step; a few settings."""
    real = sampling.train_classifier
    monkeypatch.setattr(
        sampling, "train_classifier", lambda data, steps, progress: real(data, steps=1, progress=progress)
    )
    rows = {
        "temperature": [],
        "guidance": [],
        "steps": [{**sampling.BASE, "steps": 2, "order": o} for o in sampling.ORDERS],
    }
    monkeypatch.setattr(sampling, "settings", rows.get)
    monkeypatch.setattr(sampling, "SEEDS", (0,))


def test_settings_are_measured_once_compared_and_shown(work, quick, tmp_path):
    out = tmp_path / "r.json"
    place = ["--work", str(work), "--out", str(out), "--count", "12"]
    for part in ("0", "1", "0"):  # the third finds all of its own done
        sampling.main([*place, "--part", part, "2"])
    sampling.main([*place, "--compare"])
    results = json.loads(out.read_text())
    assert sorted(e["order"] for e in results["entries"]) == sorted(sampling.ORDERS)
    for entry in [*results["entries"], *results["raster"]]:
        assert entry["distance"] > 0
        assert 0 <= entry["class_agreement"] <= 1
        assert entry["diversity"] >= 0
        assert 0 < entry["nearest_rmse"] < 2
    assert [e["passes"] for e in results["raster"]] == [64, 8, 8, 16] * 2
    assert "critic" not in sampling.table(results, "steps").splitlines()[-1]
    results["training"] = {name: {"steps": 3, "cpu_seconds": 5.0} for name in sampling.RUNS}
    lines = sampling.table(results, "steps").splitlines()
    assert "Training of the critic 3 steps, 5 s." in lines[-1]
    assert [line.split(" | ")[0] for line in lines[2:7]] == [*(f"| {o}" for o in sampling.ORDERS), "| emoji themselves"]
    assert "| one after the other | 1.5 |  | 64 |" in sampling.raster_table(results)
    sampling.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_diversity_is_of_pairs_within_a_category():
    judge = object.__new__(sampling.Judge)
    judge.categories = torch.tensor([0, 0, 1, 1, 2])
    judge.classifier = torch.nn.Module()
    judge.classifier.features = lambda x: x
    assert judge.diversity(torch.tensor([[0.0], [3.0], [10.0], [11.0], [50.0]])) == pytest.approx(2.0)
