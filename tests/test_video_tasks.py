"""The benchmark of a model of several tasks, from the run to the table."""

import json

import numpy as np
import pytest
import torch
import video_tasks as tasks
import yaml

import flat
from maskgen import MaskedVideoPipeline, MaskScheduler, Tokenizer
from maskgen.tasks.conditions import Prompts

SPECS = [{"type": "prediction", "frames": 2}, "inpainting"]
CODER = {"channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1}


@pytest.fixture
def run(tmp_path):
    """A run's folder: a pipeline of random weights, its configuration, a log; and a file of videos."""
    torch.manual_seed(0)
    prompts = Prompts(["prediction", "inpainting"])
    tokenizer = Tokenizer(CODER, {"codebook_size": 16, "dim": 4}, CODER)
    transformer = flat.transformer(16, (4, 4, 4), prompts.count, width=16, depth=1, heads=2)
    MaskedVideoPipeline(tokenizer, transformer, MaskScheduler(), None, prompts.names).save_pretrained(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"stage": {"tasks": SPECS}, "training": {"batch_size": 2}}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "seconds": 90.0}\n{"step": 7, "seconds": 30.0}\n')
    videos = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "videos.npz", videos=videos)
    return tmp_path


def test_each_task_is_measured_beside_its_padding(run, capsys):
    data = f"{{type: videos, path: {run / 'videos.npz'}, frames: 4, channels: 1}}"
    small = ["--clips", "2", "--samples", "2", "--steps", "2"]
    tasks.main([str(run), data, *small, "--out", str(run / "out.json"), "--sheet", str(run / "sheet.png")])
    results = json.loads((run / "out.json").read_text())
    assert results["training"]["steps"] == 7
    assert results["training"]["seconds"] == 120  # the run was stopped between its two lines
    assert list(results["errors"]) == ["prediction", "inpainting"]
    videos = np.load(run / "videos.npz")["videos"][:2] / 255
    still = np.square(videos[:, 2:] - videos[:, 1:2]).sum((2, 3)).mean()
    assert results["errors"]["prediction"]["padding"] == pytest.approx(still, rel=1e-4)
    black = np.square(videos[:, :, 2:6, 2:6]).sum((2, 3)).mean()
    assert results["errors"]["inpainting"]["padding"] == pytest.approx(black, rel=1e-4)
    assert results["errors"]["inpainting"]["black"] == pytest.approx(black, rel=1e-4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in lines[: 2 + len(tasks.ROWS)]] == [4] * (2 + len(tasks.ROWS))
    assert (run / "sheet.png").exists()
