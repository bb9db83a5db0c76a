"""What windows save in a training step, and what parallel decoding saves, on grids of videos with random weights.

    python benchmarks/video_cost.py             # -> results/video-cost.json
    python benchmarks/tables.py                 # the tables of docs/video-findings.md

Training: forward and backward pass of one clip of 16 x 16 x 16 tokens, each attention in its own process, so that its
peak memory is its own. Decoding: 8 x 8 x 8 tokens, of which 2 frames are known. The autoregressive side has the same
blocks with cached keys and values, on the same grid in raster order, frame by frame. It cannot process several known
tokens in one pass, so it takes one pass for each of them too. All times are processor times on one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from budget import machine, versions
from decode_sides import awake
from timing import in_turn, spread
from torch import Tensor

from maskgen.decoding.autoregressive import decode_raster
from maskgen.decoding.loop import decode
from maskgen.pipelines.predictor import NextPredictor, Predictor
from maskgen.transformer.autoregressive import CausalTransformer
from maskgen.transformer.model import MaskTransformer

OUT = Path(__file__).parent / "results" / "video-cost.json"
CODES = 512
SHAPE: dict[str, Any] = {"width": 96, "depth": 4}
HEADS = 4
WINDOWS: dict[str, list[list[int]]] = {
    "full attention": [],
    "MaskViT: frames, then 4x4 columns": [[1, 0, 0], [0, 4, 4]],
    "factorised: frames, then single places": [[1, 0, 0], [0, 1, 1]],
}
BACKENDS = {"sdpa": "fused", "explicit": "scores kept"}
PASSES = (4, 8, 16)
RASTER = "autoregressive"


def network_of(grid: tuple[int, ...], **options: Any) -> MaskTransformer:
    return MaskTransformer(grid, tokens={"codebook_size": CODES}, **SHAPE, **options)


# ---------------------------------------------------------------- a training step


def step_cost(windows: list[list[int]], backend: str, side: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step, and the memory it takes beyond the weights: its peak, and what the backward pass waits for."""
    torch.manual_seed(0)
    codes, hidden = torch.randint(CODES, (1, side, side, side)), torch.rand(1, side, side, side) < 0.75
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    def made(*grid: int) -> MaskTransformer:
        block = {"heads": HEADS, "windows": windows, "backend": backend}
        return network_of(grid, block=block, positions={"embedding": "learned_sum"})

    def step(model: MaskTransformer, codes: Tensor, hidden: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(codes, hidden).predictions
        F.cross_entropy(logits.float().flatten(0, 1), codes.flatten()).backward()

    step(made(4, 4, 4), codes[:, :4, :4, :4], hidden[:, :4, :4, :4])  # what libraries take for themselves
    model = made(side, side, side)
    before = reset_peak()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        step(model, codes, hidden)
    peak, seconds = memory("VmHWM") - before, []
    for _ in range(rounds):
        begun = time.process_time()
        step(model, codes, hidden)
        seconds.append(time.process_time() - begun)
    return {"seconds": seconds, "peak_bytes": peak, "kept_bytes": sum(kept.values())}


def memory(field: str) -> int:
    """Bytes, as Linux counts them for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def reset_peak() -> int:
    """Forget the peak so far; what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Forked before any pass ran here: the child inherits the imports and nothing else that counts."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def training(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for name, windows in WINDOWS.items():
        for backend in BACKENDS:
            cost = in_own_process(step_cost, windows, backend, options.side, options.rounds)
            found.append({"attention": name, "backend": backend, **cost})
            print(found[-1], file=sys.stderr, flush=True)
    return found


# ---------------------------------------------------------------- decoding


def decoders(grid: tuple[int, ...], context: int) -> dict[str, Callable[[int], Tensor]]:
    """Of so many clips, by name."""
    torch.manual_seed(0)
    place = {"device": "cpu", "dtype": torch.float32}
    networks = {
        name: awake(network_of(grid, block={"heads": HEADS, "windows": windows}), place)
        for name, windows in WINDOWS.items()
    }
    raster = awake(CausalTransformer(CODES, grid, **SHAPE, block={"heads": HEADS}), place)
    known = context * grid[1] * grid[2]

    def canvas(batch: int) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(batch, raster.tokens, dtype=torch.long)
        return tokens, (torch.arange(raster.tokens) >= known).expand(batch, -1)

    def parallel(network: MaskTransformer, passes: int, batch: int) -> Tensor:
        return decode(Predictor(network, grid, rows=batch), *canvas(batch), steps=passes, grid=grid)

    def one_by_one(batch: int) -> Tensor:
        return decode_raster(NextPredictor(raster, rows=batch), *canvas(batch))

    sides: dict[str, Callable[[int], Tensor]] = {
        f"{name}, {passes} passes": lambda batch, network=network, passes=passes: parallel(network, passes, batch)
        for name, network in list(networks.items())[:2]
        for passes in PASSES
    }
    return {**sides, RASTER: one_by_one}


def decoding(options: argparse.Namespace) -> list[dict[str, Any]]:
    grid, found = (options.small,) * 3, []
    sides = decoders(grid, 2)
    for batch in options.batch:
        times = in_turn({name: partial(side, batch) for name, side in sides.items()}, options.rounds, warm_up=1)
        found += [{"batch": batch, "side": name, "seconds": times[name]["cpu_seconds"]} for name in sides]
        print(found[-len(sides) :], file=sys.stderr, flush=True)
    return found


# ---------------------------------------------------------------- tables


def about(results: dict[str, Any]) -> str:
    where = results["machine"]
    return (
        f"{SHAPE['width']} wide, {SHAPE['depth']} deep; median of {results['rounds']} rounds, processor seconds. "
        f"{where['cpu']}, {where['threads']} thread(s), torch {results['versions']['torch']}; `{results['command']}`."
    )


def training_table(results: dict[str, Any]) -> str:
    lines = ["| attention | probabilities | s per step | peak, MB | kept for the backward pass, MB |"]
    lines.append("| --- | --- |" + " ---: |" * 3)
    for row in results["training"]:
        peak, kept = (row[key] / 1e6 for key in ("peak_bytes", "kept_bytes"))
        seconds = statistics.median(row["seconds"])
        lines.append(f"| {row['attention']} | {BACKENDS[row['backend']]} | {seconds:.2f} | {peak:.0f} | {kept:.0f} |")
    side = results["side"]
    return "\n".join([*lines, "", f"One clip of {side} x {side} x {side} tokens, bf16 autocast. {about(results)}"])


def decoding_table(results: dict[str, Any]) -> str:
    lines = ["| clips at once | | passes | s in total | clips per second | against one token per pass |"]
    lines.append("| ---: | --- | ---: | ---: | ---: | ---: |")
    slow = {row["batch"]: row["seconds"] for row in results["decoding"] if row["side"] == RASTER}
    for row in results["decoding"]:
        name, _, passes = row["side"].partition(", ") if row["side"] == RASTER else row["side"].rpartition(", ")
        count = int(passes.split()[0]) if passes else results["small"] ** 3
        seconds, faster = statistics.median(row["seconds"]), spread(row["seconds"], slow[row["batch"]])
        times = "" if row["side"] == RASTER else f"**{faster['median']:.2f}x** as fast"
        rate = row["batch"] / seconds
        lines.append(f"| {row['batch']} | {name} | {count} | {seconds:.2f} | {rate:.2f} | {times} |")
    small = results["small"]
    return "\n".join([*lines, "", f"{small} x {small} x {small} tokens, 2 frames known, fp32. {about(results)}"])


TABLES = {"training": training_table, "decoding": decoding_table}


def main(texts: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16, help="tokens along each axis of the clip that is trained on")
    parser.add_argument("--small", type=int, default=8, help="of those that are decoded")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="clips decoded at once")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(texts)
    results = {key: getattr(options, key) for key in ("side", "small", "rounds")}
    results |= {"machine": machine(), "versions": versions("torch")}
    results["command"] = shlex.join(["python", "benchmarks/video_cost.py", *texts])
    results |= {"training": training(options), "decoding": decoding(options)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    for table in TABLES.values():
        print(f"\n{table(results)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
