"""What do the representation learners learn of pictures in a minute? Linear probes, against what has learnt nothing.

    python benchmarks/representation.py            # what is not in results/representation.json yet
    python benchmarks/tables.py                    # the table of docs/methods.md

Every method trains on the emoji and their skin-tone variants without labels, for the same processor time, with the
same encoder (96 wide, 4 deep, 64 patches of 4x4 pixels). Then a linear probe (the sweep of CAPI, a few hundred steps)
tells the nine categories of the 1,898 base emoji apart by the mean of its patch tokens; every fifth picture of a class
is the test. The controls are the pixels themselves and the same networks with random weights; the gain is a probe less
the best control.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from budget import machine, train_for, versions
from tokenizer_families import add_entry, read, slug

from maskgen.data.emoji import Emoji
from maskgen.evaluation.features import raw_pixels
from maskgen.evaluation.probes import sweep
from maskgen.evaluation.probing import probe, train_and_test
from maskgen.pipelines.backbone import Backbone
from maskgen.training.loop import Training
from maskgen.training.representation_stage import patches
from maskgen.training.run import run
from maskgen.transformer.model import MaskTransformer

HERE = Path(__file__).parent
OUT = HERE / "results" / "representation.json"
ENCODER = {"width": 96, "depth": 4, "heads": 4, "mlp": "gelu", "qk_norm": False, "rope": False, "registers": 1}
DECODER = {"decoder_depth": 2, "decoder_width": 48, "decoder_heads": 4}
PROBE = {"steps": 400, "batch_size": 256, "standardise": True, "progress": False}
PIXELS = {"type": "pixels", "patch": 4, "normalise": "patch"}
MAE = {"ratio": {"type": "fixed", "ratio": 0.75}, "dropping": "all", "target": PIXELS, "objective": "mse"}
BLOCKS = {"ratio": {"type": "fixed", "ratio": 0.4}, "sampler": {"type": "block", "min_block": 4}}
CODES = {"target": "codes", "objective": {"type": "cross_entropy", "label_smoothing": 0.0}}
METHODS: dict[str, dict[str, Any]] = {
    "MAE": {"model": {**ENCODER, **DECODER}, "masking": MAE},
    "ColorMAE, green": {
        "model": {**ENCODER, **DECODER},
        "masking": {**MAE, "sampler": {"type": "noise", "color": "green"}},
    },
    "SimMIM": {
        "model": ENCODER,
        "masking": {
            "ratio": {"type": "fixed", "ratio": 0.6},
            "sampler": {"type": "units", "unit": 2},
            "target": {**PIXELS, "normalise": "none"},
            "objective": "l1",
        },
    },
    "MaskFeat": {
        "model": ENCODER,
        "masking": {**BLOCKS, "target": {"type": "hog", "patch": 4, "cell": 4}, "objective": "mse"},
    },
    "BEiT on k-means codes": {"model": ENCODER, "masking": {**BLOCKS, **CODES}, "target_tokenizer": "CENTROIDS"},
    "MAGE on the bundled codes": {
        "tokens": {"type": "codes", "path": "BUNDLED"},
        "model": {**ENCODER, "decoder_depth": 2, "decoder_heads": 4, "pad": "class_token"},
        "masking": {"ratio": {"type": "truncated_normal"}, "dropping": {"type": "share", "share": 0.5}},
    },
}


def stage_of(method: str, work: Path) -> dict[str, Any]:
    """The stage's configuration, with its tokenizers at hand."""
    stage = {"type": "representation", "tokens": {"type": "patches", "patch": 4}, **METHODS[method]}
    if stage.get("target_tokenizer") == "CENTROIDS":
        folder = work / "centroids"
        if not (folder / "pipeline").is_dir():
            run("centroids", {"type": "centroids"}, {"type": "emoji"}, Training(steps=20), folder=str(work))
        stage["target_tokenizer"] = str(folder)
    if stage["tokens"].get("path") == "BUNDLED":
        stage["tokens"] = {**stage["tokens"], "path": str(HERE.parent / "maskgen" / "pretrained" / "emoji")}
    return stage


def controls(seeds: int) -> dict[str, float]:
    """Top-1 of raw pixels and of encoders with random weights."""
    sides = train_and_test(Emoji())
    found = {"raw pixels": sweep(*(raw_pixels(side, progress=False) for side in sides), **PROBE).accuracy["top1"]}
    for seed in range(seeds):
        torch.manual_seed(seed)
        network = Backbone(patches(4), MaskTransformer(0, (8, 8), token_dim=48, **ENCODER))
        found[f"random weights, seed {seed}"] = probe(network, *sides, options=PROBE).accuracy["top1"]
    return found


def one(method: str, seed: int, options: argparse.Namespace) -> None:
    config = {
        "stage": stage_of(method, options.work),
        "data": {"type": "emoji", "variants": True},
        "augment": {"flip": 0.5, "crop": 0.5},
        "training": {
            "batch_size": 64,
            "learning_rate": 1.5e-3,
            "warmup_steps": 50,
            "betas": [0.9, 0.95],
            "weight_decay": 0.05,
            "ema": 0.0,
            "seed": seed,
            "log_every": 100,
        },
        "folder": str(options.work),
    }
    name = f"{slug(method)}-{seed}"
    trained = train_for(options.budget, name, config, options.work)
    result = probe(options.work / name, *train_and_test(Emoji()), options=PROBE)
    entry = {"method": method, "seed": seed, "top1": result.accuracy["top1"], "training": trained, "probe": PROBE}
    entry |= {"machine": machine(), "versions": versions("torch"), "command": options.command}
    add_entry(options.out, f"{method}/{seed}", entry)
    print(f"{method}, seed {seed}: {entry['top1']:.1%}", file=sys.stderr, flush=True)


def table(results: dict[str, Any]) -> str:
    """Markdown: each method's probes, and its gain over the best control."""
    control = results["controls"]["top1"]
    best = max(control.values())
    lines = ["| method | linear probe, top-1 | gain over the best control | steps |", "| --- | --- | ---: | ---: |"]
    lines += [f"| {name} | {value:.1%} | | |" for name, value in control.items()]
    for method in METHODS:
        runs = [entry for key, entry in results.items() if key.startswith(f"{method}/")]
        if runs:
            found = [entry["top1"] for entry in runs]
            steps = statistics.median(entry["training"]["steps"] for entry in runs)
            each = ", ".join(f"{value:.1%}" for value in found)
            lines.append(f"| {method} | {each} | {100 * (statistics.mean(found) - best):+.1f} | {steps:,.0f} |")
    first = next(entry for key, entry in results.items() if key != "controls")
    where = f"{first['machine']['cpu']}, {first['machine']['threads']} thread(s), torch {first['versions']['torch']}"
    budget = f"{first['training']['budget_seconds']:g} s of processor time a run"
    return "\n".join(lines) + f"\n\n{budget}, one number a seed. {where}."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=60, help="processor seconds of training (default: 60)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), metavar="METHOD", help="; ".join(METHODS))
    parser.add_argument("--work", type=Path, default=Path("/tmp/representation"), help="scratch folder")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.command = shlex.join(["python", "benchmarks/representation.py", *sys.argv[1:]])
    torch.set_num_threads(1)
    if "controls" not in read(arguments.out):
        add_entry(arguments.out, "controls", {"top1": controls(2), "probe": PROBE})
    for number in range(arguments.seeds):
        for chosen in arguments.only or METHODS:
            if f"{chosen}/{number}" not in read(arguments.out):
                one(chosen, number, arguments)
    print(table(json.loads(arguments.out.read_text())))
