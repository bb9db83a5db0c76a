"""The measurements of tokenizer_families.py."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.data import DATASETS
from maskgen.evaluation.classifier import classifier_frechet, load_classifier, save_classifier, train_classifier
from maskgen.evaluation.reconstruction.measures import codebook_use, psnr, ssim
from maskgen.images import to_uint8
from maskgen.pipelines.store import load_tokenizer
from maskgen.registry import Part, build
from maskgen.training.metrics import read_metrics
from maskgen.training.offline import TEACHER
from maskgen.training.run import split

SHOWN = 10  # images on a sheet
ROUNDS = 7  # of the speed
CODED = 2000  # training images for the codebook's use, evenly spread


@dataclass(frozen=True)
class Data:
    """spec: of the training images. held: of the held-out ones, or how many of the former are kept out.
    told_apart: what the classifier of the Fréchet distance learns."""

    spec: dict[str, Any]
    held: dict[str, Any] | int
    batch_size: int
    told_apart: str
    classifier_steps: int
    scale: int  # of the sheet

    def open(self) -> tuple[Any, Any]:
        whole = build(Part(DATASETS), self.spec)
        return split(whole, self.held) if isinstance(self.held, int) else (whole, build(Part(DATASETS), self.held))


def stacked(dataset: Any, key: str, count: int | None = None) -> Tensor:
    """Of `count` items, evenly spread; None is all."""
    count = min(count or len(dataset), len(dataset))
    return torch.stack([dataset[i * len(dataset) // count][key] for i in range(count)])


@torch.no_grad()
def by_batch(function: Callable[..., Tensor], *inputs: Tensor, size: int = 64) -> Tensor:
    return torch.cat([function(*parts) for parts in zip(*(x.split(size) for x in inputs))])


def text_of(tokenizer: nn.Module, dataset: Any, count: int | None = None) -> list[Tensor]:
    """The text features of `count` images where the tokenizer's decoder reads them; else nothing."""
    return [stacked(dataset, "text", count)] if tokenizer.reads_text else []


def classifier(name: str, data: Data, kept: Any, work: Path, seed: int = 0) -> Path:
    """The folder of a network trained once on the training images; seed 0 measures, seed 1 may be learned from."""
    folder = work / f"classifier-{name}-{seed}"
    if not (folder / "classifier.json").is_file():
        model, facts = train_classifier(kept, steps=data.classifier_steps, seed=seed, progress=False)
        save_classifier(model, folder, **facts)
    return folder


def frechet(real: Tensor, made: Tensor, folder: Path, told_apart: str) -> dict[str, Any]:
    """The distance in the features of the classifier in `folder`, and what these are."""
    facts = json.loads((folder / "classifier.json").read_text())
    told = {"network": facts["name"], "told_apart": told_apart, **{k: facts[k] for k in ("accuracy", "chance")}}
    return {"frechet": classifier_frechet(load_classifier(folder), real, made)[1], "frechet_features": told}


@torch.no_grad()
def cosine(tokenizer: nn.Module, pixels: Tensor, stage: dict[str, Any]) -> float:
    """Of the decoder's features to those of the teacher that the run's `stage` names; the mean over places."""
    teacher = build(TEACHER, stage["teacher"])
    parts = [(tokenizer(x).pixels, teacher(x, tokenizer.grid(tuple(x.shape[2:])))) for x in pixels.split(64)]
    return float(torch.cat([F.cosine_similarity(made, wanted, dim=1).flatten() for made, wanted in parts]).mean())


def codebook(tokenizer: nn.Module, codes: Tensor) -> dict[str, float | None]:
    """Of the codes of training images. Where a place has several, each level's: use and perplexity are means over the
    levels, dead codes are summed. None for continuous tokens."""
    size, levels = int(tokenizer.codebook_size), int(tokenizer.codes_per_position)
    if size == 0:
        return {"size": None, "levels": levels, "use": None, "perplexity": None, "dead": None}
    found = [codebook_use(part.reshape(-1), size) for part in codes.reshape(-1, levels).unbind(1)]
    mean = {key: statistics.mean(one[key] for one in found) for key in ("use", "perplexity")}
    return {"size": size, "levels": levels, **mean, "dead": round(levels * size * (1 - mean["use"]))}


@torch.no_grad()
def speed(tokenizer: nn.Module, pixels: Tensor, *text: Tensor) -> dict[str, Any]:
    """Images a second of processor time and of the wall's: encode and decode in turn, the median of the rounds."""
    codes = tokenizer.encode(pixels)
    tasks = {"encode": lambda: tokenizer.encode(pixels), "decode": lambda: tokenizer.decode(codes, *text)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(ROUNDS + 1):  # the first only warms up
        for name, task in tasks.items():
            cpu, wall = time.process_time(), time.perf_counter()
            task()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    found: dict[str, Any] = {"batch": len(pixels), "rounds": ROUNDS, "dtype": "fp32"}
    for name, rounds in times.items():
        for which, each in zip(("", "_wall"), zip(*rounds[1:])):
            found[f"{name}_per_second{which}"] = round(len(pixels) / statistics.median(each), 2)
    return found


def measure(config: dict[str, Any], data: Data, name: str, kept: Any, held: Any, work: Path) -> dict[str, Any]:
    """All numbers of the tokenizer that the run `config` made in `work`, where some of its images are kept."""
    folder = work / config["name"]
    tokenizer = load_tokenizer(folder).float()
    train, real = stacked(kept, "pixels", CODED), stacked(held, "pixels")
    codes = by_batch(tokenizer.encode, train)
    sizes = {part: sum(p.numel() for p in module.parameters()) for part, module in tokenizer.named_children()}
    use = codebook(tokenizer, codes)
    places = codes[0].numel() // (codes.shape[-1] if use["size"] is None else 1)
    found: dict[str, Any] = {
        "parameters": {**sizes, "total": sum(sizes.values())},
        "tokens": places,
        "bits": round(places * math.log2(use["size"]), 1) if use["size"] else None,
        "codebook": {**use, "images": len(train)},
        "speed": speed(tokenizer, stacked(kept, "pixels", data.batch_size), *text_of(tokenizer, kept, data.batch_size)),
        "holdout": len(real),
        "stage": read_metrics(folder / "metrics.jsonl")[-1],  # what the stage itself measured at the end
    }
    if tokenizer.config.target == "features":  # there are no images to compare
        return found | {"cosine": cosine(tokenizer, real, config["stage"])}
    made = by_batch(lambda *x: tokenizer(*x).pixels, real, *text_of(tokenizer, held)).clamp(-1, 1)
    shown = [i * len(real) // SHOWN for i in range(SHOWN)]
    np.savez(folder / "shown.npz", original=to_uint8(real[shown]), made=to_uint8(made[shown]))
    return found | {
        "psnr": float(psnr(made, real).mean()),
        "ssim": float(ssim(made, real).mean()),
        **frechet(real, made, classifier(name, data, kept, work), data.told_apart),
    }
