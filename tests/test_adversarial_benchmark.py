"""benchmarks/adversarial.py: both sides have the same gradients, and the committed runs say what is said of them."""

import json

import adversarial
import pytest

pytestmark = pytest.mark.bench


def test_the_benchmarks_two_sides_have_the_same_gradients():
    coder = {"width": 8, "multipliers": [1, 2], "blocks": 1}
    tokenizer = {"encoder": coder, "decoder": coder, "quantizer": {"codebook_size": 16, "dim": 4, "learned": True}}
    sides = adversarial.build_sides(16, tokenizer, {"width": 4, "layers": 1})
    found = adversarial.measure_speed(sides, batch=2, size=16, rounds=2)
    assert found["gradient_difference"] < 1e-4
    assert len(found["sides"]["taming"]["seconds"]) == 2
    assert found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]


def test_committed_speeds_are_those_of_their_rounds():
    for case in json.loads(adversarial.FILES["speed"].read_text())["cases"]:
        ours, theirs = case["sides"]["maskgen"]["seconds"], case["sides"]["taming"]["seconds"]
        assert case["ratio"] == adversarial.ratio(ours, theirs)
        assert case["gradient_difference"] < 1e-4


def test_the_guards_keep_a_run_that_is_ruined_without_them():
    """The committed runs, of every seed."""
    found = {v["name"]: v["runs"] for v in json.loads(adversarial.FILES["guards"].read_text())["variants"]}
    for alone, ruined, guarded in zip(found["no discriminator"], found["no guard"], found["all guards"]):
        assert ruined["holdout/psnr"] < alone["holdout/psnr"] - 3
        assert guarded["holdout/psnr"] > alone["holdout/psnr"] - 1
