"""Inpainting compared with a fill by the mean colour and with OpenCV's inpainting.

    python benchmarks/inpainting.py                 # needs opencv-python-headless; writes results/inpainting.json
    python benchmarks/inpainting.py --fills         # which fill keeps the known codes unchanged
    python benchmarks/tables.py                     # the tables of docs/editing.md

The bundled model is tested on three sets: emoji that it was trained on, their skin-tone variants (which are new to it
as images, but not as shapes), and its own samples. Every method gets the same images and masks. A small classifier of
the nine categories, trained on the emoji, judges the images after the paste, and its features give the distances to
the originals. `the tokenizer alone` pastes from the codes of the unmasked image, the best that codes can do.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from budget import machine, versions
from PIL import Image, ImageDraw
from torch import Tensor

from maskgen import MaskedImagePipeline
from maskgen.data.emoji import FILE, Emoji
from maskgen.evaluation.classifier import class_agreement, train_classifier
from maskgen.images import to_uint8
from maskgen.pipelines.generate import sample
from maskgen.tasks.images import Fill, filled, pasted
from maskgen.tasks.masks import token_mask

OUT = Path(__file__).parent / "results" / "inpainting.json"
MASKS = ("centre", "strokes", "half")
OURS = "maskgen"
VARIANTS: dict[str, dict[str, Any]] = {
    "without the class": {"class_labels": None},
    "mean fill before encoding": {"fill": "mean"},
    "grey fill before encoding": {"fill": "grey"},
    "dilation 1": {"dilation": 1},
    "no feathering": {"feather": 0},
}


def holes(kind: str, count: int, side: int) -> Tensor:
    """bool (count, side, side), True = hidden; strokes differ from image to image."""
    made = torch.zeros(count, side, side, dtype=torch.bool)
    if kind == "centre":
        made[:, side // 4 : -side // 4, side // 4 : -side // 4] = True
    elif kind == "half":
        made[:, :, side // 2 :] = True
    else:
        rng = np.random.default_rng(0)
        for i in range(count):
            canvas = Image.new("L", (side, side))
            pen = ImageDraw.Draw(canvas)
            for _ in range(3):  # a stroke is a random walk
                points = np.cumsum(np.vstack([rng.uniform(0, side, 2), rng.normal(0, side / 4, (4, 2))]), 0)
                pen.line([tuple(p) for p in points.clip(0, side - 1)], fill=255, width=side // 10, joint="curve")
            made[i] = torch.from_numpy(np.asarray(canvas) > 0)
    return made


def opencv(pixels: Tensor, hidden: Tensor, method: str) -> Tensor:
    """OpenCV's inpainting of 8-bit images with a radius of 3 pixels."""
    import cv2

    flag = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}[method]
    pairs = zip(to_uint8(pixels), hidden.numpy().astype(np.uint8) * 255)
    made = np.stack([cv2.inpaint(np.ascontiguousarray(image[..., ::-1]), hole, 3, flag) for image, hole in pairs])
    return torch.from_numpy(made[..., ::-1].copy()).permute(0, 3, 1, 2) / 127.5 - 1


def inpaint(pipeline: Any, pixels: Tensor, hidden: Tensor, labels: list[int], **options: Any) -> Tensor:
    """Ours, 64 at a time, image i with seed i."""
    made = []
    for start in range(0, len(pixels), 64):
        some = slice(start, start + 64)
        images = pipeline.inpaint(
            [(p + 1) / 2 for p in pixels[some]],
            list(hidden[some]),
            **{"class_labels": labels[some], **options},
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(pixels[some]))],
            output_type="pixels",
        ).images
        made.append(images)
    return torch.cat(made)


Method = Callable[[Tensor, Tensor, list[int]], Tensor]


def ours(pipeline: Any, chosen: dict[str, dict[str, Any]]) -> dict[str, Method]:
    """Ours with the chosen options."""

    def with_options(options: dict[str, Any]) -> Method:
        return lambda pixels, hidden, labels: inpaint(pipeline, pixels, hidden, labels, **options)

    return {name: with_options(options) for name, options in chosen.items()}


def others(pipeline: Any) -> dict[str, Method]:
    """What ours is compared with."""

    def reconstructed(pixels: Tensor, hidden: Tensor, labels: list[int]) -> Tensor:
        with torch.no_grad():
            return pasted(pixels, hidden, pipeline.vqvae(pixels).pixels.clamp(-1, 1), 0)

    return {
        "mean fill": lambda pixels, hidden, labels: filled(pixels, hidden, fill="mean"),
        "OpenCV, Telea": lambda pixels, hidden, labels: opencv(pixels, hidden, "telea"),
        "OpenCV, Navier-Stokes": lambda pixels, hidden, labels: opencv(pixels, hidden, "navier-stokes"),
        "the tokenizer alone": reconstructed,
    }


def sets(pipeline: Any, count: int) -> dict[str, tuple[Tensor, Tensor, list[int]]]:
    """Set -> 8-bit pixels, categories (for the classifier), subcategories (for the pipeline)."""
    fine, coarse = (Emoji(groups=groups, variants=True) for groups in ("subcategory", "category"))
    with np.load(FILE) as data:
        variant = data["variant"]
    found = {}
    for name, rows in {"trained on": np.flatnonzero(~variant), "variants": np.flatnonzero(variant)}.items():
        chosen = [int(rows[i * len(rows) // count]) for i in range(min(count, len(rows)))]
        pixels = torch.stack([fine[i]["pixels"] for i in chosen])
        found[name] = (pixels, torch.as_tensor(coarse.labels[chosen]), [int(fine.labels[i]) for i in chosen])
    category = {int(f): int(c) for f, c in zip(fine.labels, coarse.labels)}
    labels = [i * len(fine.class_names) // count for i in range(count)]
    made = sample(pipeline, labels, seed=2_000_000)
    made = torch.from_numpy(to_uint8(made)).permute(0, 3, 1, 2) / 127.5 - 1
    found["its own samples"] = (made, torch.tensor([category[label] for label in labels]), labels)
    return found


def judge(classifier: Any, pixels: Tensor, made: Tensor, hidden: Tensor, categories: Tensor) -> dict[str, Any]:
    """Numbers of one method on one set under one mask."""
    made = torch.from_numpy(to_uint8(made)).permute(0, 3, 1, 2) / 127.5 - 1
    error = (made - pixels).square().mean(1)
    with torch.no_grad():
        apart = (classifier.features(made) - classifier.features(pixels)).norm(dim=1)
    known, hole = error[~hidden].double().mean().item(), error[hidden].double().mean().item()
    return {
        "class_agreement": class_agreement(classifier, made, categories),
        "feature_distance": float(apart.mean()),
        "psnr_known": None if known == 0 else 10 * math.log10(4 / known),  # None: infinite, not one byte differs
        "psnr_hidden": 10 * math.log10(4 / hole),
    }


def measure(count: int) -> Iterator[dict[str, Any]]:
    """What is known after every measurement: the classifier, and the entries so far."""
    classifier, facts = train_classifier(Emoji(), steps=200, progress=False)
    pipeline = MaskedImagePipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    scheduler = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    entries: list[dict[str, Any]] = []
    results = {"classifier": {"name": classifier.name, **facts}, "scheduler": scheduler, "entries": entries}
    data = sets(pipeline, count)
    for name, (pixels, categories, _) in data.items():
        agreement = class_agreement(classifier, pixels, categories)
        entries.append({"set": name, "mask": "none", "method": "original", "class_agreement": agreement})
    both = {**others(pipeline), **ours(pipeline, {OURS: {}})}
    plan = [(kind, name, both) for kind in MASKS for name in data]
    plan.append(("centre", "trained on", ours(pipeline, VARIANTS)))
    for kind, name, chosen in plan:
        pixels, categories, labels = data[name]
        hidden = holes(kind, len(pixels), pixels.shape[2])
        for method, make in chosen.items():
            start = time.process_time()
            made = make(pixels, hidden, labels)
            milliseconds = 1000 * (time.process_time() - start) / len(pixels)
            entry = {"set": name, "mask": kind, "method": method, "images": len(pixels)}
            entry |= {"hidden_share": float(hidden.float().mean()), "cpu_ms": milliseconds}
            entries.append(entry | judge(classifier, pixels, made, hidden, categories))
            yield results


@torch.no_grad()
def measure_fills(count: int) -> list[dict[str, Any]]:
    """Share of the known tokens whose code is that of the whole image, by fill and mask."""
    tokenizer, emoji = MaskedImagePipeline.from_pretrained().vqvae.eval(), Emoji()
    pixels = torch.stack([emoji[i * len(emoji) // count]["pixels"] for i in range(count)])
    codes, entries = tokenizer.encode(pixels), []
    for kind in MASKS:
        hidden = holes(kind, count, pixels.shape[2])
        known = ~token_mask(hidden, (codes.shape[1], codes.shape[2]))
        for fill in get_args(Fill):
            same = tokenizer.encode(filled(pixels, hidden, fill=fill)) == codes
            entries.append({"mask": kind, "fill": fill, "images": count, "same": float(same[known].float().mean())})
    return entries


def fills_table(results: dict[str, Any]) -> str:
    """Markdown: one row per mask, one column per fill."""
    lines = ["| mask | " + " | ".join(get_args(Fill)) + " |", "| --- |" + " ---: |" * len(get_args(Fill))]
    for kind in MASKS:
        same = {e["fill"]: e["same"] for e in results["entries"] if e["mask"] == kind}
        lines.append(f"| {kind} | " + " | ".join(f"{same[fill]:.0%}" for fill in get_args(Fill)) + " |")
    return "\n".join(lines) + f"\n\n{results['entries'][0]['images']} emoji; `{results['command']}`."


def table(results: dict[str, Any], mask: str) -> str:
    """Markdown: one row per method; class agreement, distance in features and Fréchet distance on each set."""
    entries = results["entries"]
    names = list(dict.fromkeys(e["set"] for e in entries))
    order = list(dict.fromkeys(e["method"] for e in entries if e["mask"] == mask))
    lines = ["| | " + " | ".join(names) + " | PSNR of known, hidden pixels | CPU ms |"]
    lines.append("| --- |" + " --- |" * len(names) + " --- | ---: |")

    def one(method: str, data: str, kind: str = mask) -> dict[str, Any] | None:
        return next((e for e in entries if (e["set"], e["mask"], e["method"]) == (data, kind, method)), None)

    for method in order:
        found = [one(method, data) for data in names]
        cells = [f"{e['class_agreement']:.0%}; {e['feature_distance']:.2f}" if e else "-" for e in found]
        e = found[0] or {}
        known = "infinite" if e["psnr_known"] is None else f"{e['psnr_known']:.1f} dB"
        cells += [f"{known}, {e['psnr_hidden']:.1f} dB", f"{e['cpu_ms']:.1f}"]
        lines.append(f"| {f'**{method}**' if method == OURS else method} | {' | '.join(cells)} |")
    whole = [(one("original", data, "none") or {})["class_agreement"] for data in names]
    lines.append(f"| the originals | {' | '.join(f'{share:.0%}; 0' for share in whole)} | | |")
    first = one(OURS, names[0]) or {}
    c, m = results["classifier"], results["machine"]
    foot = [
        f"{first['hidden_share']:.0%} of the pixels hidden, {first['images']} images a set; class agreement and",
        f"mean distance to the original in features, both of {c['name']} ({c['accuracy']:.0%} on held-out emoji).",
        f"PSNR and processor time on the first set. {m['cpu']}, {m['threads']} thread(s);",
        f"torch {results['versions']['torch']}, OpenCV {results['versions']['opencv-python-headless']};",
        f"`{results['command']}`.",
    ]
    return "\n".join([*lines, "", " ".join(foot)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=160, help="images of each set")
    parser.add_argument("--fills", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/inpainting.py", *sys.argv[1:]])}
    facts |= {"machine": machine(), "versions": versions("torch", "opencv-python-headless")}
    out = arguments.out or OUT.with_stem("inpainting-fills" if arguments.fills else "inpainting")
    if arguments.fills:
        facts["entries"] = measure_fills(arguments.count)
        out.write_text(json.dumps(facts, indent=1) + "\n")
        print(fills_table(facts))
        sys.exit()
    for results in measure(arguments.count):
        out.write_text(json.dumps(facts | results, indent=1) + "\n")
        print(results["entries"][-1], file=sys.stderr, flush=True)
    for kind in MASKS:
        print(table(facts | results, kind) + "\n")
