"""The main job, end to end, on the bundled images: train both stages, generate, evaluate."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from maskgen.data.source import open_dataset
from maskgen.evaluation.classifier import (
    class_agreement,
    classifier_frechet,
    nearest_neighbour_distance,
    real_vs_real,
    train_classifier,
)
from maskgen.evaluation.reconstruction.measures import measure, spread
from maskgen.images import grid, save, side_by_side
from maskgen.pipelines.encode import encode_dataset
from maskgen.pipelines.generate import draw
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.store import load_tokenizer
from maskgen.training.run import run_config


def quickstart(out: Path) -> Path:
    """Run everything in the folder `out`; give the summary's path.

    Leaves ``samples.png`` (a row a class), ``reconstructions.png``, ``curves_tokenizer.png``,
    ``curves_generator.png``, ``summary.json``, ``summary.md`` and the two runs. A second call goes on where the
    first one was stopped.
    """
    begin = time.perf_counter()
    tokenizer_run = run_config("tokenizer/quickstart", [f"folder={out}"])
    tokenizer, dataset = load_tokenizer(tokenizer_run), open_dataset(str(tokenizer_run))
    tokens = encode_dataset(tokenizer, dataset, out / "tokens")
    generator_run = run_config(
        "generation/quickstart", [f"folder={out}", f"stage.tokenizer={tokenizer_run}", f"data.path={tokens}"]
    )
    for run in (tokenizer_run, generator_run):
        shutil.copy(run / "curves.png", out / f"curves_{run.name}.png")
    pixels = next(spread(dataset, 32, 32))
    save(side_by_side(pixels, tokenizer(pixels).pixels, columns=16), out / "reconstructions.png")

    pipeline = MaskedImagePipeline.from_pretrained(generator_run)
    names = pipeline.class_names
    shown = draw(pipeline, [i for i in range(len(names)) for _ in range(10)], seed=0)
    save(grid(shown, 10, row_names=names), out / "samples.png")
    summary: dict[str, Any] = {"tokenizer": measure(tokenizer, dataset), "generator": judge(pipeline, dataset)}
    summary["seconds"] = round(time.perf_counter() - begin, 1)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = describe(summary)
    (out / "summary.md").write_text(text)
    print("\n" + text)
    return out / "summary.md"


def judge(pipeline: Any, dataset: Any, ask: Any = None) -> dict[str, Any]:
    """Samples with the classes of half the real images, in the eyes of a classifier trained on the real ones.

    Args:
        pipeline: what draws.
        dataset: real images, and the classes that the classifier tells apart.
        ask: the pipeline's label of each real image, where it is not the data set's.
    """
    classifier, facts = train_classifier(dataset, steps=200)
    half = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[: len(dataset) // 2].tolist()
    real = torch.stack([dataset[i]["pixels"] for i in range(len(dataset))])
    labels = torch.as_tensor(dataset.labels)[half]
    asked = labels if ask is None else torch.as_tensor(ask)[half]
    made = draw(pipeline, asked.tolist(), seed=1_000_000)
    distance, value = classifier_frechet(classifier, real[half], made)
    _, floor = real_vs_real(classifier, real, count=len(half))
    nearest, _ = nearest_neighbour_distance(made, real)
    return {
        "images": len(half),
        "class_agreement": class_agreement(classifier, made, labels),
        "classifier_accuracy_held_out": facts["accuracy"],
        "distance": distance,
        "distance_samples_to_real": value,
        "distance_real_to_real": floor,
        "nearest_training_image_rmse": float(nearest.mean()),
    }


def describe(summary: dict[str, Any]) -> str:
    """The summary in words."""
    t, g = summary["tokenizer"], summary["generator"]
    return f"""# Quickstart: {summary["seconds"]:.0f} seconds

| | |
|---|---|
| tokenizer: PSNR on the training images | {t["psnr"]:.1f} dB |
| tokenizer: codebook in use | {t["use"]:.0%} |
| samples that the classifier gives the class asked for | {g["class_agreement"]:.0%} of {g["images"]} |
| the classifier's own accuracy on held-out real images | {g["classifier_accuracy_held_out"]:.0%} |
| {g["distance"]}, samples to real | {g["distance_samples_to_real"]:.2f} |
| the same, real to real (two halves) | {g["distance_real_to_real"]:.2f} |
| distance of a sample to its nearest training image (RMSE in [-1, 1], mean) | \
{g["nearest_training_image_rmse"]:.2f} |

samples.png: a row a class. reconstructions.png: originals above reconstructions. curves_*.png: the losses.
With so few images and minutes a model mostly recalls what it saw; the last row says how nearly.
"""
