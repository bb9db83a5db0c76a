"""What do representation learners learn in a fixed time? Probes of their features, compared with controls.

    apt-get install dataset-fashion-mnist
    python benchmarks/representation.py            # all rows without a result in results/representation.json
    python benchmarks/tables.py                    # the table of docs/methods.md

Every method trains on the 60,000 images of Fashion-MNIST without labels, for the same processor time and with the same
encoder (width 128, 4 layers, 16 patches of 7x7 pixels). A linear probe (CAPI's sweep with a few hundred steps and
standardised features) then reads the mean of the last layer's patch tokens, with 1% and 10% of the labels, and is
tested on the 10,000 test images. The controls are raw pixels and the same networks with random weights; the gain is the
difference to the best control. MAGE works on the 49 codes of a small tokenizer, which trains first for the same time,
and is conditioned on classes. Its checkpoint is probed without a class, and its samples are measured with and without.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from budget import machine, train_for, versions
from entries import add_entry, read, slug

from maskgen.data.arrays import FashionMNIST
from maskgen.data.subset import Subset
from maskgen.evaluation.classifier import class_agreement, classifier_frechet, real_vs_real, train_classifier
from maskgen.evaluation.probes import sweep
from maskgen.evaluation.probes.features import Features, raw_pixels
from maskgen.evaluation.probes.few_labels import few_labels
from maskgen.evaluation.probes.probing import features_of
from maskgen.images import grid, save
from maskgen.pipelines.backbone import Backbone, load_backbone
from maskgen.pipelines.encode import encode_dataset
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.store import load_tokenizer
from maskgen.training.stages.representation import patches
from maskgen.transformer.model import MaskTransformer

HERE = Path(__file__).parent
OUT = HERE / "results" / "representation.json"
IMAGE = HERE.parent / "docs" / "images" / "mage-fashion.png"
DATA = {"type": "fashion_mnist", "size": 28}
PATCH, GRID = 7, (4, 4)
ENCODER: dict[str, Any] = {
    "width": 128,
    "depth": 4,
    "num_registers": 1,
    "positions": {"rope": False},
    "block": {"heads": 4, "mlp": "gelu", "qk_norm": "none"},
}
DECODER = {"decoder": {"depth": 2, "width": 64, "heads": 4}}
PROBE = {"steps": 400, "batch_size": 256, "standardise": True, "progress": False}
SHARES = {"1%": 0.01, "10%": 0.1}
TRAINING = {"batch_size": 128, "learning_rate": 2e-3, "warmup_steps": 100, "betas": [0.9, 0.95], "weight_decay": 0.05}
PIXELS = {"type": "pixels", "patch": PATCH, "normalise": "patch"}
MAE = {"ratio": {"type": "fixed", "ratio": 0.5}, "dropping": "all", "target": PIXELS, "objective": "mse"}
BLOCKS = {"ratio": {"type": "fixed", "ratio": 0.4}, "sampler": {"type": "block", "min_block": 2}}
PROTOTYPES = 512
TEACHER = {"type": "ema", "momentum": 0.99, "final": 1.0}
CENTROIDS, CODES = "CENTROIDS", "CODES"  # stand for what the tokenizers below make
METHODS: dict[str, dict[str, Any]] = {
    "MAE": {"model": {**ENCODER, **DECODER}, "masking": MAE},
    "MAGE": {
        "type": "generator",
        "tokenizer": CODES,
        "model": {
            **ENCODER,
            "conditioning": {"pooled": "in_context"},
            "decoder": {"depth": 2, "heads": 4, "pad": "class_token"},
        },
        "conditioning": [{"type": "class", "dropout": 0.5}],
        "masking": {"ratio": {"type": "truncated_normal"}, "dropping": {"type": "share", "share": 0.5}},
        "scheduler": {"num_inference_steps": 12, "guidance_scale": 1.0},
    },
    "BEiT on k-means codes": {
        "model": ENCODER,
        "masking": {**BLOCKS, "target": "codes", "objective": {"type": "cross_entropy", "label_smoothing": 0.0}},
        "target_tokenizer": CENTROIDS,
    },
    "MaskFeat": {
        "model": ENCODER,
        "masking": {**BLOCKS, "target": {"type": "hog", "patch": PATCH, "cell": PATCH}, "objective": "mse"},
    },
    "HPM": {
        "model": {**ENCODER, **DECODER, "branch": {"kind": "decoder", "out_dim": 64}},
        "teacher": TEACHER,
        "masking": {
            **MAE,
            "sampler": {"type": "loss", "start": 0.0, "end": 0.5},
            "auxiliary": [{"type": "loss_prediction", "kind": "relative"}],
        },
    },
    "ColorMAE, green": {
        "model": {**ENCODER, **DECODER},
        "masking": {**MAE, "sampler": {"type": "noise", "color": "green"}},
    },
    "SimMIM": {
        "model": ENCODER,
        "masking": {
            "ratio": {"type": "fixed", "ratio": 0.6},
            "target": {**PIXELS, "normalise": "none"},
            "objective": "l1",
        },
    },
    "iBOT": {
        "model": {
            **ENCODER,
            "head": {"type": "projector", "hidden": 256, "bottleneck": 64},
            "cls_token_head": True,
        },
        "teacher": TEACHER,
        "masking": {
            "ratio": {"type": "mixture"},
            "sampler": {"type": "block", "min_block": 2, "least": 0},
            "target": {"type": "centred_softmax", "dim": PROTOTYPES},
            "objective": {"type": "soft_cross_entropy", "reduction": "image"},
            "auxiliary": [{"type": "class_distillation", "prototypes": PROTOTYPES}],
        },
    },
}
AUGMENT = {"iBOT": {"type": "views", "count": 2, "scale": [0.4, 1.0], "colour": 0.0}, "MAGE": {}}
CODER = {"channels": 1, "width": 32, "multipliers": [1, 2], "blocks": 1, "patch": 2}
TOKENIZERS: dict[str, dict[str, Any]] = {
    CENTROIDS: {
        "stage": {
            "type": "centroids",
            "tokenizer": {
                "encoder": {"type": "patch", "patch": PATCH, "channels": 1},
                "quantizer": {"codebook_size": 256, "dim": PATCH**2},
                "decoder": {"type": "patch", "patch": PATCH, "channels": 1},
            },
            "points": 50_000,
        },
        "training": {"steps": 15},
    },
    CODES: {
        "stage": {
            "type": "tokenizer",
            "tokenizer": {"encoder": CODER, "quantizer": {"codebook_size": 128, "dim": 16}, "decoder": CODER},
        },
        "training": {"batch_size": 64, "learning_rate": 1e-3, "weight_decay": 0.01},
    },
}


@cache
def labelled() -> tuple[Subset, FashionMNIST]:
    """The images whose labels the probes see, as many of each class, and those of the test."""
    train, test = FashionMNIST(size=28), FashionMNIST(split="test", size=28)
    return Subset(train, few_labels(torch.from_numpy(train.labels), max(SHARES.values())).tolist()), test


def probes(train: Features, test: Features) -> dict[str, float]:
    """Top-1 by the share of labels."""
    found, all_of = {}, max(SHARES.values())
    for name, share in SHARES.items():
        some = train.select(few_labels(train.labels, share / all_of))
        found[name] = round(sweep(some, test, **PROBE).accuracy["top1"], 4)
    return found


def probe(network: Backbone) -> dict[str, float]:
    return probes(*(features_of(network.eval(), side, batch_size=256, progress=False) for side in labelled()))


def controls() -> dict[str, dict[str, float]]:
    """Raw pixels, and encoders with random weights."""
    found = {"raw pixels": probes(*(raw_pixels(side, progress=False) for side in labelled()))}
    for seed in range(2):
        torch.manual_seed(seed)
        network = MaskTransformer(GRID, tokens={"dim": PATCH**2}, **ENCODER)
        found[f"random weights, seed {seed}"] = probe(Backbone(patches(PATCH, 1), network))
    return found


def tokenizer(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train it where it is not yet there; what that took."""
    facts = options.work / name.lower() / "trained.json"
    if not facts.is_file():
        config = {**TOKENIZERS[name], "data": DATA, "folder": str(options.work)}
        trained = train_for(options.budget, name.lower(), config, options.work)
        facts.write_text(json.dumps(trained))
    return json.loads(facts.read_text())


def configuration(method: str, seed: int, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Of the run, and how the tokenizer that it needs was trained."""
    text, trained, data = json.dumps(METHODS[method]), None, DATA
    for name in TOKENIZERS:
        if json.dumps(name) in text:
            trained = tokenizer(name, options)
            text = text.replace(json.dumps(name), json.dumps(str(options.work / name.lower())))
    stage = json.loads(text)
    if stage.get("type") == "generator":
        cache_of = options.work / "tokens"
        encode_dataset(load_tokenizer(stage["tokenizer"]).eval(), FashionMNIST(size=28), cache_of, batch_size=256)
        data = {"type": "tokens", "path": str(cache_of)}
    else:
        stage |= {"type": "representation", "tokens": {"type": "patches", "patch": PATCH, "channels": 1}}
    training = {**TRAINING, "ema": 0.0, "seed": seed, "log_every": 100}
    augment = AUGMENT.get(method, {"flip": 0.5})
    config = {"stage": stage, "data": data, "augment": augment, "training": training, "folder": str(options.work)}
    return config, trained


def one(method: str, seed: int, options: argparse.Namespace) -> None:
    """Train, probe, and write the row."""
    config, trained = configuration(method, seed, options)
    name = f"{slug(method)}-{seed}"
    entry: dict[str, Any] = {"method": method, "seed": seed, "tokenizer": trained, "probe": PROBE}
    entry["training"] = train_for(options.budget, name, config, options.work)
    entry["top1"] = probe(load_backbone(options.work / name))
    if METHODS[method].get("type") == "generator":
        entry["samples"] = samples(options.work / name, IMAGE if seed == 0 else None)
    entry |= {"machine": machine(), "versions": versions("torch"), "command": options.command}
    add_entry(options.out, f"{method}/{seed}", entry)
    print(f"{method}, seed {seed}: {entry['top1']}", file=sys.stderr, flush=True)


@torch.no_grad()
def samples(run: Path, image: Path | None, count: int = 500) -> dict[str, Any]:
    """A small classifier's verdict on `count` images drawn with a class and as many without; a sheet of some."""
    pipeline = MaskedImagePipeline.from_pretrained(run)
    pipeline.set_progress_bar_config(disable=True)
    labels = torch.arange(count) % len(pipeline.class_names)

    def drawn(classes: list[int] | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        copies = 1 if classes else count
        return pipeline(classes, copies, generator=generator, output_type="pixels").images

    with torch.enable_grad():
        classifier, facts = train_classifier(labelled()[0], steps=400, progress=False)
    real = torch.stack([labelled()[1][i]["pixels"] for i in range(2 * count)])
    conditional, unconditional = drawn(labels.tolist()), drawn(None)
    if image:
        order = labels.argsort(stable=True).view(len(pipeline.class_names), -1)[:, :10].flatten()
        names = [*pipeline.class_names, "no class", "no class"]
        save(grid(torch.cat([conditional[order], unconditional[:20]]), 10, 2, names), image)
    name, noise = real_vs_real(classifier, real, count)
    return {
        "count": count,
        "distance": name,
        "real": noise,
        "with a class": classifier_frechet(classifier, real[:count], conditional)[1],
        "without": classifier_frechet(classifier, real[:count], unconditional)[1],
        "agreement": class_agreement(classifier, conditional, labels),
        "classifier": facts,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: the probes of each method, and its gain over the best control."""
    control = results["controls"]["top1"]
    best = {share: max(found[share] for found in control.values()) for share in SHARES}
    heads = "".join(f" | {share} of the labels | gain" for share in SHARES)
    lines = [f"| method{heads} | steps |", "| --- |" + " --- | ---: |" * len(SHARES) + " ---: |"]
    for name, found in control.items():
        lines.append(f"| {name} | " + " | | ".join(f"{found[share]:.1%}" for share in SHARES) + " | | |")
    runs = {method: [e for key, e in results.items() if key.startswith(f"{method}/")] for method in METHODS}
    for method, entries in runs.items():
        if entries:
            line = f"| {method} |"
            for share in SHARES:
                found = [entry["top1"][share] for entry in entries]
                gain = 100 * (statistics.mean(found) - best[share])
                line += f" {', '.join(f'{value:.1%}' for value in found)} | {gain:+.1f} |"
            lines.append(f"{line} {statistics.median(entry['training']['steps'] for entry in entries):,.0f} |")
    first = next(entry for key, entry in results.items() if key != "controls")
    where = f"{first['machine']['cpu']}, {first['machine']['threads']} thread(s), torch {first['versions']['torch']}"
    lines += ["", f"{first['training']['budget_seconds']:g} s of processor time a run, one number a seed. {where}."]
    return "\n".join([*lines, *(said(entry) for entry in runs["MAGE"])])


def said(entry: dict[str, Any]) -> str:
    """What the samples of MAGE's probed checkpoint are worth."""
    found = entry["samples"]
    accuracy = found["classifier"]["accuracy"]
    return (
        f"MAGE's checkpoint of seed {entry['seed']} also draws: a classifier ({accuracy:.1%} right on held-out "
        f"images) finds the class asked for in {found['agreement']:.1%} of {found['count']}; Fréchet distance in its "
        f"features {found['with a class']:.1f} with a class, {found['without']:.1f} without, {found['real']:.1f} "
        "between real ones."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=90, help="processor seconds of training (default: 90)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=["controls", *METHODS], metavar="ROW", help="; ".join(METHODS))
    parser.add_argument("--work", type=Path, default=Path("/tmp/representation"), help="scratch folder")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.command = shlex.join(["python", "benchmarks/representation.py", *sys.argv[1:]])
    torch.set_num_threads(1)
    if "controls" in (arguments.only or ["controls"]) and "controls" not in read(arguments.out):
        add_entry(arguments.out, "controls", {"top1": controls(), "probe": PROBE})
    for number in arguments.seeds:
        for chosen in METHODS:
            if chosen in (arguments.only or METHODS) and f"{chosen}/{number}" not in read(arguments.out):
                one(chosen, number, arguments)
    print(table(json.loads(arguments.out.read_text())))
