"""How many pictures a second does a training step of masked modeling take, with and without dropped tokens?

    python benchmarks/train_step.py
    python benchmarks/tables.py                    # the table of docs/methods.md

Forward, backward and AdamW of one step on tokens at hand; all sides run in one process, in turn, round after round, and
a ratio is taken within a round. 256 tokens, an encoder 256 wide and 8 deep, a decoder of 4 blocks where there is one;
bfloat16 autocast, one thread.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from budget import machine, versions

from maskgen.mim.core import MaskedModeling
from maskgen.transformer.model import MaskTransformer

OUT = Path(__file__).parent / "results" / "train_step.json"
ENCODER = {"width": 256, "depth": 8, "heads": 8, "mlp": "gelu", "qk_norm": False, "rope": False, "registers": 1}
CODES = {"codebook_size": 1024, "grid": (16, 16)}
PATCHES = {"codebook_size": 0, "token_dim": 48, "grid": (16, 16)}
DECODER = {"decoder_depth": 4, "decoder_heads": 8}
RATIO = {"type": "truncated_normal"}
PIXELS = {"target": {"type": "pixels", "patch": 4, "normalise": "patch"}, "objective": "mse"}
MAE = {"ratio": {"type": "fixed", "ratio": 0.75}, **PIXELS}

# name -> transformer, masking
SIDES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MAGE": ({**CODES, **DECODER, "pad": "class_token"}, {"ratio": RATIO, "dropping": "share"}),
    "MAGE without dropping": ({**CODES, **DECODER, "pad": "class_token"}, {"ratio": RATIO}),
    "MAE": ({**PATCHES, **DECODER, "decoder_width": 128}, {**MAE, "dropping": "all"}),
    "MAE without dropping": ({**PATCHES, **DECODER, "decoder_width": 128}, MAE),
    "SimMIM": (PATCHES, {**MAE, "ratio": {"type": "fixed", "ratio": 0.6}, "objective": "l1"}),
}
PAIRS = [("MAGE", "MAGE without dropping"), ("MAE", "MAE without dropping"), ("MAE", "SimMIM")]


def side(name: str, batch: int) -> Callable[[], None]:
    """A step of `name`."""
    torch.manual_seed(0)
    network, masking = SIDES[name]
    model, core = MaskTransformer(**ENCODER, **network).train(), MaskedModeling(**masking)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    pixels = torch.rand(batch, 3, 64, 64) * 2 - 1
    patches = torch.nn.functional.pixel_unshuffle(pixels, 4).movedim(1, -1)
    tokens = patches if network["codebook_size"] == 0 else torch.randint(1024, (batch, 16, 16))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = core.losses(model, tokens, pixels=pixels)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(batch: int, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each side's step, round by round; the first only warms up."""
    steps = {name: side(name, batch) for name in SIDES}
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    return {name: found[1:] for name, found in times.items()}


def table(results: dict[str, Any]) -> str:
    """Markdown: pictures a second of processor time, and how many times as fast: median (smallest to largest)."""
    lines = ["| | pictures/s | against | pictures/s | faster |", "| --- | ---: | --- | ---: | --- |"]
    seconds, batch = results["cpu_seconds"], results["batch"]
    rate = {name: batch / statistics.median(found) for name, found in seconds.items()}
    for one, other in PAIRS:
        ratios = [b / a for a, b in zip(seconds[one], seconds[other])]
        faster = f"**{statistics.median(ratios):.2f}x** ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {one} | {rate[one]:.1f} | {other} | {rate[other]:.1f} | {faster} |")
    where = f"{results['machine']['cpu']}, {results['machine']['threads']} thread(s), bf16"
    foot = f"Batch {batch}, {len(seconds[PAIRS[0][0]])} rounds. {where}; torch {results['versions']['torch']}."
    return "\n".join(lines) + f"\n\n{foot}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/train_step.py", *sys.argv[1:]])}
    results |= {"machine": machine(), "versions": versions("torch"), "batch": arguments.batch}
    results["cpu_seconds"] = measure(arguments.batch, arguments.rounds)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
