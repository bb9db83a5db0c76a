"""Pages whose code is run: what docs/add-a-method.md says is what happens."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from maskgen import cli
from maskgen.config import ConfigError
from maskgen.mim.targets import TARGETS, Pixels
from maskgen.training.metrics import read_metrics
from maskgen.training.run import run_config

PAGE = Path(__file__).parents[1] / "docs" / "add-a-method.md"


def blocks():
    """The page's code, (language, text), in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.train
def test_the_page_adds_a_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setitem(TARGETS, "low_pass", None)  # taken out again after the test
    del TARGETS["low_pass"]
    printed, python = "", []
    for language, text in blocks():
        named = re.match(r"# (\S+\.(?:py|yaml))\n", text)
        if named:
            Path(named[1]).write_text(text)
        elif language == "python":
            python.append(text)
        for line in text.splitlines() if language == "sh" else []:
            program, *arguments = shlex.split(line)
            if program == "python":
                with pytest.raises(ConfigError, match="unknown 'low_pass'"):  # nobody has entered it yet
                    run_config("low_pass.yaml")
                runpy.run_path(arguments[0], run_name="__main__")
            else:
                assert program == "maskgen"
                done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
                assert done.exit_code == 0
                printed += done.output
    code = [line for line in Path("low_pass.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 30

    losses = [line["model/loss"] for line in read_metrics(Path("runs/low_pass/metrics.jsonl"))]
    assert losses[-1] < 0.95 * losses[0]
    assert re.search(r"knn.*\d+\.\d+%", printed, re.DOTALL)
    with Image.open("low_pass.png") as trained, Image.open("seen.png") as seen:
        assert seen.width < trained.width
        assert seen.height > 4 * 64

    names = {}
    assert len(python) == 1
    exec(python[0], names)
    made, pixels = names["masking"].target, torch.rand(2, 3, 32, 32) * 2 - 1
    assert type(made).__name__ == "LowPass"
    torch.testing.assert_close(made(pixels), Pixels(4)(pixels), atol=1e-4, rtol=1e-4)  # radius 40: all frequencies
    made.radius = 0.0
    flat = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    torch.testing.assert_close(made(pixels), Pixels(4)(flat), atol=1e-4, rtol=1e-4)
