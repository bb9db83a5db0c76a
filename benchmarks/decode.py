"""Images per second of parallel decoding (tokens only, without an image decoder), compared with public implementations.

All networks have the same width, depth, heads, tokens, codes and steps, and random weights. All sides run in one
process and in turn, and a ratio compares times of the same round. README.md describes the sides.

    python benchmarks/decode.py                           # the main sides, all cases -> results/decode.json
    python benchmarks/decode.py --set savings --batch 8 --steps 12 --schedule linear   # -> results/decode-savings.json
    python benchmarks/decode.py --dtype bf16 --batch 8                                 # -> results/decode-bf16.json
    python benchmarks/decode.py --batch 8 --steps 8 --guidance 1 --rounds 2 --out /tmp/quick.json   # a minute
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import diffusers
import timing
import torch
from budget import machine, versions
from decode_peers import amused, muse
from decode_sides import (
    Case,
    Side,
    Size,
    all_places,
    autoregressive,
    both_passes,
    dropping,
    ours,
    own_first_step,
    plain,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
RESULTS = HERE / "results"


# ---------------------------------------------------------------- sides

Make = Callable[[Size, dict], Side]
OURS = "maskgen"
RASTER = "autoregressive"
MAIN: dict[str, Make] = {OURS: ours, "diffusers": amused, "muse-maskgit-pytorch": muse}
VARIANTS: dict[str, Make] = {
    OURS: ours,
    "maskgen, one class": partial(ours, same_label=True),
    "maskgen, plain": plain,
    "diffusers, no residual blocks": partial(amused, res_blocks=0),
    "muse-maskgit-pytorch, flash=False": partial(muse, flash=False),
}
SAVINGS: dict[str, Make] = {  # what each gives, for images of one class: all of them, and all but one
    OURS: partial(ours, same_label=True),
    "head and last block at every token": partial(ours, same_label=True, off=all_places),
    "first step row by row": partial(ours, same_label=True, off=own_first_step),
    "no pass skipped": partial(ours, same_label=True, off=both_passes),
    "maskgen, plain": plain,
}
DROPPING: dict[str, Make] = {
    OURS: ours,
    "hidden tokens dropped": partial(dropping, drop=True),
    "none dropped": partial(dropping, drop=False),
}
RASTERED: dict[str, Make] = {OURS: ours, RASTER: autoregressive}
SETS = {"main": MAIN, "variants": VARIANTS, "savings": SAVINGS, "dropping": DROPPING, "raster": RASTERED}
EVERY = {name: make for sides in SETS.values() for name, make in sides.items()}


def build(names: list[str], size: Size, place: dict, chosen: str = "main") -> tuple[dict[str, Side], dict[str, str]]:
    """The sides that can be built here, and why the others cannot."""
    sides, missing = {}, {}
    for name in names:
        torch.manual_seed(0)
        try:
            sides[name] = {**EVERY, **SETS[chosen]}[name](size, place)
        except ImportError as error:
            missing[name] = str(error)
    return sides, missing


# ---------------------------------------------------------------- measuring


def count(side: Side, case: Case, size: Size) -> dict:
    """Calls of the network, rows in them, arithmetic an image. Checks that codes come out; it is the warm-up too."""
    rows, called = [], getattr(side.network, side.method)

    def counted(x: Tensor | None, *rest, **named):
        rows.append(case.batch if x is None else len(x))  # a raster decode begins with no code
        return called(x, *rest, **named)

    setattr(side.network, side.method, counted)
    with FlopCounterMode(display=False) as flops:
        codes = side.generate(case)
    setattr(side.network, side.method, called)
    assert codes.shape == (case.batch, size.side**2), codes.shape
    assert 0 <= codes.min().item() <= codes.max().item() < size.codes, "these are not codes"
    return {
        "calls": len(rows),
        "rows": sum(rows),
        "gflop_per_image": round(flops.get_total_flops() / case.batch / 1e9, 2),
        "distinct_codes": codes.unique().numel(),
    }


def waited(side: Side, case: Case, device: str) -> None:
    """One generation, to its end also on a GPU."""
    side.generate(case)
    if device == "cuda":
        torch.cuda.synchronize()


def measure(sides: dict[str, Side], case: Case, size: Size, rounds: int, device: str) -> dict:
    """All sides in turn, `rounds` times, after a round that only warms up and counts."""
    found = {name: count(side, case, size) | {"seconds": [], "cpu_seconds": []} for name, side in sides.items()}
    for _ in range(rounds):
        for name, side in sides.items():
            wall, cpu = timing.clocked(partial(waited, side, case, device))
            found[name]["seconds"].append(round(wall, 4))
            found[name]["cpu_seconds"].append(round(cpu, 4))
    for result in found.values():
        result["images_per_second"] = round(case.batch / statistics.median(result["seconds"]), 3)
    peers = [name for name in found if name != OURS] if OURS in found else []
    return asdict(case) | {"sides": found, "ratios": {name: ratio(found[OURS], found[name]) for name in peers}}


def ratio(our: timing.Times, peer: timing.Times) -> dict[str, float]:
    """How many times as fast as the peer we are, in wall time and in processor time."""
    wall, cpu = (timing.ratio(our[clock], peer[clock]) for clock in ("seconds", "cpu_seconds"))
    return wall | {"cpu_median": cpu["median"]}


def run(options: argparse.Namespace, size: Size) -> dict:
    place = {"device": options.device, "dtype": {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]}
    sides, missing = build(options.sides or list(SETS[options.set]), size, place, options.set)
    parameters = {name: sum(p.numel() for p in side.network.parameters()) for name, side in sides.items()}
    results = {
        "command": options.command,
        "machine": machine(options.device),
        "versions": versions("torch", "diffusers", "muse-maskgit-pytorch"),
        "dtype": options.dtype,
        "size": asdict(size),
        "sides": {name: {"about": side.about, "parameters": parameters[name]} for name, side in sides.items()},
        "missing": missing,
        "cases": [],
    }
    for batch, steps, guidance in itertools.product(options.batch, options.steps, options.guidance):
        results["cases"].append(
            measure(sides, Case(batch, steps, guidance, options.schedule), size, options.rounds, options.device)
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(table(results).splitlines()[-3], file=sys.stderr, flush=True)
    return results


# ---------------------------------------------------------------- showing


def table(results: dict) -> str:
    """Markdown: images per second of each side, and how many times as fast we are: median (smallest to largest)."""
    names = list(results["sides"])
    lines = [["batch", "steps", "guidance", *names], ["---:"] * 3 + ["---"] * len(names)]
    for case in results["cases"]:
        lines.append([str(case["batch"]), str(case["steps"]), f"{case['guidance']:g}"])
        for name in names:
            cell = f"{case['sides'][name]['images_per_second']:.2f}"
            if r := case["ratios"].get(name):
                cell += f"; {timing.as_text(r)}"
            lines[-1].append(cell)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + footnote(results)


def processor_table(results: dict) -> str:
    """Markdown: one row per side with passes, latency and throughput in processor time, which an idle core takes."""
    lines = [
        "| batch | guidance | | passes | rows in them | GFLOP per image | seconds in total | images per second | |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for case in results["cases"]:
        for name, side in case["sides"].items():
            seconds = statistics.median(side["cpu_seconds"])
            passes = side["calls"] if name == RASTER else case["steps"]  # rows may go through in parts
            cells = [f"{case['batch']}", f"{case['guidance']:g}", name, f"{passes}", f"{side['rows']}"]
            cells += [f"{side['gflop_per_image']:.1f}", f"{seconds:.2f}", f"{case['batch'] / seconds:.2f}"]
            r = case["ratios"].get(name)
            cells.append(f"{OURS} **{r['cpu_median']:.2f}x** as fast" if r else "")
            lines.append(f"| {' | '.join(cells)} |")
    sizes = "; ".join(f"{n}: {s['about']}, {s['parameters'] / 1e6:.1f} M weights" for n, s in results["sides"].items())
    steps = f"{results['cases'][0]['steps']} steps" + (", guidance linear" if "linear" in results["command"] else "")
    rounds = len(results["cases"][0]["sides"][OURS]["cpu_seconds"])
    m = results["machine"]
    foot = (
        f"{steps}, {rounds} rounds. {m['cpu']}, {m['threads']} thread(s), {results['dtype']}; `{results['command']}`."
    )
    return "\n".join(lines) + f"\n\n{sizes}. {foot}"


def footnote(results: dict) -> str:
    where = results["machine"]
    first = results["cases"][0]
    sizes = "; ".join(
        f"{name} ({side['about']}): {side['parameters'] / 1e6:.1f} M weights, "
        f"{first['sides'][name]['gflop_per_image']:.0f} GFLOP per image in the first line"
        for name, side in results["sides"].items()
    )
    software = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"{sizes}. {where['gpu'] or where['cpu']}, {where['threads']} thread(s), {results['dtype']}; {software}."


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--batch", type=int, nargs="+", default=[8, 16], help="images at once (default: 8 16)")
    add("--steps", type=int, nargs="+", default=[8, 12], help="decoding steps (default: 8 12)")
    add("--guidance", type=float, nargs="+", default=[1.0, 3.0], help="guidance scales, 1 is none (default: 1 3)")
    add("--rounds", type=int, default=5, help="measured rounds after the warm-up (default: 5)")
    add("--schedule", default="constant", help="of guidance; our sides only (default: constant)")
    about = "; ".join(f"{name}: {', '.join(sides)}" for name, sides in SETS.items())
    add("--set", choices=list(SETS), default="main", help=f"which sides. {about} (default: main)")
    add("--sides", nargs="+", choices=list(EVERY), metavar="SIDE", help="these sides alone, by name")
    add("--dtype", choices=["fp32", "bf16"], default="fp32", help="of weights and activations (default: fp32)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    add("--threads", type=int, default=1, help="of PyTorch on the processor (default: 1)")
    add("--out", type=Path, help="the JSON (default: benchmarks/results/decode.json, or decode-SET-DTYPE.json)")
    options = parser.parse_args(arguments)
    name = "-".join(["decode", *[x for x in (options.set, options.dtype) if x not in ("main", "fp32")]])
    options.out = options.out or RESULTS / f"{name}.json"
    options.command = shlex.join(["python", "benchmarks/decode.py", *arguments])
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    diffusers.utils.logging.set_verbosity_error()
    results = run(options, Size())
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
