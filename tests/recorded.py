"""What a peer gave, as tests/golden keeps it, for the tests that hold ours beside it."""

import json
from pathlib import Path
from typing import Any

import torch
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
