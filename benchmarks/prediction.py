"""Frames predicted by a trained video model, compared with its tokenizer alone and with predictors without a model.

    python benchmarks/prediction.py moving-mnist runs/moving-mnist '{type: videos, path: test.npz, frames: 20, \
        channels: 1}' --context 10 --clips 200 --samples 10
    python benchmarks/tables.py                # the tables of docs/video.md

The result goes to results/prediction-NAME.json and a strip of the first clips to docs/images/NAME.png. The greedy
prediction takes the most likely code of every token. The function behind `maskgen evaluate-video` computes all metrics.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from budget import machine, versions
from torch import Tensor

from maskgen import MaskedVideoPipeline, MaskScheduler
from maskgen.data import DATASETS
from maskgen.evaluation.video.report import evaluate_videos
from maskgen.images import to_uint8
from maskgen.registry import Part, build
from maskgen.training.loop import bf16_supported
from maskgen.training.metrics import read_metrics
from maskgen.videos import strip

HERE = Path(__file__).parent
GREEDY = {"choice_temperature": 0.0, "top_k": 1}
ROWS = {
    "blank": "blank",
    "copy-last": "copy the last frame",
    "greedy": "ours, greedy",
    "samples": "ours, sampled",
    "floor": "true frames through the tokenizer",
}
KEYS = {"mean": "", "best_of_N": ", best of N by each metric", "of_the_mean": ", mean image of N"}
METRICS = {"mse": ("MSE", 1), "mae": ("MAE", 1), "psnr": ("PSNR", 2), "ssim_uniform": ("SSIM", 3)}


def clips_of(data: str, count: int) -> Tensor:
    """The first clips, float (n, c, t, h, w) in [-1, 1]."""
    source = build(Part(DATASETS), yaml.safe_load(data))
    return torch.stack([source[i]["pixels"] for i in range(min(count, len(source)))])


def opened(run: str) -> Any:
    """The pipeline of a run, with its transformer in bfloat16 where that is fast."""
    pipeline: Any = MaskedVideoPipeline.from_pretrained(run)
    pipeline.set_progress_bar_config(disable=True)
    if bf16_supported():
        pipeline.transformer.to(torch.bfloat16)
    return pipeline


@torch.no_grad()
def predicted(
    pipeline: Any, clips: Tensor, context: int, seed: int, overlap: int | None = None, rows: int = 10
) -> Tensor:
    """What follows the first frames of each clip; windows that slide share `overlap` frames of tokens."""
    made = []
    _, h, w = pipeline.transformer.grid
    for start in range(0, len(clips), rows):
        part = clips[start : start + rows]
        noise = [torch.Generator().manual_seed(seed * len(clips) + start + i) for i in range(len(part))]
        options: Any = {"generator": noise, "output_type": "pixels"}
        if overlap is not None:
            options["overlap"] = (overlap, h // 2, w // 2)
        frames = pipeline.predict(part[:, :, :context], part.shape[2] - context, **options).frames
        made.append(frames[:, :, context:])
        print(f"seed {seed}: {start + len(part)} of {len(clips)}", file=sys.stderr, flush=True)
    return torch.cat(made)


@torch.no_grad()
def through(tokenizer: Any, clips: Tensor, rows: int = 10) -> Tensor:
    """Clips, encoded and decoded by the tokenizer."""
    parts = [tokenizer.decode(tokenizer.encode(part)).clamp(-1, 1) for part in clips.split(rows)]
    return torch.cat(parts)


def write(clips: Tensor, path: Path) -> str:
    """As an array of videos."""
    np.savez(path, videos=np.stack([to_uint8(clip.transpose(0, 1)) for clip in clips]))
    return str(path)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    clips, context = clips_of(options.data, options.clips), options.context
    pipeline = opened(options.run)
    base = {
        **pipeline.scheduler.config,
        "num_inference_steps": options.steps,
        "choice_temperature": options.choice_temperature,
    }
    pipeline.scheduler = MaskScheduler.from_config(base | GREEDY)
    begun = time.process_time()
    greedy = predicted(pipeline, clips, context, 0, options.overlap)
    seconds = (time.process_time() - begun) / len(clips)
    pipeline.scheduler = MaskScheduler.from_config(base)
    samples = [predicted(pipeline, clips, context, 1 + i, options.overlap) for i in range(options.samples)]
    floor = through(pipeline.vqvae, clips)[:, :, context:]
    shown = range(options.shown)
    rows = {}
    for i in shown:
        rows |= {f"{i + 1} truth": clips[i], "greedy" + " " * i: greedy[i], "sampled" + " " * i: samples[0][i]}
    strip(rows, every=options.every).save(HERE.parent / "docs" / "images" / f"{options.name}.png")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        truth = write(clips, work / "truth.npz")
        sides = {"blank": ["blank"], "copy-last": ["copy-last"]}
        sides |= {"greedy": [write(greedy, work / "greedy.npz")], "floor": [write(floor, work / "floor.npz")]}
        sides["samples"] = [write(x, work / f"sample_{i}.npz") for i, x in enumerate(samples)]
        found = {name: evaluate_videos(paths, truth, context=context).metrics for name, paths in sides.items()}
    return {
        **circumstances(options, clips),
        "frames": [context, clips.shape[2] - context],
        "choice_temperature": options.choice_temperature,
        "cpu_seconds_a_prediction": seconds,
        "metrics": found,
    }


def circumstances(options: argparse.Namespace, clips: Tensor) -> dict[str, Any]:
    """The facts in the results about how they were made."""
    return {
        "command": options.command,
        "machine": machine(),
        "versions": versions("torch"),
        "data": options.data,
        "clips": len(clips),
        "samples": options.samples,
        "steps": options.steps,
        "training": training_of(Path(options.run)),
    }


def training_of(run: Path) -> dict[str, Any]:
    """A run's steps and seconds, by its log, and its configuration. The clock starts again where a run is resumed."""
    lines = read_metrics(run / "metrics.jsonl")
    ends = [a["seconds"] for a, b in pairwise(lines) if b["seconds"] < a["seconds"]]
    config = yaml.safe_load((run / "config.yaml").read_text())
    return {"steps": lines[-1]["step"], "seconds": round(sum(ends) + lines[-1]["seconds"]), "config": config}


def trained(how: dict[str, Any]) -> str:
    """The training of a run, as a phrase for a table."""
    clips = how["config"]["training"]["batch_size"]
    return f"trained {how['steps']} steps of {clips} clips in {how['seconds'] / 60:.0f} minutes"


def table(results: dict[str, Any]) -> str:
    """Markdown: one row per predictor."""
    found = results["metrics"]
    shown = {k: v for k, v in METRICS.items() if all(k in metrics for metrics in found.values())}
    lines = ["| | " + " | ".join(name for name, _ in shown.values()) + " |", "|---|" + "---:|" * len(shown)]
    for name, words in ROWS.items():
        for key, more in KEYS.items():
            if key in found[name]["mse"]:
                cells = [f"{found[name][k][key]:.{digits}f}" for k, (_, digits) in shown.items()]
                lines.append(f"| {words}{more} | {' | '.join(cells)} |")
    given, made = results["frames"]
    facts = (
        f"{results['clips']} clips, {given} frames in and {made} out, N = {results['samples']}, {results['steps']} "
        f"steps at choice temperature {results['choice_temperature']:g}; "
        f"{results['cpu_seconds_a_prediction']:.1f} s of one core per "
        f"prediction; {trained(results['training'])}. "
        f"{results['machine']['cpu']}; `{results['command']}`."
    )
    return "\n".join([*lines, "", facts])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("run")
    parser.add_argument("data", help="a YAML mapping, as in a configuration")
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--choice-temperature", type=float, default=1.0, help="noise on the confidence; greedy has 0")
    parser.add_argument("--overlap", type=int, help="frames of tokens that windows share, beyond the trained length")
    parser.add_argument("--shown", type=int, default=3, help="clips in the strip")
    parser.add_argument("--every", type=int, default=1, help="which frames the strip shows")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.command = "python benchmarks/prediction.py " + shlex.join(sys.argv[1:])
    torch.set_num_threads(1)
    out = options.out or HERE / "results" / f"prediction-{options.name}.json"
    results = measure(options)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
