"""Masked video models of a small world with actions: do actions matter, and can they be planned?

    pip install 'maskgen[video]'
    python benchmarks/video_world.py         # all entries without a result in results/video-world.json
    python benchmarks/tables.py              # the tables of docs/video-findings.md

The world is gymnasium's pendulum without gravity, 32x32 pixels, under random torques that the model is given. Clips
have 8 frames, 2 given and 6 predicted; a frame has 2x2 tokens, the k-means codes of patches of 16x16 pixels.
Transformers have width 64 and 4 layers. The test episodes have another seed, and the angle is also read from the
images. Planning runs in the simulator. `video_findings.py` repeats MaskViT's other findings.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget import machine, train_for, versions
from entries import add_entry, read
from jaxtyping import Float
from torch import Tensor

from maskgen.data.simulator import Simulator, simulate
from maskgen.data.video_sources import save_videos
from maskgen.evaluation.video.measures import METRICS, TRIVIAL, best_of
from maskgen.pipelines.store import load_tokenizer
from maskgen.pipelines.video import MaskedVideoPipeline
from maskgen.tasks.planning import cross_entropy_plan, rollout_cost
from maskgen.videos import strip

HERE = Path(__file__).parent
OUT = HERE / "results" / "video-world.json"
FRAMES, CONTEXT, SIDE, PATCH, CODES = 8, 2, 32, 16, 64
FUTURE = FRAMES - CONTEXT
WORLD: dict[str, Any] = {"size": SIDE, "repeat": 3, "options": {"g": 0.0}}
TRAIN, TEST = 800, 100  # episodes
MODEL = {
    "width": 64,
    "depth": 4,
    "positions": {"embedding": "learned_sum"},
    "block": {"heads": 4, "windows": [[1, 0, 0], [0, 1, 1]]},
}
TRAINING = {"batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.01, "ema": 0.0, "log_every": 50}
SAMPLES = 2

STEPS = 4  # of decoding
EPISODES, CANDIDATES, ROUNDS = 20, 64, 3


# ---------------------------------------------------------------- the world


def prepare(work: Path) -> None:
    """Episodes and a tokenizer, where they are not there yet."""
    for name, count, seed, frames in (("train", TRAIN, 0, FRAMES + 2), ("test", TEST, 1, FRAMES)):
        if not (work / f"{name}.npz").is_file():
            save_videos(work / f"{name}.npz", *simulate(count, seed, frames, **WORLD))
    if not (work / "patches" / "pipeline").is_dir():
        part = {"type": "patch", "patch": PATCH}
        quantizer = {"codebook_size": CODES, "dim": 3 * PATCH**2}
        stage = {"type": "centroids", "points": 10_000}
        stage |= {"tokenizer": {"encoder": part, "quantizer": quantizer, "decoder": part}}
        config = {"stage": stage, "data": data(work, 1), "training": {"steps": 12}}
        train_for(0, "patches", config, work)


def data(work: Path, frames: int = FRAMES) -> dict[str, Any]:
    return {"type": "videos", "path": str(work / "train.npz"), "frames": frames}


@cache
def episodes(work: Path) -> tuple[Float[Tensor, "n 3 t s s"], Float[Tensor, "n t a"]]:
    """The test episodes: videos in [-1, 1] and their actions."""
    with np.load(work / "test.npz") as file:
        videos = torch.from_numpy(file["videos"]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return videos, torch.from_numpy(file["actions"])


def seen_angle(videos: Float[Tensor, "n 3 t s s"]) -> Float[Tensor, "n t"]:
    """Of the rod, in radians: where what is not white weighs most, seen from the middle."""
    weight = (1 - videos.clamp(-1, 1)).sum(1)
    place = torch.arange(SIDE) - (SIDE - 1) / 2
    return torch.atan2((weight * place[:, None]).sum((2, 3)), (weight * place).sum((2, 3)))


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Between angles: 0 to pi."""
    return torch.remainder(a - b + torch.pi, 2 * torch.pi).sub(torch.pi).abs()


# ---------------------------------------------------------------- training and measuring


def configuration(seed: int, steps: int, work: Path) -> dict[str, Any]:
    return {
        "stage": {
            "type": "generator",
            "tokenizer": str(work / "patches"),
            "model": MODEL,
            "masking": {
                "ratio": {"type": "uniform", "low": 0.5, "high": 1.0},
                "sampler": {"type": "frames", "context": CONTEXT},
                "objective": {"type": "cross_entropy", "label_smoothing": 0.0},
            },
            "conditioning": ["actions"],
            "scheduler": {"num_inference_steps": STEPS, "choice_temperature": 1.0},
        },
        "data": data(work),
        "training": {**TRAINING, "steps": steps, "seed": seed},
    }


def predict(pipeline: Any, videos: Tensor, actions: Tensor, seed: int = 0) -> Tensor:
    """What follows the context, (n, 3, t, s, s)."""
    noise = [torch.Generator().manual_seed(len(videos) * seed + i) for i in range(len(videos))]
    given = {"actions": actions, "num_inference_steps": STEPS, "generator": noise, "output_type": "pixels"}
    frames = pipeline.predict(videos[:, :, :CONTEXT], FUTURE, **given).frames
    return frames[:, :, CONTEXT:]


def summary(samples: list[Tensor], truth: Tensor) -> dict[str, Any]:
    """Mean over samples, frames and clips, and of the best sample of each clip."""
    found: dict[str, Any] = {}
    for name in ("mse", "ssim"):
        metric = METRICS[name]
        values = torch.stack([metric.compute(sample, truth) for sample in samples])
        found[name] = round(float(values.mean()), 4)
        if len(samples) > 1:
            found[f"best_{name}"] = round(float(best_of(values, metric.higher).mean()), 4)
    angles = torch.stack([apart(seen_angle(sample), seen_angle(truth)) for sample in samples])
    found["angle"] = round(float(angles.mean()), 4)
    found["last_angle"] = round(float(angles[..., -1].mean()), 4)
    return found


def opened(run: Path) -> Any:
    pipeline = MaskedVideoPipeline.from_pretrained(run)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def floors(options: argparse.Namespace) -> dict[str, Any]:
    """What the tokenizer alone loses, and the predictors without a model."""
    videos, _ = episodes(options.work)
    wanted = videos[:, :, CONTEXT:]
    coder = load_tokenizer(options.work / "patches").eval()
    found = {name: summary([make(videos[:, :, :CONTEXT], FUTURE)], wanted) for name, make in TRIVIAL.items()}
    return {**found, "tokenizer": summary([coder.decode(coder.encode(wanted))], wanted)}


def trained(seed: int, options: argparse.Namespace) -> Path:
    """The run's folder; trained and written down where it is new."""
    run = options.work / f"model-{seed}"
    if f"model/{seed}" not in read(options.out):
        config = configuration(seed, options.steps, options.work)
        entry = {"training": train_for(0, run.name, config, options.work)}
        videos, actions = episodes(options.work)
        made, sheet = predict(opened(run), videos[:6], actions[:6]).clamp(-1, 1), {}
        for i in range(6):
            whole = torch.cat([videos[i, :, :CONTEXT], made[i]], 1)
            sheet |= {f"episode {i}": videos[i], f"predicted {i}": whole}
        strip(sheet).save(run / "predicted.png")
        write(options, f"model/{seed}", entry)
    return run


def acted(seed: int, options: argparse.Namespace) -> None:
    """The same episodes with their own actions, with another's, and with none."""
    pipeline = opened(trained(seed, options))
    videos, actions = episodes(options.work)
    given = {"right": actions, "of another episode": actions.roll(1, 0), "zero": torch.zeros_like(actions)}
    wanted = videos[:, :, CONTEXT:]
    found = {
        name: summary([predict(pipeline, videos, some, sample) for sample in range(SAMPLES)], wanted)
        for name, some in given.items()
    }
    write(options, f"actions/{seed}", {"measured": found})


# ---------------------------------------------------------------- planning


def image(frames: list[np.ndarray]) -> Float[Tensor, "3 t s s"]:
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def angle(world: Simulator) -> Tensor:
    return torch.atan2(torch.tensor(float(world.state[1])), torch.tensor(float(world.state[0])))


def executed(world: Simulator, start: int, first: Tensor, plan: Tensor) -> tuple[list[np.ndarray], Tensor]:
    """Frames from a start under actions, and the angle at the end."""
    frames = [world.reset(start)]
    for action in [first, *plan]:
        frames.append(world.step(action.numpy()))
    return frames, angle(world)


def planned(seed: int, options: argparse.Namespace) -> None:
    """How far the pendulum is from a goal after as many actions, planned or not; by the kind of goal."""
    pipeline, world = opened(trained(seed, options)), Simulator(**WORLD)
    found: dict[str, dict[str, list[float]]] = {}
    begun = time.process_time()
    for kind in GOALS:
        for episode in range(EPISODES):
            for name, value in ends(pipeline, world, kind, episode).items():
                found.setdefault(kind, {}).setdefault(name, []).append(round(value, 4))
    write(options, f"planning/{seed}", {"ends": found, "cpu_seconds": round(time.process_time() - begun, 1)})


def ends(pipeline: Any, world: Simulator, kind: str, episode: int) -> dict[str, float]:
    """Of one episode, radians from the goal by the way the actions were chosen.

    The goal is where other actions lead from the same start, so that it can be reached. Planned: all actions at once
    from two frames ("open loop"), and again those left after half of them.
    """
    draw, start, box = torch.Generator().manual_seed(episode), 10_000 + episode, torch.ones(FUTURE, 1)
    first = torch.rand(1, generator=draw) * 2 - 1
    frames, goal = executed(world, start, first, GOALS[kind](draw))
    target = image(frames)[:, -1]

    def plan(frames: list[np.ndarray], past: list[Tensor]) -> Tensor:
        cost = rollout_cost(pipeline, image(frames), torch.stack(past), target, num_inference_steps=2)
        limits, noise = box[len(past) - 1 :], torch.Generator().manual_seed(episode)
        return cross_entropy_plan(cost, -limits, limits, CANDIDATES, CANDIDATES // 8, ROUNDS, noise)[0]

    once, half = plan(frames[:CONTEXT], [first]), FUTURE // 2
    met, _ = executed(world, start, first, once[:half])
    again = torch.cat([once[:half], plan(met, [first, *once[:half]])])
    chosen = {"zero": 0 * box, "random": any_torques(draw), "open loop": once, "planned twice": again}
    return {name: float(apart(executed(world, start, first, torques)[1], goal)) for name, torques in chosen.items()}


def any_torques(draw: torch.Generator) -> Tensor:
    """As in the training data."""
    return torch.rand(FUTURE, 1, generator=draw) * 2 - 1


def one_torque(draw: torch.Generator) -> Tensor:
    """The same all the time, 0.3 to 1 of the largest either way: it turns the pendulum further than most training."""
    size, side = torch.rand((), generator=draw) * 0.7 + 0.3, torch.randint(2, (), generator=draw) * 2 - 1
    return (size * side).expand(FUTURE, 1)


GOALS = {"reached by random torques": any_torques, "reached by a constant torque": one_torque}


def write(options: argparse.Namespace, name: str, entry: dict[str, Any]) -> None:
    entry |= {"machine": machine(), "versions": versions("torch", "gymnasium"), "command": options.command}
    add_entry(options.out, name, entry)
    print(name, {key: entry[key] for key in ("measured", "ends") if key in entry}, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- tables


def seeds_of(results: dict[str, Any], start: str) -> list[dict[str, Any]]:
    return [entry for key, entry in results.items() if key.rpartition("/")[0] == start]


def numbers(entries: list[dict[str, Any]], key: str, form: str) -> str:
    """One number per seed."""
    return ", ".join(format(entry[key], form) for entry in entries)


def degrees(entries: list[dict[str, Any]], key: str = "last_angle") -> str:
    return ", ".join(f"{np.rad2deg(entry[key]):.1f}" for entry in entries)


def said(results: dict[str, Any]) -> str:
    """How the models were trained, and on which machine."""
    first = seeds_of(results, "model")[0]
    training, where = first["training"], first["machine"]
    return (
        f"Models of {training['steps']} steps of {TRAINING['batch_size']} clips, {training['cpu_seconds']:.0f} s of "
        f"processor time; {TEST} held-out episodes, {SAMPLES} samples of each; one number per seed. "
        f"{where['cpu']}, {where['threads']} thread(s), torch {first['versions']['torch']}."
    )


def actions_table(results: dict[str, Any]) -> str:
    entries = [entry["measured"] for entry in seeds_of(results, "actions")]
    lines = ["| actions | MSE | SSIM | degrees off, mean | at the last frame |", "| --- |" + " ---: |" * 4]
    rows = {name: [entry[name] for entry in entries] for name in entries[0]}
    rows["copy-last"] = [results["floors"]["measured"]["copy-last"]]
    for name, found in rows.items():
        lines.append(
            f"| {name} | {numbers(found, 'mse', '.1f')} | {numbers(found, 'ssim', '.3f')} | "
            f"{degrees(found, 'angle')} | {degrees(found)} |"
        )
    return "\n".join([*lines, "", f"{said(results)} Decoded in {STEPS} steps."])


def planning_table(results: dict[str, Any]) -> str:
    entries = [entry["ends"] for entry in seeds_of(results, "planning")]
    lines = ["| goal | actions | degrees from the goal: mean ± deviation | median | within 20 degrees |"]
    lines.append("| --- | --- |" + " ---: |" * 3)
    for kind, names in entries[0].items():
        for name in names:
            found = [np.rad2deg(np.array(entry[kind][name])) for entry in entries]
            spread = ", ".join(f"{f.mean():.1f} ± {f.std():.1f}" for f in found)
            near = ", ".join(f"{(f <= 20).sum()} of {len(f)}" for f in found)
            lines.append(f"| {kind} | {name} | {spread} | {', '.join(f'{np.median(f):.1f}' for f in found)} | {near} |")
    about = f"{EPISODES} episodes, the same starts and goals for all; one number per seed of the model. "
    return "\n".join([*lines, "", f"{about}{CANDIDATES} candidates, {ROUNDS} rounds, 2 decode steps."])


TABLES = {
    "actions": actions_table,
    "planning": planning_table,
}


def main(texts: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of training, a model (default: 1000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES), help="questions")
    parser.add_argument("--work", type=Path, default=Path("/tmp/video-world"), help="scratch folder")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(texts)
    options.command = shlex.join(["python", "benchmarks/video_world.py", *texts])
    prepare(options.work)
    if "floors" not in read(options.out):
        write(options, "floors", {"measured": floors(options)})
    asked = {"actions": acted, "planning": planned}
    for seed in options.seeds:
        for name in options.only:
            if f"{name}/{seed}" not in read(options.out):
                asked[name](seed, options)
    for name in options.only:
        print(f"\n{TABLES[name](read(options.out))}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
