"""Decode and training step before and after the rebuild of the networks' conditions: the present code against a commit.

    python benchmarks/refactor_speed.py            # writes results/refactor_speed.json

The earlier code is checked out in a temporary folder. Each side is a process of its own with one thread. In each round
two new processes work in turn, and a ratio is taken within the round; every case runs once before it is timed. Both
sides have the same weights. Ratios above 1 mean that the present code is faster. They are of processor time, which
other processes disturb less; the ratios of wall-clock time are recorded too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import clocked, ratio
from torch import nn

from maskgen.decoding.loop import decode
from maskgen.mim.core import Learner, MaskedModeling
from maskgen.pipelines import predictor
from maskgen.transformer.model import MaskTransformer

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "refactor_speed.json"
COMMIT = "203bd69"
SIDE, CODES, CLASSES, BATCH, TRAINED, STEPS = 16, 1024, 1000, 8, 16, 8
CASES = ("decode", "guided decode", "training step")
PRESENT = hasattr(predictor, "SlicedPredictions")  # of the code on the path


def network() -> MaskTransformer:
    """256 wide, 8 blocks, 8 heads, 256 tokens, conditioned on classes."""
    torch.manual_seed(0)
    make: Any = MaskTransformer
    if PRESENT:
        label = {"type": "class", "count": CLASSES}
        shape = {
            "block": {"heads": 8},
            "tokens": {"codebook_size": CODES},
            "conditioning": {"inputs": {"label": label}},
        }
        made = make((SIDE, SIDE), width=256, depth=8, **shape)
    else:
        made = make(CODES, (SIDE, SIDE), CLASSES, width=256, depth=8, heads=8)
    for parameter in made.parameters():
        if not parameter.any():  # heads and gates, which start at zero
            nn.init.normal_(parameter, std=0.02)
    return made


def works(weights: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """What is timed, by its name; each gives a result that both sides should share."""
    generator, learned = network().eval(), network().train()
    if PRESENT:
        for each in (generator, learned):
            each.load_state_dict(torch.load(weights, weights_only=True))
    else:
        torch.save(generator.state_dict(), weights)
    learner = Learner(learned, MaskedModeling())
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-4, fused=True)
    codes, labels = torch.randint(CODES, (TRAINED, SIDE, SIDE)), torch.arange(TRAINED)
    canvas = torch.zeros(BATCH, SIDE**2, dtype=torch.long)

    def generate(scale: float) -> torch.Tensor:
        torch.manual_seed(1)
        make: Any = predictor.Predictor
        own, grid = list(range(BATCH)), (SIDE, SIDE)
        given = {"label": torch.tensor(own)}
        predict = make(generator, grid, given, BATCH) if PRESENT else make(generator, own, grid)
        return decode(predict, canvas, canvas == 0, steps=STEPS, guidance_scale=scale)

    def step() -> torch.Tensor:
        given: Any = {"label": labels} if PRESENT else labels
        loss = learner(codes, given)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return dict(zip(CASES, (lambda: generate(1.0), lambda: generate(3.0), step)))


def run(case: Callable[[], torch.Tensor], kept: list[torch.Tensor]) -> None:
    kept.append(case())


def serve(weights: Path) -> None:
    """Time the case that each line of the standard input names."""
    torch.set_num_threads(1)
    cases = works(weights)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        torch.manual_seed(2)
        kept: list[torch.Tensor] = []
        seconds, cpu = clocked(partial(run, cases[line.strip()], kept))
        result = hashlib.sha256(kept[0].numpy().tobytes()).hexdigest()[:12]
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "result": result}), flush=True)


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The files of a commit in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "earlier"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(place), commit], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


class Server:
    """A process that times one side."""

    def __init__(self, code: Path, weights: Path):
        environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--serve", str(weights)]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process: Any = subprocess.Popen(command, env=environment, **pipes)
        self._answer()

    def ask(self, case: str) -> dict[str, Any]:
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a side ended: see its message above")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measured(commit: str, rounds: int) -> Iterator[dict[str, Any]]:
    """After every round, the times of both sides and their ratios, by case.

    Each round starts new processes, as the speed of the same code differs by a few percent between processes.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {case: {"earlier": [], "present": []} for case in CASES}
    with checkout(commit) as place, tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        for turn in range(rounds):
            sides = {"earlier": Server(place, weights), "present": Server(ROOT, weights)}
            for case in CASES:
                for timed in (False, True):
                    for name in list(sides) if turn % 2 else list(sides)[::-1]:
                        answer = sides[name].ask(case)
                        if timed:
                            found[case][name].append(answer)
            for side in sides.values():
                side.close()
            yield {case: compared(of_case) for case, of_case in found.items()}


def compared(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The ratios and times of one case."""
    times = {
        unit: {name: [round(x[unit], 4) for x in answers] for name, answers in found.items()}
        for unit in ("cpu_seconds", "seconds")
    }
    results = [[x["result"] for x in answers] for answers in found.values()]
    return {
        "earlier_over_present": ratio(times["cpu_seconds"]["present"], times["cpu_seconds"]["earlier"]),
        "of_wall_clock": ratio(times["seconds"]["present"], times["seconds"]["earlier"]),
        "same_results": results[0] == results[1],
        **times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--commit", default=COMMIT)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--serve", type=Path, help="be one side, with weights in this file (for the script itself)")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    from budget import machine, versions

    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/refactor_speed.py", *sys.argv[1:]]),
        "commit": options.commit,
        "machine": machine(),
        "versions": versions("torch"),
        "network": {"width": 256, "depth": 8, "heads": 8, "tokens": SIDE**2, "codes": CODES, "classes": CLASSES},
        "batch": {"decode": BATCH, "training step": TRAINED},
        "steps": STEPS,
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the checkout is removed
    for done, cases in enumerate(measured(options.commit, options.rounds), 1):
        options.out.write_text(json.dumps({**result, "rounds": done, "cases": cases}, indent=1) + "\n")
        print(done, {name: case["earlier_over_present"] for name, case in cases.items()}, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
