"""The benchmarks of video measure what they say, from the command to the tables."""

import importlib
import json
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(FOLDER))  # they import each other, as scripts do
world, cost = map(importlib.import_module, ("video_world", "video_cost"))


@pytest.fixture
def small(monkeypatch):
    pytest.importorskip("gymnasium")
    pytest.importorskip("pygame")
    changes = {"TRAIN": 6, "TEST": 6, "CODES": 16, "EPISODES": 2, "CANDIDATES": 16, "ROUNDS": 1, "COUNTS": (1, 2)}
    for name, value in changes.items():
        monkeypatch.setattr(world, name, value)
    monkeypatch.setattr(world, "RATIOS", dict(list(world.RATIOS.items())[:2]))
    monkeypatch.setattr(world, "WINDOWS", dict(list(world.WINDOWS.items())[:2]))
    monkeypatch.setattr(world, "SCHEDULES", {"cosine": "concave"})
    monkeypatch.setattr(world, "MODEL", {**world.MODEL, "width": 16, "depth": 2, "heads": 2})
    monkeypatch.setattr(world, "TRAINING", {**world.TRAINING, "batch_size": 2})


def test_the_world_from_the_command_to_the_tables(small, tmp_path, capsys):
    """And a second command trains nothing and says the same."""
    command = [
        "--steps",
        "2",
        "--short",
        "2",
        "--seeds",
        "3",
        "--work",
        str(tmp_path / "w"),
        "--out",
        str(tmp_path / "r.json"),
    ]
    world.main(command)
    first, said = (tmp_path / "r.json").read_text(), capsys.readouterr().out
    world.main(command)
    assert (tmp_path / "r.json").read_text() == first
    assert capsys.readouterr().out == said
    results = json.loads(first)
    compared = len(world.RATIOS) + len(world.WINDOWS) - 1  # one of them answers both questions
    assert len(results) == 1 + compared + 1 + 3
    for question, rows in (("ratio", len(world.RATIOS) + 3), ("windows", len(world.WINDOWS) + 3), ("actions", 4)):
        lines = world.TABLES[question](results).split("\n\n")[0].splitlines()
        assert len(lines) == 2 + rows
        assert len({line.count("|") for line in lines}) == 1
    floors = results["floors"]["measured"]
    assert floors["tokenizer"]["mse"] < floors["copy-last"]["mse"]
    assert floors["tokenizer"]["last_angle"] < 0.5


def test_angles_are_read_from_pictures_as_the_simulator_has_them(small):
    """Up to where zero is."""
    arrays, _ = world.simulate(5, 0, 6, **world.WORLD)
    pixels = torch.from_numpy(arrays["videos"]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    true = torch.atan2(*torch.from_numpy(arrays["states"])[..., [1, 0]].unbind(-1))
    seen = world.seen_angle(pixels)
    either = [world.apart(sign * seen - true, (sign * seen - true)[0, 0]).max() for sign in (-1, 1)]
    assert min(either) < 0.1
    assert max(either) > 0.5


def test_angles_are_apart_by_the_shorter_way():
    a, b = torch.tensor([3.1, 0.0, 1.0]), torch.tensor([-3.1, np.pi, 1.5])
    assert world.apart(a, b).tolist() == pytest.approx([2 * np.pi - 6.2, np.pi, 0.5], abs=1e-5)


def test_costs_are_measured_and_shown(tmp_path, capsys):
    out = tmp_path / "r.json"
    torch.set_num_threads(1)
    cost.main(["--side", "4", "--small", "4", "--batch", "2", "--rounds", "1", "--out", str(out)])
    results = json.loads(out.read_text())
    assert len(results["training"]) == len(cost.WINDOWS) * len(cost.BACKENDS)
    assert all(row["kept_bytes"] > 4 * 64 * 96 * 2 for row in results["training"])  # a block's input each, at least
    decoding = cost.decoding_table(results)
    assert "| 2 | autoregressive | 64 |" in decoding
    assert decoding.count("as fast") == 2 * len(cost.PASSES)


def test_the_peak_of_memory_begins_anew():
    def fill(size):  # pages of its own: what malloc still holds from other tests could serve a tensor
        with mmap.mmap(-1, size) as block:
            block[::4096] = b"1" * (size // 4096)

    fill(2**28)
    before = cost.reset_peak()
    fill(2**26)
    assert 0.9 < (cost.memory("VmHWM") - before) / 2**26 < 1.5
