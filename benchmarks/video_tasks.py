"""How good one model of several tasks is at each of them, compared with the padding of its conditions.

    python benchmarks/video_tasks.py runs/moving-mnist-tasks '{type: videos, path: data/moving_mnist/test.npz, \
        frames: 8, channels: 1}'
    python benchmarks/tables.py                # the table of docs/video.md

The result goes to results/video-tasks.json and a sheet of one clip to docs/images/video-tasks.png. The error is that of
the hidden pixels, because known pixels are returned unchanged.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from prediction import GREEDY, circumstances, clips_of, opened, through, trained
from torch import Tensor

from maskgen import MaskScheduler
from maskgen.evaluation.video.measures import METRICS
from maskgen.registry import build
from maskgen.tasks.conditions import BLACK, TASK, Task, condition_video
from maskgen.videos import strip

HERE = Path(__file__).parent
OUT = HERE / "results" / "video-tasks.json"
ROWS = {
    "black": "black",
    "padding": "the condition's padding",
    "greedy": "greedy",
    "draw": "one sample",
    "mean": "mean image of {} samples",
    "floor": "true frames through the tokenizer",
}


def error(made: Tensor, truth: Tensor, hidden: Tensor) -> float:
    """Moving MNIST's convention, of the hidden pixels alone; mean over the frames that hide some and over clips."""
    pasted = torch.where(hidden, made, truth)
    return float(METRICS["mse"].compute(pasted, truth)[:, hidden.any(2).any(1)].mean())


@torch.no_grad()
def made_by(pipeline: Any, clips: Tensor, hidden: Tensor, task: str, seed: int, rows: int = 10) -> Tensor:
    """Completed, (n, c, t, H, W) in [-1, 1]."""
    parts = []
    for start in range(0, len(clips), rows):
        part = clips[start : start + rows]
        noise = [torch.Generator().manual_seed(seed * len(clips) + start + i) for i in range(len(part))]
        frames = pipeline.inpaint(part, hidden, generator=noise, output_type="pixels", task=task).frames
        parts.append(frames)
    return torch.cat(parts)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    clips = clips_of(options.data, options.clips)
    pipeline = opened(options.run)
    base = {**pipeline.scheduler.config, "num_inference_steps": options.steps}
    drawn, greedy = MaskScheduler.from_config(base), MaskScheduler.from_config(base | GREEDY)
    about = circumstances(options, clips)
    floor, sheet, found, begun = through(pipeline.vqvae, clips), {"clip": clips[0]}, {}, time.process_time()
    for spec in about["training"]["config"]["stage"]["tasks"]:
        task: Task = build(TASK, spec)
        hidden = task.hidden(tuple(clips.shape[2:]))
        conditions = condition_video(task.name, clips, hidden)
        sides = {"black": torch.full_like(clips, BLACK), "padding": conditions, "floor": floor}
        pipeline.scheduler = greedy
        sides["greedy"] = made_by(pipeline, clips, hidden, task.name, 0)
        pipeline.scheduler = drawn
        draws = [made_by(pipeline, clips, hidden, task.name, 1 + i) for i in range(options.samples)]
        sides |= {"draw": draws[0], "mean": torch.stack(draws).mean(0)}
        found[task.name] = {name: error(side, clips, hidden) for name, side in sides.items()}
        print(task.name, found[task.name], file=sys.stderr, flush=True)
        sheet |= {task.name: conditions[0], "greedy" + " " * len(found): sides["greedy"][0]}
        sheet |= {"one sample" + " " * len(found): draws[0][0]}
    strip(sheet).save(options.sheet)
    return {**about, "cpu_seconds": time.process_time() - begun, "errors": found}


def table(results: dict[str, Any]) -> str:
    """Markdown: one row per method, one column per task."""
    tasks = results["errors"]
    lines = ["| | " + " | ".join(tasks) + " |", "|---|" + "---:|" * len(tasks)]
    for name, words in ROWS.items():
        cells = " | ".join(f"{errors[name]:.1f}" for errors in tasks.values())
        lines.append(f"| {words.format(results['samples'])} | {cells} |")
    facts = (
        f"{results['clips']} held-out clips, {results['steps']} steps; {trained(results['training'])}. "
        f"{results['machine']['cpu']}; `{results['command']}`."
    )
    return "\n".join([*lines, "", facts])


def main(texts: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data", help="a YAML mapping, as in a configuration")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--sheet", type=Path, default=HERE.parent / "docs" / "images" / "video-tasks.png")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(texts)
    options.command = shlex.join(["python", "benchmarks/video_tasks.py", *texts])
    results = measure(options)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
