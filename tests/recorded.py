"""What a peer gave, as tests/golden keeps it, for the tests that hold ours beside it.

A test of families, each a function from a fixture to our outputs of the same names, is a few lines: `folders` of them,
`cases`, and a check of what is `computed`.
"""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
State = dict[str, Tensor]
Options = dict[str, Any]


class Fixture:
    """One folder: a peer's configuration, inputs, outputs and weights, where there are any.

    part: whose weights, where the folder has several networks': `weights_PART`, else `weights`.
    """

    def __init__(self, folder: Path, part: str = ""):
        self.spec = json.loads((folder / "fixture.json").read_text())
        self.config: Options = self.spec["config"]
        self.inputs, self.outputs = (load_file(folder / f"{x}.safetensors") for x in ("inputs", "outputs"))
        files = [folder / f"{x}.safetensors" for x in (f"weights_{part}", "weights")]
        self.weights: State = next((load_file(file) for file in files if file.exists()), {})

    def check(self, name: str, ours: Tensor) -> None:
        """As the recorded tolerance says; row-major order is compared, extra axes of length 1 are not."""
        wanted, tolerance = self.outputs[name], self.spec["outputs"][name]["tolerance"]
        assert ours.numel() == wanted.numel()
        ours = ours.detach().reshape(wanted.shape)
        if tolerance["kind"] == "exact":
            assert ours.equal(wanted.to(ours.dtype))
        else:
            ours = ours.to(wanted.dtype) if ours.dtype == torch.bool else ours  # a peer's mask may be of numbers
            torch.testing.assert_close(ours, wanted, atol=tolerance["atol"], rtol=tolerance["rtol"])


def folders(families: Iterable[str]) -> dict[str, Path]:
    """Of all fixtures of these families, by FAMILY/FIXTURE."""
    return {str(p.relative_to(GOLDEN)): p for name in families for p in sorted((GOLDEN / name).glob("*/"))}


def family(name: str) -> str:
    return name.rpartition("/")[0]


def cases(folders: dict[str, Path], wanted: Callable[[str, str], bool]) -> list[Any]:
    """Parameters (fixture, output) of every recorded output that is `wanted`, which is asked with both names."""
    found = []
    for name, folder in folders.items():
        with safe_open(folder / "outputs.safetensors", "pt") as file:
            found += [pytest.param(name, x, id=f"{name}-{x}") for x in file.keys() if wanted(name, x)]  # noqa: SIM118
    return found


@functools.cache
def computed(folder: Path, run: Callable[[Fixture], State], part: str = "") -> tuple[Fixture, State]:
    """A fixture and what `run` makes of it, once for the tests of all its outputs."""
    fixture = Fixture(folder, part)
    with torch.no_grad():
        return fixture, run(fixture)
