"""Trains every family of tokenizers for the same processor time, on the bundled images and on crops of photographs.

    python benchmarks/photos.py /tmp/photos/photos64.npz --wallpapers FOLDER       # once; see its docstring
    python benchmarks/tokenizer_families.py --data emoji --only "conv + vq"        # one row of one table
    python benchmarks/tokenizer_families.py                                        # all rows without a result
    python benchmarks/tokenizer_families.py --sheet                                # docs/images/tokenizers-*.png

tokenizer_families.yaml lists the families. Each (family, data set) is one entry of results/tokenizers.json, written
when it is done, so a command that was killed can be run again. All numbers but those of the codebook are of held-out
images.

This file is not named `tokenizers`, because that would shadow Hugging Face's package for all scripts in this folder.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from budget import machine, train_for, versions
from entries import add_entry, read, slug
from tokenizer_measures import SHOWN, Data, classifier, measure

from maskgen.images import grid, save

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"


def data_sets(photos: Path) -> dict[str, Data]:
    """By name. The batches have as many pixels as each other."""
    held = {"type": "npz", "path": str(photos), "images": "holdout_images", "labels": "holdout_labels"}
    crops = {"type": "npz", "path": str(photos)}
    return {
        "emoji": Data({"type": "emoji"}, 190, 32, "9 categories of emoji", 800, 2),
        "photos": Data(crops, held, 8, "which photograph a crop is from", 400, 1),
    }


# The same for all; a family says where it differs.
STAGE = {"type": "tokenizer", "l1": 1.0, "l2": 1.0}
TRAINING = {"learning_rate": 1e-3, "warmup_steps": 50, "weight_decay": 0.01, "ema": 0.99}


def configuration(
    family: dict[str, Any], name: str, data: Data, seed: int, teacher: Callable[[], Path]
) -> dict[str, Any]:
    """A run's, for `family` on the data set `name`; the steps are the budget's.

    Where the family's stage says ``path: TEACHER`` the folder stands that `teacher` makes.
    """
    own = _merge({"stage": STAGE, "training": TRAINING}, {k: family[k] for k in ("stage", "training") if k in family})
    own = _merge(own, family.get(name, {}))
    training = {**own["training"], "batch_size": data.batch_size, "seed": seed}
    return {
        "stage": _with_teacher(own["stage"], teacher),
        "training": training,
        "data": {**data.spec, **family.get("data", {})},
        "holdout": data.held if isinstance(data.held, int) else 0,
    }


def _merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """`b` over `a`, mapping by mapping; a mapping that names another type takes the other's place."""
    made = copy.deepcopy(a)
    for key, value in b.items():
        old = made.get(key)
        same = isinstance(value, dict) and isinstance(old, dict) and value.get("type") in (None, old.get("type"))
        made[key] = _merge(old, value) if same else copy.deepcopy(value)
    return made


def _with_teacher(value: Any, teacher: Callable[[], Path]) -> Any:
    if isinstance(value, dict):
        return {k: _with_teacher(v, teacher) for k, v in value.items()}
    return str(teacher()) if value == "TEACHER" else value


# ---------------------------------------------------------------- results


def _number(entry: dict[str, Any], path: str, form: str) -> str:
    for key in path.split("."):
        entry = entry.get(key) if isinstance(entry, dict) else None  # type: ignore[assignment]
    return "-" if entry is None else format(entry, form)


COLUMNS = {
    "PSNR, dB": ("measured.psnr", ".2f"),
    "SSIM": ("measured.ssim", ".3f"),
    "Fréchet": ("measured.frechet", ".3f"),
    "cosine": ("measured.cosine", ".3f"),
    "tokens": ("measured.tokens", "d"),
    "bits": ("measured.bits", ".0f"),
    "codes": ("measured.codebook.size", ",d"),
    "used": ("measured.codebook.use", ".0%"),
    "perplexity": ("measured.codebook.perplexity", ",.0f"),
    "dead": ("measured.codebook.dead", ",d"),
    "weights, M": ("measured.parameters.million", ".2f"),
    "encode /s": ("measured.speed.encode_per_second", ".0f"),
    "decode /s": ("measured.speed.decode_per_second", ".0f"),
    "steps": ("training.steps", ",d"),
    "CPU s": ("training.cpu_seconds", ".0f"),
}


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown of one data set's entries, in the order given; columns without a number are left out."""
    rows = []
    for entry in entries:
        measured = copy.deepcopy(entry)
        measured["measured"]["parameters"]["million"] = entry["measured"]["parameters"]["total"] / 1e6
        rows.append([_number(measured, *column) for column in COLUMNS.values()])
    told = [i for i in range(len(COLUMNS)) if any(row[i] != "-" for row in rows)]
    lines = [["family", *(list(COLUMNS)[i] for i in told)], ["---", *["---:"] * len(told)]]
    lines += [[entry["family"], *(row[i] for i in told)] for entry, row in zip(entries, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + footnote(entries)


def footnote(entries: list[dict[str, Any]]) -> str:
    networks = {e["measured"]["frechet_features"]["network"] for e in entries if "frechet_features" in e["measured"]}
    if len(networks) > 1:
        raise ValueError(f"these Fréchet distances are of {len(networks)} networks: give --measure to have one")
    first = next((e for e in entries if "frechet_features" in e["measured"]), entries[0])
    told, m = first["measured"].get("frechet_features"), first["measured"]
    features = ""
    if told:
        features = (
            f"Fréchet distance of the originals and their reconstructions in the features of {told['network']}, which "
            f"tells apart {told['told_apart']} (accuracy {told['accuracy']:.0%}, chance {told['chance']:.0%}); no FID. "
        )
    budgets = sorted({f"{e['training']['budget_seconds']:g}" for e in entries})
    where = sorted({f"{e['machine']['cpu']}, {e['machine']['threads']} thread(s)" for e in entries})
    torches = sorted({f"torch {e['versions']['torch']}" for e in entries})
    return (
        f"{first['trained_on']:,} images to train on, {m['holdout']} held out; {' or '.join(budgets)} s of processor "
        f"time each, batch {first['training']['config']['training']['batch_size']}. {features}Codes of "
        f"{m['codebook']['images']:,} training images. Speed: images a second of processor time, fp32, batch "
        f"{m['speed']['batch']}. {'; '.join(where)}; {', '.join(torches)}."
    )


def sheet(entries: list[dict[str, Any]], work: Path, scale: int) -> Any:
    """A row of originals, and a row a family whose reconstructions are in `work`."""
    rows, names = [], []
    for entry in entries:
        file = work / entry["run"] / "shown.npz"
        if file.is_file():
            with np.load(file) as stored:
                rows += [] if rows else [stored["original"]]
                rows.append(stored["made"])
            names.append(entry["family"])
    pixels = torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2) / 127.5 - 1
    return grid(pixels, SHOWN, scale, ["original", *names])


# ---------------------------------------------------------------- the command


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", choices=["emoji", "photos"], default=["emoji", "photos"], help="(default: both)")
    add("--only", nargs="+", metavar="FAMILY", help="these families alone, by name")
    add("--budget", type=float, default=150, help="processor seconds of training (default: 150)")
    add("--again", action="store_true", help="train those too that have an entry")
    add("--measure", action="store_true", help="train nothing; measure the tokenizers in --work again")
    add("--sheet", action="store_true", help="only draw the sheets")
    add("--photos", type=Path, default=Path("/tmp/photos/photos64.npz"), help="what photos.py wrote")
    add("--families", type=Path, default=HERE / "tokenizer_families.yaml")
    add("--work", type=Path, default=Path("/tmp/tokenizer-families"), help="scratch folder of runs and classifiers")
    add("--out", type=Path, default=HERE / "results" / "tokenizers.json")
    add("--images", type=Path, default=IMAGES, help="folder of the sheets")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "benchmarks/tokenizer_families.py", *arguments])
    return options


def one(family: str, spec: dict[str, Any], name: str, data: Data, options: argparse.Namespace) -> None:
    """Train and measure, and write the entry."""
    key, run_name, begun = f"{name}/{family}", f"{name}-{slug(family)}", time.perf_counter()
    old = read(options.out).get(key)
    if old is None if options.measure else old is not None and not options.again:
        return
    data = replace(data, spec={**data.spec, **spec.get("data", {})})
    kept, held = data.open()
    entry = {"family": family, "about": spec.get("about", ""), "data": name, "run": run_name, "seed": options.seed}
    entry |= {"machine": machine(), "versions": versions("torch", "torchmetrics", "numpy"), "command": options.command}
    if options.measure:
        entry = old
    else:
        teacher = partial(classifier, name, data, kept, options.work, seed=1)
        config = configuration(spec, name, data, options.seed, teacher)
        entry |= {"trained_on": len(kept), "training": train_for(options.budget, run_name, config, options.work)}
    entry["measured"] = measure(entry["training"]["config"], data, name, kept, held, options.work)
    entry["seconds"] = round(time.perf_counter() - begun, 1)
    add_entry(options.out, key, entry)
    print(table([entry]).splitlines()[2], file=sys.stderr, flush=True)
    used = entry["training"]["cpu_seconds"] / entry["training"]["budget_seconds"]
    if not 0.85 < used < 1.15 and "steps" not in spec.get("training", {}):
        print(f"{key} used {used:.0%} of its budget; --only {family!r} --again", file=sys.stderr)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    families = yaml.safe_load(options.families.read_text())
    if unknown := set(options.only or ()) - set(families):
        sys.exit(f"no family {', '.join(sorted(unknown))}; there are: {'; '.join(families)}")
    for name in options.data:
        data = data_sets(options.photos)[name]
        fitting = {k: v for k, v in families.items() if name in v.get("only", options.data)}
        entries = [entry for k in fitting if (entry := read(options.out).get(f"{name}/{k}"))]
        if options.sheet:
            print(save(sheet(entries, options.work, data.scale), options.images / f"tokenizers-{name}.png"))
        else:
            for family, spec in fitting.items():
                if not options.only or family in options.only:
                    one(family, spec, name, data, options)


if __name__ == "__main__":
    main(sys.argv[1:])
