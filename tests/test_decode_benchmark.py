"""benchmarks/decode.py: the sides give the same codes, and their rounds the ratios that are shown."""

import json
import math
import statistics
from functools import partial

import decode
import decode_sides
import pytest
import torch

pytestmark = pytest.mark.bench

TINY = decode_sides.Size(width=16, depth=2, heads=2, side=4, codes=8)
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_savings_change_no_code(guidance):
    """What the headline measures gives the codes of the plain formulation."""
    case, codes = decode_sides.Case(batch=3, steps=5, guidance=guidance), []
    savings = [partial(decode_sides.ours, off=off) for off in decode_sides.OFF]
    for make in (decode_sides.ours, decode_sides.plain, *savings):
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
    results = json.loads(json.dumps(decode.run(options, decode_sides.Size(16, 4, 2, side=4, codes=8))))
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
        assert unguided["sides"][name]["calls"] >= 3
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


def test_committed_ratios_are_those_of_their_rounds():
    for path in decode.RESULTS.glob("decode*.json"):
        for case in json.loads(path.read_text())["cases"]:
            our = case["sides"][decode.OURS]
            middle = statistics.median(our["seconds"])
            assert math.isclose(our["images_per_second"], case["batch"] / middle, rel_tol=5e-3)
            for name, ratio in case["ratios"].items():
                assert ratio == decode.ratio(our, case["sides"][name])
