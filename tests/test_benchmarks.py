"""The benchmarks' own harness: it measures what it says, and its README shows the committed numbers."""

import importlib.util
import json
import math
import statistics
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
spec = importlib.util.spec_from_file_location("benchmarks_decode", FOLDER / "decode.py")
decode = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = decode
spec.loader.exec_module(decode)

TINY = decode.Size(width=16, depth=2, heads=2, side=4, codes=8)
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_savings_change_no_code(guidance):
    """What the headline measures gives the codes of the plain formulation."""
    case, codes = decode.Case(batch=3, steps=5, guidance=guidance), []
    for make in (decode.ours, decode.plain):
        torch.manual_seed(0)
        side = make(TINY, CPU)
        torch.manual_seed(1)
        codes.append(side.generate(case))
    assert codes[0].equal(codes[1])


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


def test_ratio_is_taken_round_by_round():
    our, peer = {"seconds": [1, 2, 4], "cpu_seconds": [1, 1, 1]}, {"seconds": [2, 2, 12], "cpu_seconds": [2, 2, 2]}
    assert decode.ratio(our, peer) == {"median": 2, "min": 1, "max": 3, "cpu_median": 2}


def test_readme_shows_the_committed_results():
    readme = decode.README.read_text()
    files = sorted(path.name for path in decode.RESULTS.glob("decode*.json"))
    assert files
    assert all(f"<!-- table of {name} -->" in readme for name in files)
    assert decode.with_tables(readme) == readme, "run: python benchmarks/decode.py --table"


def test_committed_ratios_are_those_of_their_rounds():
    for path in decode.RESULTS.glob("decode*.json"):
        for case in json.loads(path.read_text())["cases"]:
            our = case["sides"][decode.OURS]
            middle = statistics.median(our["seconds"])
            assert math.isclose(our["images_per_second"], case["batch"] / middle, rel_tol=1e-3)
            for name, ratio in case["ratios"].items():
                assert ratio == decode.ratio(our, case["sides"][name])
