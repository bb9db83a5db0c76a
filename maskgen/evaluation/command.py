"""What `maskgen evaluate` runs: an evaluation of samples, a sweep of them, or an evaluation of reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from maskgen.data.source import open_dataset
from maskgen.evaluation.classifier import classifier_extractor, load_classifier
from maskgen.evaluation.fid.evaluate import METRICS, evaluate, is_pipeline
from maskgen.evaluation.fid.inception import NAMES, RESIZES, STANDARD, load_extractor, sha256_of, weights_file
from maskgen.evaluation.fid.report import Report
from maskgen.evaluation.fid.sampling import Sampling
from maskgen.evaluation.fid.sources import Reading, digest_of
from maskgen.evaluation.fid.sweep import parse_sweep, sweep
from maskgen.evaluation.reconstruction import reconstruct
from maskgen.pipelines.encode import describe
from maskgen.pipelines.generate import pick_device
from maskgen.pipelines.store import load_tokenizer
from maskgen.registry import choose

RECONSTRUCTION = ("psnr", "ssim", "lpips", "rfid")


def run(
    samples: str,
    reference: str | None,
    metrics: str | None,
    *,
    sampling: Sampling,
    reading: Reading,
    sweeps: Sequence[str] = (),
    weights: str | None = None,
    extractor: str = STANDARD,
    classifier: str | None = None,
    resize: str = "tensorflow",
    lpips: str | None = None,
    few: bool = False,
    bootstrap: int = 20,
    batch_size: int = 64,
    work: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> str:
    """Run an evaluation and write its report to `out`.

    See :func:`.fid.evaluate.evaluate` and :func:`.reconstruction.reconstruct` for the arguments not listed here.

    Args:
        metrics: names separated by commas; None computes all that the other arguments allow.
        classifier: folder of a small classifier, whose features replace Inception's.
        sweeps: see :func:`.fid.sweep.parse_sweep`.

    Returns:
        The text to print. It is empty in all processes but the main one.

    Raises:
        ValueError: the metrics do not fit together, or need a reference or a pipeline that was not given.
    """
    asked = [name.strip() for name in metrics.split(",")] if metrics else list(METRICS if reference else ("is",))
    table = dict.fromkeys((*NAMES, *RECONSTRUCTION))
    for name in asked:
        choose(table, name, "metric")
    where = pick_device(device)
    rebuilt = [name for name in asked if name in RECONSTRUCTION]
    if rebuilt:
        if len(rebuilt) < len(asked) or sweeps:
            raise ValueError(
                f"{', '.join(rebuilt)} measure a tokenizer's reconstructions, {', '.join(NAMES)} and sweeps measure "
                "samples; ask for one kind at a time"
            )
        if reference is None:
            raise ValueError(f"{', '.join(rebuilt)} need the images to reconstruct: maskgen evaluate TOKENIZER DATA")
        report: Report | None = reconstructed(samples, reference, rebuilt, reading, weights, lpips, batch_size, where)
        return _saved(report, out)
    one = partial(
        evaluate,
        samples,
        reference,
        asked,
        _network(extractor, weights, where, resize, classifier),
        reading=reading,
        few=few,
        bootstrap=bootstrap,
        batch_size=batch_size,
        work=work,
        device=where,
    )
    if not sweeps:
        return _saved(one(sampling=sampling), out)
    if not is_pipeline(samples):
        raise ValueError(f"a sweep needs a pipeline to sample from, and {samples} is none")
    stem = (out or Path("evaluation.json")).with_suffix("")
    points = sweep(parse_sweep(sweeps), sampling, lambda sampling: one(sampling=sampling), stem)
    lines = [
        " ".join(f"{key}={value:g}" for key, value in point["settings"].items())
        + ": "
        + ", ".join(f"{name} = {result['value']:.4f}" for name, result in point["metrics"].items())
        for point in points
    ]
    return "\n".join([*lines, f"{stem}.json, {stem}/"]) if points else ""


def _network(extractor: str, weights: str | None, device: Any, resize: str, classifier: str | None) -> Any:
    """A function that loads the network. Inception's weights are read only once there are images to measure."""
    choose(RESIZES, resize, "resize")
    if classifier is None:
        return partial(load_extractor, extractor, weights, device, resize)
    if weights is not None or extractor != STANDARD or resize != "tensorflow":
        raise ValueError("a classifier replaces Inception, so leave out --weights, --extractor and --resize")
    return partial(classifier_extractor, load_classifier(classifier), device)


def reconstructed(
    tokenizer: str,
    data: str,
    metrics: Sequence[str],
    reading: Reading,
    weights: str | None,
    lpips: str | None,
    batch_size: int,
    device: Any,
) -> Report:
    """The metrics of `maskgen reconstruct`, as a report that can be compared with others."""
    model = load_tokenizer(tokenizer).to(device)
    dataset = open_dataset(data, reading.crop)
    found = reconstruct(
        model,
        dataset,
        limit=reading.limit or 50_000,
        batch_size=batch_size,
        lpips=(lpips or "download") if "lpips" in metrics else None,
        inception=(weights or "download") if "rfid" in metrics else None,
    )
    for name in metrics:
        if name in found.left_out:
            raise ValueError(f"{name} cannot be measured: {found.left_out[name]}")
    kept = ("lpips", "frechet_distance", *metrics)
    extractor = None
    if "rfid" in metrics:
        given = None if weights in (None, "download") else weights
        digest = sha256_of(weights_file(given))
        extractor = {"name": STANDARD, "weights_sha256": digest, "layers": ["2048"], "resize": RESIZES["tensorflow"]}
    return Report(
        metrics={name: {"value": value} for name, value in found.metrics.items() if name.startswith(kept)},
        samples={
            "name": tokenizer,
            "kind": "reconstructions",
            "count": found.count,
            "size": found.sizes,
            "tokenizer": found.tokenizer,
        },
        reference={
            "name": data,
            "kind": "data set",
            "count": found.count,
            "described_sha256": digest_of(describe(dataset)),
        },
        extractor=extractor,
        reading=vars(reading),
        batch_size=batch_size,
        device=device.type,
        warnings=found.notes,
    )


def _saved(report: Report | None, out: Path | None) -> str:
    if report is None:
        return ""
    return str(report) if out is None else f"{report}\n{report.save(out)}"
