"""Training for a budget of processor time, and the facts about the machine that all benchmarks state."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from maskgen.config import check
from maskgen.training.loop import bf16_supported
from maskgen.training.run import run

WARM_UP, SKIPPED = 24, 4  # steps before the run, to know what a step costs; the first ones cost more


class _Enough(Exception):
    """Ends the warm-up before anything is evaluated or saved."""


class Steps:
    """Records processor time at every optimizer step of any stage; raises `_Enough` after `most` of them."""

    def __init__(self, most: int | None = None):
        self.marks: dict[int, list[float]] = {}  # by optimizer: a discriminator has its own
        self.most = most

    def __enter__(self) -> Steps:
        self.hook = register_optimizer_step_post_hook(self._mark)
        return self

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()

    def _mark(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        marks = self.marks.setdefault(id(optimizer), [])
        marks.append(time.process_time())
        if self.most and len(marks) >= self.most:
            raise _Enough

    @property
    def first(self) -> list[float]:
        """The times of the optimizer that stepped first."""
        return next(iter(self.marks.values()), [])


def train_for(seconds: float, name: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train `config` from scratch in ``folder/name`` for as many steps as `seconds` of processor time allow.

    A short warm-up in the same process measures the time of a step. Then ``training.steps`` is set, so that the decay
    of the learning rate ends with the budget. A value below 1 of ``stage.adversarial.start`` is a share of the steps,
    also in the warm-up. The evaluation and the saving at the end do not count.

    If `config` has its own ``training.steps``, these are run whatever they cost. (Rounds of k-means take no optimizer
    steps; the whole run then counts.)

    Returns:
        ``steps``, ``budget_seconds``, ``cpu_seconds`` (of all steps), ``cpu_seconds_per_step``, ``total_cpu_seconds``
        (with warm-up, evaluation and saving), ``precision``, ``wall_seconds`` and ``config`` as it was run.
    """
    begun, wall = time.process_time(), time.perf_counter()
    steps = config.get("training", {}).get("steps") or round(seconds / _cost(name, config, folder))
    final = _with_steps(config, name, max(2, steps), 0)
    shutil.rmtree(folder / name, ignore_errors=True)
    start = time.process_time()
    with Steps() as counted:
        _run(final, folder)
    marks = counted.first
    used = (marks[-1] - marks[0]) * len(marks) / (len(marks) - 1) if len(marks) > 1 else time.process_time() - start
    return {
        "steps": final["training"]["steps"],
        "budget_seconds": seconds,
        "cpu_seconds": round(used, 2),
        "cpu_seconds_per_step": round(used / final["training"]["steps"], 4),
        "total_cpu_seconds": round(time.process_time() - begun, 2),
        "precision": "bf16" if bf16_supported() else "fp32",
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "config": final,
    }


def _cost(name: str, config: dict[str, Any], folder: Path) -> float:
    """Processor seconds per step, from a warm-up whose result is deleted."""
    warm = _with_steps(config, f"{name}-warm-up", WARM_UP, SKIPPED)
    with Steps(WARM_UP) as counted, contextlib.suppress(_Enough):
        _run(warm, folder)
    shutil.rmtree(folder / warm["name"], ignore_errors=True)
    return (counted.first[-1] - counted.first[SKIPPED - 1]) / (WARM_UP - SKIPPED)


def _with_steps(config: dict[str, Any], name: str, steps: int, skipped: int) -> dict[str, Any]:
    stage, training = dict(config["stage"]), dict(config.get("training", {}))
    adversarial = stage.get("adversarial") or {}
    share = adversarial.get("start", 0)
    if 0 < share < 1:
        stage["adversarial"] = {**adversarial, "start": skipped + round(share * (steps - skipped))}
    training |= {"steps": steps, "checkpoint_every": 10**9}
    training["warmup_steps"] = min(training.get("warmup_steps", 50), max(1, steps // 10))
    return {**config, "name": name, "stage": stage, "training": training}


def _run(config: dict[str, Any], folder: Path) -> None:
    run(**check(run, {**config, "folder": str(folder)}, config["name"]))


def machine(device: str = "cpu") -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
