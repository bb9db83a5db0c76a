"""What steps, orders, guidance and temperature do to samples of the bundled model; parallel and autoregressive.

    python benchmarks/sampling_table.py --train     # a critic, and a masked and a causal transformer for the comparison
    python benchmarks/sampling_table.py             # continues results/sampling.json
    python benchmarks/sampling_table.py --compare
    python benchmarks/sampling_table.py --plot      # docs/images/sampling.png
    python benchmarks/tables.py                     # the tables of docs/decoding.md

Every setting samples the same number of images, with the classes of random emoji and the same seeds. A small classifier
of the nine categories, trained on the emoji, measures them: the Fréchet distance in its features to all emoji (never
called FID), its agreement with the requested class, the mean distance in features between samples of one category
(diversity), and the pixel distance to the nearest emoji, all of which the model was trained on. The transformer runs in
bfloat16 where the processor computes in it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from budget import machine, train_for, versions
from torch import Tensor

from maskgen import MaskedImagePipeline, MaskScheduler
from maskgen.config import load
from maskgen.data.emoji import Emoji
from maskgen.evaluation.classifier import (
    class_agreement,
    classifier_frechet,
    nearest_neighbour_distance,
    train_classifier,
)
from maskgen.pipelines.encode import encode_dataset
from maskgen.pipelines.generate import sample
from maskgen.pipelines.image import bundled_pipeline
from maskgen.pipelines.raster import sample_raster
from maskgen.pipelines.store import load_tokenizer
from maskgen.training.loop import bf16_supported
from maskgen.transformer.autoregressive import CausalTransformer

HERE = Path(__file__).parent
OUT, WORK = HERE / "results" / "sampling.json", HERE.parent / "runs" / "sampling"
RUNS = {"masked": "emoji", "causal": "autoregressive_emoji", "critic": "critic_emoji"}
STEPS, ORDERS = (4, 8, 12, 16, 32), ("confidence", "halton", "random", "critic")
# The best of the temperatures, then of the guidance.
BASE = {"steps": 12, "order": "confidence", "guidance": 1.5, "schedule": "linear", "choice_temperature": 0.5}


def settings(name: str) -> list[dict[str, Any]]:
    """The rows of a table, of what `decoded` takes."""
    if name == "temperature":
        coarse = [{**BASE, "guidance": 2.0, "choice_temperature": t} for t in (0.0, 0.5, 1.0, 2.0, 4.5)]
        return [*coarse, {**BASE, "choice_temperature": 0.5}, {**BASE, "choice_temperature": 1.0}]
    if name == "guidance":
        kinds = [(1.0, "constant"), *((g, kind) for g in (1.5, 2.0, 3.0) for kind in ("constant", "linear"))]
        return [{**BASE, "guidance": g, "schedule": kind} for g, kind in [*kinds, (3.0, "cosine")]]
    return [{**BASE, "steps": s, "order": order} for s in STEPS for order in ORDERS]


TABLES = ("temperature", "guidance", "steps")
RASTER = {"network": "causal", "passes": 64}
SEEDS = (0, 10_000, 20_000)  # how far draws of one setting differ


def train(name: str, seconds: float, work: Path) -> dict[str, Any]:
    """A run of :data:`RUNS` on the bundled tokenizer's codes for `seconds` of processor time."""
    encode_dataset(load_tokenizer(bundled_pipeline()), Emoji(groups="subcategory"), work / "tokens")
    config = load(f"generation/{RUNS[name]}", [])
    config["stage"]["generator" if name == "critic" else "tokenizer"] = str(bundled_pipeline())
    config["data"]["path"] = str(work / "tokens")
    config["training"] |= {"ema": 0.99, "sample_every": 0}  # a short run's average is short
    del config["training"]["steps"]
    return train_for(seconds, name, config, work)


class Judge:
    """The emoji, the classifier of their categories, and which classes are asked for.

    `labels` are the pipeline's, of subcategories; `categories` those of the classifier."""

    def __init__(self, count: int):
        coarse, fine = Emoji(), Emoji(groups="subcategory")
        self.classifier, self.facts = train_classifier(coarse, steps=200, progress=False)
        self.real = torch.stack([coarse[i]["pixels"] for i in range(len(coarse))])
        self.chosen = torch.randperm(len(coarse), generator=torch.Generator().manual_seed(0))[:count]
        self.labels = [int(fine.labels[i]) for i in self.chosen]
        self.categories = torch.as_tensor(coarse.labels)[self.chosen]

    def __call__(self, made: Tensor) -> dict[str, float]:
        """What is measured of images in [-1, 1]."""
        nearest, _ = nearest_neighbour_distance(made, self.real)
        return {
            "distance": classifier_frechet(self.classifier, self.real, made)[1],
            "class_agreement": class_agreement(self.classifier, made, self.categories),
            "diversity": self.diversity(made),
            "nearest_rmse": float(nearest.mean()),
        }

    @torch.no_grad()
    def diversity(self, made: Tensor) -> float:
        """Mean distance in features of two images of one category, over all such pairs."""
        apart = torch.cdist(*[self.classifier.features(made)] * 2)
        same = self.categories[:, None] == self.categories
        return float(apart[same & ~torch.eye(len(same), dtype=torch.bool)].mean())

    def of_the_real(self) -> dict[str, float]:
        """The same of as many emoji, against the other ones."""
        others = torch.ones(len(self.real), dtype=torch.bool)
        others[self.chosen] = False
        real, rest = self.real[self.chosen], self.real[others]
        return {
            "distance": classifier_frechet(self.classifier, rest, real)[1],
            "class_agreement": class_agreement(self.classifier, real, self.categories),
            "diversity": self.diversity(real),
            "nearest_rmse": float(nearest_neighbour_distance(real, rest)[0].mean()),
        }


def decoded(pipeline: Any, labels: list[int], row: dict[str, Any], seed: int) -> Tensor:
    """Images of a setting."""
    pipeline.scheduler = MaskScheduler(
        order=row["order"],
        choice_temperature=row["choice_temperature"],
        guidance_schedule=row["schedule"],
        guidance_scale=row["guidance"],
        num_inference_steps=row["steps"],
    )
    return sample(pipeline, labels, seed)


def timed(make: Callable[[], Tensor], judge: Judge) -> dict[str, float]:
    """What is measured of the images, and the time they took."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = make()
    n = len(made)
    facts = {"cpu_ms": 1000 * (time.process_time() - cpu) / n, "wall_ms": 1000 * (time.perf_counter() - wall) / n}
    return {**facts, **judge(made)}


def measure(options: argparse.Namespace) -> None:
    """The rows of the tables that are not there yet."""
    judge = Judge(options.count)
    dtype = torch.bfloat16 if bf16_supported() else torch.float32
    pipeline = pipeline_of(options.work / "critic" if (options.work / "critic").exists() else None, dtype)
    facts = {"command": options.command, "machine": machine(), "versions": versions("torch")}
    facts |= {"classifier": {"name": judge.classifier.name, **judge.facts}, "images": options.count}
    add(options.out, facts | {"real": judge.of_the_real(), "dtype": str(dtype).removeprefix("torch.")})
    orders = ORDERS if pipeline.critic is not None else ORDERS[:-1]
    rows = [row | {"seed": 0} for name in TABLES for row in settings(name) if row["order"] in orders]
    rows += [BASE | {"seed": seed} for seed in SEEDS[1:]]
    part, parts = options.part
    for row in rows[part::parts]:
        if not any({k: e[k] for k in row} == row for e in read(options.out).get("entries", [])):
            make = partial(decoded, pipeline, judge.labels, row, row["seed"])
            add(options.out, {}, "entries", row | timed(make, judge))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def add(path: Path, facts: dict[str, Any], to: str = "", entry: dict[str, Any] | None = None) -> None:
    """Add facts, and an entry of a list, to the file: several processes may fill one file."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        results = json.loads(file.read() or "{}") | facts
        if entry is not None:
            results.setdefault(to, []).append(entry)
            print(entry, file=sys.stderr, flush=True)
        file.truncate(0)
        file.write(json.dumps(results, indent=1) + "\n")


def pipeline_of(path: Path | None, dtype: torch.dtype) -> Any:
    pipeline = MaskedImagePipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    for network in (pipeline.transformer, pipeline.critic):
        if network is not None:
            network.to(dtype)
    return pipeline


def compare(options: argparse.Namespace) -> None:
    """Parallel against autoregressive, both from scratch in the same processor time."""
    judge = Judge(options.count)
    dtype = torch.bfloat16 if bf16_supported() else torch.float32
    masked = pipeline_of(options.work / "masked", dtype)
    causal = CausalTransformer.from_pretrained(options.work / "causal" / "pipeline" / "transformer").to(dtype)
    tokenizer = load_tokenizer(options.work / "causal")

    def raster(guidance: float) -> Tensor:
        made = []
        for start in range(0, len(judge.labels), 128):
            labels = judge.labels[start : start + 128]
            seeds = [torch.Generator().manual_seed(start + i) for i in range(len(labels))]
            made.append(sample_raster(tokenizer, causal, labels, seeds, guidance))
        return torch.cat(made).clamp(-1, 1)

    for guidance in (1.5, 1.0):
        base = {"guidance": guidance}
        add(options.out, {}, "raster", RASTER | base | timed(partial(raster, guidance), judge))
        for steps, temperature in ((8, 4.5), (8, BASE["choice_temperature"]), (16, BASE["choice_temperature"])):
            row = BASE | base | {"steps": steps, "schedule": "constant", "choice_temperature": temperature}
            entry = {"network": "masked", "passes": steps, "choice_temperature": temperature, **base}
            add(options.out, {}, "raster", entry | timed(partial(decoded, masked, judge.labels, row, 0), judge))


# ---------------------------------------------------------------- showing


def cells(entry: dict[str, Any]) -> list[str]:
    nearest = f"{entry['nearest_rmse']:.2f}"
    return [f"{entry['distance']:.2f}", f"{entry['class_agreement']:.0%}", f"{entry['diversity']:.2f}", nearest]


def markdown(head: list[str], lines: list[list[str]], text: int) -> str:
    """A table whose first `text` columns are words."""
    rule = ["---"] * text + ["---:"] * (len(head) - text)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


MEASURED = ["Fréchet distance", "class agreement", "diversity", "to the nearest emoji", "CPU ms"]


def found(results: dict[str, Any], row: dict[str, Any], seed: int = 0) -> dict[str, Any] | None:
    wanted = row | {"seed": seed}
    return next((e for e in results["entries"] if {k: e[k] for k in wanted} == wanted), None)


def table(results: dict[str, Any], name: str) -> str:
    """Markdown: one row per setting."""
    shown = {
        "temperature": ["guidance", "choice_temperature"],
        "guidance": ["guidance", "schedule"],
        "steps": ["order", "steps"],
    }[name]
    lines = []
    for row in sorted(settings(name), key=lambda row: ORDERS.index(row["order"])):
        if entry := found(results, row):
            words = [f"{row[k]:g}" if isinstance(row[k], (int, float)) else row[k] for k in shown]
            lines.append([*words, *cells(entry), f"{entry['cpu_ms']:.0f}"])
    lines.append(["emoji themselves", *[""] * (len(shown) - 1), *cells(results["real"]), ""])
    fixed = ", ".join(f"{k} {v}" for k, v in settings(name)[0].items() if k not in shown)
    if name == "steps" and "critic" in results.get("training", {}):
        fixed += f". Training of the {trained(results, 'critic')}"
    return markdown([*shown, *MEASURED], lines, len(shown)) + f"\n\n{fixed}. {foot(results)}"


def foot(results: dict[str, Any]) -> str:
    c, m = results["classifier"], results["machine"]
    spread = [e["distance"] for seed in SEEDS if (e := found(results, BASE, seed))]
    return (
        f"{results['images']} images a row; features of {c['name']} ({c['accuracy']:.0%} right on held-out emoji). "
        f"{len(spread)} draws of guidance 1.5, choice_temperature 0.5, 12 steps: "
        f"{', '.join(f'{d:.2f}' for d in spread)}. "
        f"Transformer in {results['dtype']}; "
        f"{m['cpu']}, {m['threads']} thread(s); torch {results['versions']['torch']}; `{results['command']}`."
    )


def trained(results: dict[str, Any], *names: str) -> str:
    """How long these were trained."""
    runs = {name: results["training"][name] for name in names}
    return "; ".join(f"{name} {run['steps']} steps, {run['cpu_seconds']:.0f} s" for name, run in runs.items())


def raster_table(results: dict[str, Any]) -> str:
    """Markdown: parallel against autoregressive."""
    lines = []
    for e in results["raster"]:
        words = [{"causal": "one after the other", "masked": "parallel"}[e["network"]], f"{e['guidance']:g}"]
        words.append(f"{e['choice_temperature']:g}" if "choice_temperature" in e else "")
        lines.append([*words, str(e["passes"]), *cells(e), f"{e['cpu_ms']:.0f}"])
    made = trained(results, "masked", "causal")
    head = ["decoding", "guidance", "choice temperature", "passes", *MEASURED]
    return markdown(head, lines, 1) + f"\n\nFrom scratch, batches of 48, by processor time: {made}. {foot(results)}"


def plot(results: dict[str, Any], path: Path) -> None:
    """Quality against steps, a line an order."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for order in ORDERS:
        entries = [e for s in STEPS if (e := found(results, {**BASE, "steps": s, "order": order}))]
        for axis, key in zip(axes if entries else (), ("distance", "class_agreement")):
            axis.plot([e["steps"] for e in entries], [e[key] for e in entries], "o-", label=order, markersize=4)
    for axis, key, name in zip(axes, ("distance", "class_agreement"), MEASURED):
        axis.axhline(results["real"][key], color="grey", linestyle=":", label="emoji themselves")
        axis.set(xlabel="decoding steps", title=name, xscale="log", xticks=STEPS, xticklabels=map(str, STEPS))
        axis.minorticks_off()
    axes[0].set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=256, help="images of each setting")
    parser.add_argument("--train", nargs="*", choices=list(RUNS), help="train these (all, where none is named)")
    parser.add_argument("--seconds", type=float, default=240, help="of processor time, of each training")
    parser.add_argument("--part", type=int, nargs=2, default=[0, 1], help="I N: every N-th row from I, for N processes")
    parser.add_argument("--compare", action="store_true", help="parallel against autoregressive, after --train")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "benchmarks/sampling_table.py", *arguments])
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    if options.plot:
        plot(read(options.out), HERE.parent / "docs" / "images" / "sampling.png")
    elif options.train is not None:
        for name in options.train or RUNS:
            trained = train(name, options.seconds, options.work)
            add(options.out, {"training": read(options.out).get("training", {}) | {name: trained}})
    else:
        (compare if options.compare else measure)(options)


if __name__ == "__main__":
    main(sys.argv[1:])
