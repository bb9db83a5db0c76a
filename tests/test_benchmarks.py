"""The benchmarks' own harness: it measures what it says, and its README shows the committed numbers."""

import importlib
import importlib.util
import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from maskgen.config import check
from maskgen.evaluation.classifier import SmallClassifier, save_classifier
from maskgen.parts import build
from maskgen.pictures import to_uint8
from maskgen.training.metrics import read_metrics
from maskgen.training.run import STAGE, run
from recorded import GOLDEN, Fixture

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(FOLDER))  # they import each other, as scripts do
SCRIPTS = ("budget", "collapse", "decode", "tokenizer_families", "tokenizer_measures", "photos", "tables", "inpainting")
budget, collapse, decode, families, measures, photos, tables, inpainting = map(importlib.import_module, SCRIPTS)
mage_authors, representation, sampling, train_step = map(
    importlib.import_module, ("mage_authors", "representation", "sampling_table", "train_step")
)

TINY = decode.Size(width=16, depth=2, heads=2, side=4, codes=8)
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_savings_change_no_code(guidance):
    """What the headline measures gives the codes of the plain formulation."""
    case, codes = decode.Case(batch=3, steps=5, guidance=guidance), []
    savings = [lambda *a, off=off: decode.ours(*a, off=off) for off in decode.OFF]
    for make in (decode.ours, decode.plain, *savings):
        torch.manual_seed(0)
        side = make(TINY, CPU)
        torch.manual_seed(1)
        codes.append(side.generate(case))
    assert len(codes) == 5
    assert all(each.equal(codes[0]) for each in codes[1:])


@pytest.mark.parametrize("name", ["savings", "dropping", "raster"])
def test_sides_of_a_question_run_and_are_shown(name, tmp_path):
    options = decode.parse(["--batch", "2", "--steps", "3", "--rounds", "1", "--schedule", "linear", "--set", name])
    options.out = tmp_path / "results.json"
    results = json.loads(json.dumps(decode.run(options, replace(decode.Size(16, 4, 2), side=4, codes=8))))
    assert list(results["sides"]) == list(decode.SETS[name])
    unguided, guided = (case["sides"] for case in results["cases"])
    lines = decode.processor_table(results).splitlines()
    assert len(lines) == 2 + 2 * len(unguided) + 2
    if name == "savings":  # of one class: the blank canvas once; both passes at one step fewer
        assert [side["rows"] for side in unguided.values()] == [1 + 4, 1 + 4, 6, 2 + 8, 6]
        assert [side["rows"] for side in guided.values()] == [1 + 8, 1 + 8, 2 + 8, 2 + 8, 2 + 8]
    if name == "raster":
        assert unguided[decode.RASTER]["calls"] == 16  # a token each
        assert f"| 2 | 1 | {decode.RASTER} | 16 |" in "\n".join(lines)


def test_all_sides_that_are_installed_run(tmp_path):
    names = [name for name in {**decode.MAIN, **decode.VARIANTS} if "muse" not in name]
    out = tmp_path / "results.json"
    options = decode.parse(["--batch", "2", "--steps", "3", "--rounds", "2", "--out", str(out), "--sides", *names])
    results = json.loads(json.dumps(decode.run(options, TINY)))
    assert list(results["sides"]) == names
    assert not results["missing"]
    unguided, guided = results["cases"]
    for name in names:
        assert len(unguided["sides"][name]["seconds"]) == 2
        assert unguided["sides"][name]["gflop_per_image"] >= 0
    assert unguided["sides"]["maskgen, plain"]["rows"] == 2 * 3
    assert guided["sides"]["maskgen, plain"]["rows"] == guided["sides"]["diffusers"]["rows"] == 2 * 2 * 3
    assert unguided["sides"]["maskgen, one class"]["rows"] == 1 + 2 * 2  # the blank canvas once
    assert decode.OURS not in guided["ratios"]
    assert all(r["min"] <= r["median"] <= r["max"] for r in guided["ratios"].values())
    assert len(decode.table(results).splitlines()) == 2 + 2 + 2


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    def absent(size, place):
        raise ImportError("No module named 'peer'")

    monkeypatch.setitem(decode.MAIN, "peer", absent)
    sides, missing = decode.build([decode.OURS, "peer"], TINY, CPU)
    assert list(sides) == [decode.OURS]
    assert missing == {"peer": "No module named 'peer'"}


def test_results_are_named_by_sides_and_precision():
    names = [decode.parse(given).out.name for given in ([], ["--dtype", "bf16"], ["--set", "raster"])]
    assert names == ["decode.json", "decode-bf16.json", "decode-raster.json"]


def test_ratio_is_taken_round_by_round():
    our, peer = {"seconds": [1, 2, 4], "cpu_seconds": [1, 1, 1]}, {"seconds": [2, 2, 12], "cpu_seconds": [2, 2, 2]}
    assert decode.ratio(our, peer) == {"median": 2, "min": 1, "max": 3, "cpu_median": 2}


def test_documents_show_the_committed_results():
    shown = set()
    for document in tables.DOCUMENTS:
        text = document.read_text()
        assert tables.filled(text) == text, f"{document.name}: run python benchmarks/tables.py"
        shown |= {mark[1] for mark in tables.MARK.finditer(text)}
    assert shown == set(tables.TABLES)
    assert {path.stem for path in (FOLDER / "results").glob("decode*.json")} <= shown


def test_committed_ratios_are_those_of_their_rounds():
    for path in decode.RESULTS.glob("decode*.json"):
        for case in json.loads(path.read_text())["cases"]:
            our = case["sides"][decode.OURS]
            middle = statistics.median(our["seconds"])
            assert math.isclose(our["images_per_second"], case["batch"] / middle, rel_tol=5e-3)
            for name, ratio in case["ratios"].items():
                assert ratio == decode.ratio(our, case["sides"][name])


# ---------------------------------------------------------------- training steps, representations

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
    monkeypatch.setattr(train_step, "ENCODER", {**train_step.ENCODER, **small})
    monkeypatch.setattr(train_step, "DECODER", {"decoder_depth": 1, "decoder_heads": 2})
    model = {**train_step.ENCODER, **train_step.DECODER, "decoder_width": 16}
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
    assert train_step.faster([1.0, 2.0, 4.0], [2.0, 4.0, 12.0]) == "**2.00x** (2.00 to 3.00)"


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


# ---------------------------------------------------------------- tokenizers

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


FAMILIES = yaml.safe_load((FOLDER / "tokenizer_families.yaml").read_text())


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
    """Checked as `maskgen train` checks them, and they make pictures (or features) of the right shape."""
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
    codebook_size, levels = 4, 2


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
            "codebook": {"pictures": 10, "size": 512},
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
    families.add_entry(file, "b", {"x": 1})
    families.add_entry(file, "a", {"x": 2})
    families.add_entry(file, "b", {"x": 3})
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
    with np.load(collapse.pictures(tmp_path / "p.npz")) as made:
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


# ---------------------------------------------------------------- inpainting


@pytest.mark.parametrize("kind", inpainting.MASKS)
def test_holes_hide_a_part(kind):
    hidden = inpainting.holes(kind, 5, 32)
    shares = hidden.flatten(1).float().mean(1)
    assert ((shares > 0.02) & (shares <= 0.5)).all()
    assert (len({row.numpy().tobytes() for row in hidden}) == 5) == (kind == "strokes")
    assert hidden.equal(inpainting.holes(kind, 5, 32))


def test_what_inpainting_is_compared_with_leaves_known_pixels_and_judges_them():
    pytest.importorskip("cv2")
    pixels = torch.randint(0, 256, (4, 3, 32, 32)) / 127.5 - 1
    hidden = inpainting.holes("strokes", 4, 32)
    classifier, categories = SmallClassifier(3, 9).eval(), torch.zeros(4, dtype=torch.long)
    for method in ("telea", "navier-stokes"):
        made = inpainting.opencv(pixels, hidden, method)
        found = inpainting.judge(classifier, pixels, made, hidden, categories)
        assert found["psnr_known"] is None  # not a byte differs
        assert found["psnr_hidden"] < 30
    hidden[0, 31, 0] = False
    made = torch.where(hidden[:, None], 0, pixels)
    made[0, 0, 31, 0] += 1 / 127.5 if made[0, 0, 31, 0] < 0 else -1 / 127.5  # one byte by one
    assert 60 < inpainting.judge(classifier, pixels, made, hidden, categories)["psnr_known"] < 100


def test_committed_inpainting_changed_no_known_pixel():
    entries = tables.results("inpainting")["entries"]
    assert {e["method"] for e in entries} >= {inpainting.OURS, "mean fill", "OpenCV, Telea"}
    assert all(e["psnr_known"] is None for e in entries if e["mask"] != "none")
