"""The main path from end to end on the bundled images: train both stages, generate, evaluate."""

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
from maskgen.pipelines.generate import sample
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.store import load_tokenizer
from maskgen.training.run import run_config


def quickstart(out: Path) -> Path:
    """Train, generate and evaluate in the folder `out`. A second call resumes a stopped one.

    The folder then holds ``samples.png`` (one row per class), ``reconstructions.png``, ``curves_tokenizer.png``,
    ``curves_generator.png``, ``summary.json``, ``summary.md`` and the two runs.

    Returns:
        The path of ``summary.md``.
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
    shown = sample(pipeline, [i for i in range(len(names)) for _ in range(10)], seed=0)
    save(grid(shown, 10, row_names=names), out / "samples.png")
    summary: dict[str, Any] = {"tokenizer": measure(tokenizer, dataset), "generator": judge(pipeline, dataset)}
    summary["seconds"] = round(time.perf_counter() - begin, 1)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = describe(summary)
    (out / "summary.md").write_text(text)
    print("\n" + text)
    return out / "summary.md"


def judge(pipeline: Any, dataset: Any, ask: Any = None) -> dict[str, Any]:
    """Compare samples with real images, by a classifier trained on the real images.

    The samples have the classes of a random half of the real images.

    Args:
        pipeline: the image pipeline to evaluate.
        dataset: real images, with the classes that the classifier learns.
        ask: the pipeline's label of each real image; None takes the labels of the data set.

    Returns:
        The number of samples, class agreement, the classifier's held-out accuracy, Fréchet distances of its features
        (samples to real, real to real), and the mean RMSE of a sample to its nearest training image.
    """
    classifier, facts = train_classifier(dataset, steps=200)
    half = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[: len(dataset) // 2].tolist()
    real = torch.stack([dataset[i]["pixels"] for i in range(len(dataset))])
    labels = torch.as_tensor(dataset.labels)[half]
    asked = labels if ask is None else torch.as_tensor(ask)[half]
    made = sample(pipeline, asked.tolist(), seed=1_000_000)
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
    """The summary as a Markdown table."""
    t, g = summary["tokenizer"], summary["generator"]
    return f"""# Quickstart: {summary["seconds"]:.0f} seconds

| | |
|---|---|
| tokenizer: PSNR on the training images | {t["psnr"]:.1f} dB |
| tokenizer: share of the codebook in use | {t["use"]:.0%} |
| samples that the classifier assigns to their class | {g["class_agreement"]:.0%} of {g["images"]} |
| the classifier's own accuracy on held-out real images | {g["classifier_accuracy_held_out"]:.0%} |
| {g["distance"]}, samples to real images | {g["distance_samples_to_real"]:.2f} |
| the same distance between two halves of the real images | {g["distance_real_to_real"]:.2f} |
| distance of a sample to its nearest training image (RMSE in [-1, 1], mean) | \
{g["nearest_training_image_rmse"]:.2f} |

samples.png has one row per class. reconstructions.png shows originals above reconstructions.
curves_*.png show the losses. A model that trains for minutes on so few images mostly recalls them;
the last row of the table measures how closely.
"""
