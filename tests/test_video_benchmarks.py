"""The benchmarks of video measure what they say, from the command to the tables."""

import json
import mmap
import struct

import numpy as np
import pytest
import torch
import video_cost as cost
import video_findings as findings
import video_world as world

pytestmark = pytest.mark.bench


@pytest.fixture
def small(monkeypatch):
    pytest.importorskip("gymnasium")
    pytest.importorskip("pygame")
    changes = {"TRAIN": 6, "TEST": 6, "CODES": 16, "EPISODES": 2, "CANDIDATES": 16, "ROUNDS": 1}
    for name, value in changes.items():
        monkeypatch.setattr(world, name, value)
    monkeypatch.setattr(
        world, "MODEL", {**world.MODEL, "width": 16, "depth": 2, "block": {**world.MODEL["block"], "heads": 2}}
    )
    monkeypatch.setattr(world, "TRAINING", {**world.TRAINING, "batch_size": 2})


def test_the_world_from_the_command_to_the_tables(small, tmp_path, capsys):
    """And a second command trains nothing and says the same."""
    command = ["--steps", "2", "--seeds", "3", "--work", str(tmp_path / "w"), "--out", str(tmp_path / "r.json")]
    world.main(command)
    first, said = (tmp_path / "r.json").read_text(), capsys.readouterr().out
    world.main(command)
    assert (tmp_path / "r.json").read_text() == first
    assert capsys.readouterr().out == said
    results = json.loads(first)
    assert set(results) == {"floors", "model/3", "actions/3", "planning/3"}
    for question, rows in (("actions", 4), ("planning", 8)):
        lines = world.TABLES[question](results).split("\n\n")[0].splitlines()
        assert len(lines) == 2 + rows
        assert len({line.count("|") for line in lines}) == 1
    floors = results["floors"]["measured"]
    assert floors["tokenizer"]["mse"] < floors["copy-last"]["mse"]
    assert floors["tokenizer"]["last_angle"] < 0.5


def test_angles_are_read_from_images_as_the_simulator_has_them(small):
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


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The findings' world with two digits, an L and a square, and models that learn nothing; the file of the digits."""
    changes = {"TRAIN": 4, "TEST": 6, "CODES": 8, "DIGITS": 2, "SHOWN": 5, "CLASSIFIER_STEPS": 2, "PASSES": (1, 2)}
    changes |= {"STEPS": 2, "SAMPLES": 2, "SCHEDULES": {"cosine": "concave"}}
    changes |= {
        "MODEL": {"width": 16, "depth": 2, "block": {"heads": 2}},
        "TRAINING": {**findings.TRAINING, "batch_size": 2},
    }
    changes |= {"QUESTIONS": {**findings.QUESTIONS, "ratio": {findings.MASKVIT: "", "always 1": ""}}}
    for name, value in changes.items():
        monkeypatch.setattr(findings, name, value)
    digits = np.zeros((2, 28, 28), np.uint8)
    digits[0, 6:22, 6:10] = digits[0, 18:22, 6:22] = digits[1, 8:20, 8:20] = 255
    file = tmp_path / "digits-idx3-ubyte"
    file.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, *digits.shape) + digits.tobytes())
    return file


def test_findings_from_the_command_to_the_tables(tiny, tmp_path, capsys):
    """A second command trains nothing and says the same; models of as much time have the others' seconds to spend."""
    work, out = tmp_path / "w", tmp_path / "r.json"
    command = ["--digits", str(tiny), "--steps", "3", "--seeds", "0"]
    command += ["--work", str(work), "--out", str(out)]
    findings.main(command)
    first, said = out.read_text(), capsys.readouterr().out
    findings.main(command)
    assert out.read_text() == first
    assert capsys.readouterr().out == said
    results = json.loads(first)
    names = {name for asked in findings.QUESTIONS.values() for name in asked}
    assert set(results) == {"floors", "schedules/0", *(f"{name}/0" for name in names)}
    seconds = results[f"{findings.MASKVIT}/0"]["training"]["cpu_seconds"]
    for name in (findings.FULL, findings.RASTER):
        assert results[f"{name}/0"]["training"]["budget_seconds"] == seconds
    floors = results["floors"]["measured"]
    for question, rows in (("ratio", 2 + len(floors)), ("windows", 3 + len(floors)), ("schedules", 5), ("passes", 3)):
        lines = findings.TABLES[question](results).split("\n\n")[0].splitlines()
        assert len(lines) == 2 + rows
        assert len({line.count("|") for line in lines}) == 1
    assert "nan" not in said
    assert floors["tokenizer"]["mse"] < floors["blank"]["mse"]
    assert floors["other true clips"]["off"] < 1e-4 < floors["blank"]["off"]


def test_frames_are_told_by_the_nearest_that_the_world_can_show(tiny, tmp_path):
    """Moved by a patch they are a patch off, and half as bright as far off as that is dark."""
    findings.prepare(str(tiny), tmp_path)
    clips = findings.clips(tmp_path)
    off, facts = findings.nearest(clips, tmp_path)
    assert off.max() < 1e-4
    numbers = [[int(digit) for digit in row.unique()] for row in facts[..., 0]]
    assert all(len(row) == 1 for row in numbers)  # a digit stays what it is
    _, moved = findings.nearest(clips.roll(-findings.PATCH, 4), tmp_path)
    stays = facts[..., 2] > 0
    assert stays.any()
    assert ((facts - moved)[stays] == torch.tensor([0.0, 0.0, 1.0])).all()
    faint, _ = findings.nearest((clips + 1) * 0.75 - 1, tmp_path)
    assert faint == pytest.approx(((clips + 1) / 2).square().sum((1, 3, 4)) / 16, rel=1e-3)


def test_the_held_out_loss_of_a_network_that_knows_nothing_is_that_of_a_guess(tiny, tmp_path):
    findings.prepare(str(tiny), tmp_path)
    config = findings.configuration(findings.MODELS[findings.MASKVIT], 0, 1, tmp_path)
    config["training"]["learning_rate"] = 1e-9
    findings.train_for(0, "new", config, tmp_path)
    losses = findings.held_out_loss(tmp_path / "new", tmp_path)
    assert list(losses.values()) == pytest.approx([np.log(findings.CODES)] * len(findings.HIDDEN), rel=1e-3)
