"""Does the codebook collapse? One network trains on 2,000 images with 4,096 codes, and only the quantizer differs.

    python benchmarks/collapse.py --only recommended "none of it"     # a few minutes each
    python benchmarks/collapse.py                                     # all variants without a result
    python benchmarks/collapse.py --plot                              # docs/images/collapse.png and the table

The use at a step is the share of the 4,096 codes that occur when the averaged model encodes all 2,000 images (128,000
tokens).
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget import machine, versions
from entries import add_entry, read, slug

from maskgen.config import check
from maskgen.data.emoji import Emoji
from maskgen.images import to_uint8
from maskgen.training.metrics import read_metrics
from maskgen.training.run import run

HERE = Path(__file__).parent
IMAGES, CODES = 2000, 4096

# Of the quantizer. One remedy a line, against the line with none.
NONE = {"learned": True, "init": "random", "revive_below": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "recommended": {},
    "none of it": NONE,
    "moving averages alone": {"init": "random", "revive_below": 0.0},
    "revival alone": {**NONE, "revive_below": 0.05},
    "k-means start alone": {**NONE, "init": "kmeans"},
    "entropy term alone": {**NONE, "entropy": 0.1},
    "unit sphere, 8 dimensions": {**NONE, "l2_norm": True, "dim": 8},
}


def images(file: Path) -> Path:
    """The emoji and, evenly spread, as many of their skin-tone variants as make 2,000 images; as an .npz."""
    if not file.is_file():
        base, every = Emoji(), Emoji(variants=True)
        own = set(base.names)
        others = [i for i, name in enumerate(every.names) if name not in own]
        missing = IMAGES - len(base)
        extra = [others[i * len(others) // missing] for i in range(missing)]
        pixels = [base[i]["pixels"] for i in range(len(base))] + [every[i]["pixels"] for i in extra]
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, images=to_uint8(torch.stack(pixels)), labels=np.zeros(len(pixels), np.int64))
    return file


def configuration(name: str, options: argparse.Namespace) -> dict[str, Any]:
    quantizer = {"codebook_size": CODES, "dim": 16, **VARIANTS[name]}
    tokenizer = {
        "encoder": {"width": 48, "multipliers": [1, 2], "blocks": 1, "patch": 2},
        "quantizer": quantizer,
        "decoder": {"width": 48, "multipliers": [1, 2], "blocks": 1, "patch": 2},
    }
    return {
        "name": slug(name),
        "stage": {"type": "tokenizer", "tokenizer": tokenizer, "l1": 1.0, "l2": 1.0},
        "data": {"type": "npz", "path": str(images(options.work / f"emoji{IMAGES}.npz"))},
        "training": {
            "steps": options.steps,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "warmup_steps": min(50, options.steps // 10),
            "weight_decay": 0.01,
            "ema": 0.99,
            "seed": options.seed,
            "sample_every": max(1, options.steps // options.looks),
            "checkpoint_every": 10**9,
        },
        "folder": str(options.work),
    }


def one(name: str, options: argparse.Namespace) -> None:
    """Train and write the entry: the use over the steps and at the end."""
    entry = {"variant": name, "quantizer": VARIANTS[name], "machine": machine(), "versions": versions("torch")}
    config, cpu, wall = configuration(name, options), time.process_time(), time.perf_counter()
    shutil.rmtree(options.work / config["name"], ignore_errors=True)
    lines = read_metrics(run(**check(run, config, name)) / "metrics.jsonl")
    looks = [line for line in lines if "codebook/use" in line]
    last = looks[-1]
    entry |= {
        "images": IMAGES,
        "codebook_size": CODES,
        "over_time": [
            {"step": line["step"], "use": line["codebook/use"], "perplexity": line["codebook/perplexity"]}
            for line in looks
        ],
        "use": last["codebook/use"],
        "dead": round(CODES * (1 - last["codebook/use"])),
        "perplexity": last["codebook/perplexity"],
        "psnr": last["train/psnr"],
        "config": config,
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "seconds": round(time.perf_counter() - wall, 1),
        "command": options.command,
    }
    add_entry(options.out, name, entry)
    print(f"{name}: {entry['use']:.1%} of {CODES} codes, PSNR {entry['psnr']:.2f} dB", file=sys.stderr, flush=True)


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown. The images are those of training: it is the codebook that is in question."""
    lines = [["codebook", "codes in use", "dead", "perplexity", "PSNR, dB"], ["---", *["---:"] * 4]]
    for e in entries:
        lines.append([e["variant"], f"{e['use']:.1%}", f"{e['dead']:,}", f"{e['perplexity']:,.0f}", f"{e['psnr']:.2f}"])
    first = entries[0]
    training, where = first["config"]["training"], f"{first['machine']['cpu']}, torch {first['versions']['torch']}"
    note = (
        f"{first['codebook_size']:,} codes, {first['images']:,} images, {training['steps']} steps of "
        f"{training['batch_size']}; {where}."
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def plot(entries: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    panels = {"use": (100, f"codes in use, % of {CODES:,}"), "perplexity": (1, "perplexity")}
    for axis, (key, (scale, words)) in zip(axes, panels.items()):
        for entry in entries:
            points = [(look["step"], scale * look[key]) for look in entry["over_time"] if key in look]
            main = entry["variant"] in ("recommended", "none of it")
            style = {"linewidth": 2.5} if main else {"linewidth": 1.2, "linestyle": "--"}
            axis.plot(*zip(*points), label=entry["variant"], **style)
        axis.set(xlabel="step", ylabel=words)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=list(VARIANTS), metavar="VARIANT", help="; ".join(VARIANTS))
    add("--steps", type=int, default=600, help="(default: 600)")
    add("--looks", type=int, default=20, help="at the codebook's use (default: 20)")
    add("--again", action="store_true", help="train those too that have an entry")
    add("--plot", action="store_true", help="only draw the plot and print the table")
    add("--work", type=Path, default=Path("/tmp/collapse"), help="scratch folder")
    add("--out", type=Path, default=HERE / "results" / "collapse.json")
    add("--image", type=Path, default=HERE.parent / "docs" / "images" / "collapse.png")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "benchmarks/collapse.py", *arguments])
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    for name in () if options.plot else options.only or VARIANTS:
        if options.again or name not in read(options.out):
            one(name, options)
    found = read(options.out)
    entries = [found[name] for name in VARIANTS if name in found]
    if not entries:
        sys.exit(f"no results in {options.out}")
    plot(entries, options.image)
    print(table(entries))


if __name__ == "__main__":
    main(sys.argv[1:])
