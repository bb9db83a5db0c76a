"""Checkpoints, which are written atomically and read back exactly."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from maskgen.upgrade import upgrade_optimizer


def save_checkpoint(
    folder: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizers: dict[str, Any],
    keep: int,
    scaler: torch.amp.GradScaler | None = None,
) -> Path:
    """Write ``folder/step_N`` atomically and remove all but the newest `keep`.

    Each module's parameters and buffers go to ``NAME.safetensors``, the optimizers to ``optimizers.pt``, the step and
    the scale of fp16 gradients to ``state.json``. Nothing else is needed: data order and random numbers are functions
    of the seed and the step.
    """
    final = folder / f"step_{step:08d}"
    part = folder / f".part_{step:08d}"
    for broken in folder.glob(".part_*"):  # left over from a kill
        shutil.rmtree(broken)
    part.mkdir(parents=True)
    for name, module in modules.items():
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, part / f"{name}.safetensors")
    torch.save({name: optimizer.state_dict() for name, optimizer in optimizers.items()}, part / "optimizers.pt")
    state = {"step": step, **({} if scaler is None else {"scaler": scaler.state_dict()})}
    (part / "state.json").write_text(json.dumps(state))
    for file in part.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("step_*") if (p / "state.json").is_file())


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizers: dict[str, Any], scaler: torch.amp.GradScaler | None = None
) -> int:
    """Load a checkpoint, also one of an earlier version, into modules, optimizers and the scaler of fp16 gradients;
    return its step.

    A checkpoint without a scale (of another precision, or of an earlier version) leaves the scaler as it is.
    """
    states = torch.load(path / "optimizers.pt", map_location="cpu", weights_only=True)
    for name, module in modules.items():
        weights = load_file(path / f"{name}.safetensors")
        earlier_names: Any = getattr(module, "earlier_names", None)
        if earlier_names is not None and name in optimizers and weights.keys() != module.state_dict().keys():
            states[name] = upgrade_optimizer(optimizers[name], module, earlier_names(), states[name])
        module.load_state_dict(weights)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(states[name])
    state = json.loads((path / "state.json").read_text())
    if scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    return int(state["step"])
