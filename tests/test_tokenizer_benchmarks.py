"""The benchmarks of tokenizers: their budget, their families from a configuration to a table, their images."""

import json
import math
from pathlib import Path

import budget
import collapse
import entries
import numpy as np
import photos
import pytest
import tokenizer_families as families
import tokenizer_measures as measures
import torch
import yaml
from PIL import Image

from maskgen.config import check
from maskgen.evaluation.classifier import SmallClassifier, save_classifier
from maskgen.images import to_uint8
from maskgen.registry import build
from maskgen.training.metrics import read_metrics
from maskgen.training.run import STAGE, run

pytestmark = pytest.mark.bench

SMALL = {"width": 16, "multipliers": [1], "blocks": 1, "patch": 4}
QUANTIZER = {"codebook_size": 16, "dim": 4}


def small_run(**stage) -> dict:
    tokenizer = {"encoder": SMALL, "decoder": SMALL, "quantizer": QUANTIZER}
    return {
        "stage": {"type": "tokenizer", "tokenizer": tokenizer, **stage},
        "data": {"type": "emoji", "size": 16, "classes": ["flags"]},
        "holdout": 20,
        "training": {"batch_size": 4},
    }


def test_training_for_a_budget_ends_its_schedule_with_it(tmp_path):
    found = budget.train_for(0.5, "some", small_run(), tmp_path)
    lines = read_metrics(tmp_path / "some" / "metrics.jsonl")
    assert found["steps"] == lines[-1]["step"] == found["config"]["training"]["steps"] > 1
    assert lines[-1]["learning_rate"] < 1e-2 * 3e-4 or found["steps"] < 20  # the cosine's end
    assert math.isclose(found["cpu_seconds"], found["steps"] * found["cpu_seconds_per_step"], rel_tol=0.1, abs_tol=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["some"]  # nothing of the warm-up is left


def test_a_budget_has_steps_at_the_price_of_the_warm_up(tmp_path, monkeypatch):
    """By a clock that goes on by 2 seconds at every optimizer step."""
    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr(budget.time, "process_time", lambda: next(clock))
    found = budget.train_for(14, "some", small_run(), tmp_path)
    assert found["steps"] == 7
    assert found["cpu_seconds"] == 14


def test_shares_of_the_steps_are_taken_of_the_warm_up_too():
    config = small_run(adversarial={"start": 0.5, "weight": 0.2})
    assert budget._with_steps(config, "w", 24, 4)["stage"]["adversarial"] == {"start": 14, "weight": 0.2}
    assert budget._with_steps(config, "w", 300, 0)["stage"]["adversarial"]["start"] == 150
    assert config["stage"]["adversarial"]["start"] == 0.5
    assert budget._with_steps(small_run(adversarial={"start": 3}), "w", 300, 0)["stage"]["adversarial"]["start"] == 3


FAMILIES = yaml.safe_load((families.HERE / "tokenizer_families.yaml").read_text())


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """What photos.py writes, of noise."""
    path, rng = tmp_path_factory.mktemp("photos") / "photos64.npz", np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 64, 64, 3), np.uint8), np.arange(6)
    np.savez(path, images=images, labels=labels, holdout_images=images[:3], holdout_labels=labels[:3])
    return path


@pytest.mark.parametrize("name", ["emoji", "photos"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_families_are_configurations(family, name, crops, tmp_path):
    """Checked as `maskgen train` checks them, and they make images (or features) of the right shape."""
    data = families.data_sets(crops)[name]
    if name not in FAMILIES[family].get("only", [name]):
        pytest.skip("not for this data set")
    kept, held = data.open()

    def teacher() -> Path:
        save_classifier(SmallClassifier(3, 9), tmp_path / "teacher")
        return tmp_path / "teacher"

    config = families.configuration(FAMILIES[family], name, data, 0, teacher)
    stage = check(run, budget._with_steps(config, "x", 20, 4), family)["stage"]
    built = build(STAGE, stage, dataset=kept, holdout=held)
    model = (built.model if hasattr(built, "model") else built.modules["model"]).eval()
    pixels = kept[0]["pixels"][None]
    text = torch.randn(1, 8, 64) if model.reads_text else None
    made = model(pixels, text).pixels
    assert made.shape == pixels.shape or model.config.target == "features"


def test_a_familys_part_of_another_type_replaces_the_common_one():
    merged = families._merge({"a": {"type": "x", "n": 1}, "b": {"m": 1}}, {"a": {"type": "y", "k": 2}, "b": {"p": 2}})
    assert merged == {"a": {"type": "y", "k": 2}, "b": {"m": 1, "p": 2}}


class Levels:
    codebook_size, codes_per_position = 4, 2


def test_codes_of_several_levels_are_counted_level_by_level():
    codes = torch.tensor([[[0, 0], [1, 0]], [[2, 0], [3, 0]]])  # one level uses all 4 codes, the other a single one
    assert measures.codebook(Levels(), codes) == {
        "size": 4,
        "levels": 2,
        "use": 0.625,
        "perplexity": pytest.approx(2.5),
        "dead": 3,
    }


def entry(family: str, network: str = "small-classifier/0", **measured) -> dict:
    told = {"network": network, "told_apart": "things", "accuracy": 0.5, "chance": 0.1}
    return {
        "family": family,
        "run": family,
        "trained_on": 10,
        "machine": {"cpu": "a processor", "threads": 1},
        "versions": {"torch": "2"},
        "training": {
            "steps": 9,
            "cpu_seconds": 150.0,
            "budget_seconds": 150.0,
            "config": {"training": {"batch_size": 4}},
        },
        "measured": {
            "holdout": 5,
            "frechet_features": told,
            "parameters": {"total": 1_500_000},
            "codebook": {"images": 10, "size": 512},
            "speed": {"batch": 4},
            **measured,
        },
    }


def test_table_of_families_leaves_dashes_and_refuses_two_networks():
    lines = families.table([entry("a", psnr=20.0), entry("b", cosine=0.5)]).splitlines()
    assert lines[0] == "| family | PSNR, dB | cosine | codes | weights, M | steps | CPU s |"
    assert lines[2:4] == ["| a | 20.00 | - | 512 | 1.50 | 9 | 150 |", "| b | - | 0.500 | 512 | 1.50 | 9 | 150 |"]
    with pytest.raises(ValueError, match="2 networks"):
        families.table([entry("a"), entry("b", network="small-classifier/1")])


def test_entries_are_added_to_what_others_wrote(tmp_path):
    file = tmp_path / "results" / "r.json"
    entries.add_entry(file, "b", {"x": 1})
    entries.add_entry(file, "a", {"x": 2})
    entries.add_entry(file, "b", {"x": 3})
    assert json.loads(file.read_text()) == {"a": {"x": 2}, "b": {"x": 3}}
    assert [path.name for path in file.parent.iterdir()] == ["r.json"]


def test_a_family_from_the_command_to_the_table_and_the_sheet(tmp_path, monkeypatch):
    """And a second command trains nothing."""
    few = measures.Data(small_run()["data"], 20, 4, "nothing", 2, 1)
    monkeypatch.setattr(families, "data_sets", lambda path: {"emoji": few})
    monkeypatch.setattr(
        measures, "train_classifier", lambda kept, **_: (SmallClassifier(3, 2).eval(), {"accuracy": 1, "chance": 1})
    )
    (tmp_path / "f.yaml").write_text(yaml.safe_dump({"small one": {"stage": small_run()["stage"]}}))
    place = [
        "--families",
        tmp_path / "f.yaml",
        "--work",
        tmp_path / "w",
        "--out",
        tmp_path / "r.json",
        "--data",
        "emoji",
    ]
    place = [*map(str, place), "--images", str(tmp_path)]
    families.main([*place, "--budget", "0.2"])
    first = (tmp_path / "r.json").read_text()
    families.main([*place, "--budget", "0.2"])
    assert (tmp_path / "r.json").read_text() == first
    found = json.loads(first)["emoji/small one"]["measured"]
    assert found["tokens"] == 16
    assert found["bits"] == 64
    assert found["holdout"] == 20
    assert math.isclose(found["psnr"], found["stage"]["holdout/psnr"], abs_tol=1e-3)
    assert "| small one |" in families.table([json.loads(first)["emoji/small one"]])
    families.main([*place, "--sheet"])
    assert Image.open(tmp_path / "tokenizers-emoji.png").height > 2 * 16


# ---------------------------------------------------------------- collapse, photos


def test_collapse_is_measured_on_2000_distinct_entries(tmp_path):
    with np.load(collapse.images(tmp_path / "p.npz")) as made:
        assert made["images"].shape == (2000, 32, 32, 3)
    for name in collapse.VARIANTS:
        options = collapse.parse(["--steps", "9", "--work", str(tmp_path)])
        check(run, collapse.configuration(name, options), name)


def photo(path: Path) -> Path:
    noise = torch.rand(1, 3, 24, 36, generator=torch.Generator().manual_seed(len(path.name))) * 2 - 1
    big = torch.nn.functional.interpolate(noise, scale_factor=10, mode="bicubic")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_uint8(big)[0]).save(path)
    return path


def test_crops_are_found_again_and_plain_ones_skipped(tmp_path):
    file = photo(tmp_path / "a.png")
    first = photos.crops(file, 5, 32, [0])
    assert first.shape == (5, 32, 32, 3)
    assert np.array_equal(first, photos.crops(file, 5, 32, [0]))
    assert not np.array_equal(first, photos.crops(file, 5, 32, [1]))
    Image.new("RGB", (300, 200), "white").save(tmp_path / "white.png")
    assert len(photos.crops(tmp_path / "white.png", 5, 32, [0])) == 0


def test_crops_are_split_by_photograph(tmp_path, monkeypatch):
    names = [photo.file for photo in photos.PHOTOS if photo.package == photos.MATE]
    for name in names:
        photo(tmp_path / "in" / name)
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda module: None)
    out = tmp_path / "out.npz"
    photos.main([str(out), "--wallpapers", str(tmp_path / "in"), "--train", "30", "--holdout", "6", "--side", "32"])
    with np.load(out) as made:
        assert made["images"].shape == (30, 32, 32, 3)
        assert made["holdout_images"].shape == (6, 32, 32, 3)
        assert set(made["labels"]) == set(range(len(names) - 1))
        assert not set(made["sources"]) & set(made["holdout_sources"])
        assert len(made["sources"]) + len(made["holdout_sources"]) == len(names)
