"""Sweeps over guidance, temperatures and steps: one evaluation per point and a plot of FID over Inception score."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskgen.evaluation.fid.report import Report
from maskgen.evaluation.fid.sampling import Sampling

SWEPT = ("guidance", "temperature", "choice_temperature", "steps")


def parse_sweep(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``["guidance=1,2,3", "choice_temperature=1,2"]`` -> the values of each setting.

    Raises:
        ValueError: a setting is unknown or occurs twice, or a value is not a number.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in SWEPT or name in found:
            raise ValueError(f"cannot sweep {text!r}; give each of {', '.join(SWEPT)} once, as guidance=1,2,3")
        try:
            found[name] = [int(v) if name == "steps" else float(v) for v in values.split(",")]
        except ValueError as error:
            raise ValueError(f"cannot sweep {text!r}: {error}; give numbers with commas, as guidance=1,2,3") from error
    return found


def sweep(
    values: Mapping[str, Sequence[Any]],
    sampling: Sampling,
    evaluate: Callable[[Sampling], Report | None],
    out: Path,
) -> list[dict[str, Any]]:
    """Evaluate every combination of `values`.

    It writes ``out.json`` (settings and metrics per point), ``out/SETTINGS.json`` (the full report of each point) and,
    if there are a distance and a score, ``out.png``; `out` is the path without its suffix.

    Returns:
        The points; empty in all processes of a launch but the first.
    """
    points: list[dict[str, Any]] = []
    for combination in itertools.product(*values.values()):
        settings: dict[str, Any] = dict(zip(values, combination))
        report = evaluate(replace(sampling, **settings))
        if report is None:
            continue
        name = "_".join(f"{key}={value:g}" for key, value in settings.items())
        report.save(out / f"{name}.json")
        points.append({"settings": settings, "metrics": report.metrics, "count": report.samples["count"]})
    if points:
        out.with_suffix(".json").write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")
        plot(points, out.with_suffix(".png"))
    return points


def plot(points: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Plot the distance over the score, with one line per value of the settings after the first.

    The best points are at the lower right.

    Returns:
        The path, or None if the distance or the score is missing.
    """
    distance, score = (
        next((name for name in points[0]["metrics"] if any(part in name for part in parts)), None)
        for parts in (("fid", "frechet_distance"), ("score",))
    )
    if distance is None or score is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    first, *others = points[0]["settings"]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        label = ", ".join(f"{key} {point['settings'][key]:g}" for key in others) or first
        lines.setdefault(label, []).append(point)
    for label, line in lines.items():
        x, y = ([point["metrics"][name]["value"] for point in line] for name in (score, distance))
        spread = [[abs(point["metrics"][distance].get("interval", (v, v))[side] - v) for point, v in zip(line, y)]
                  for side in (0, 1)]  # fmt: skip
        axes.errorbar(x, y, yerr=spread, marker="o", markersize=4, linewidth=1.2, capsize=2, label=label)
        for point, at in zip(line, zip(x, y)):
            axes.annotate(f"{point['settings'][first]:g}", at, textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set(xlabel=score, ylabel=distance, title=f"{points[0]['count']:,} images per point; numbers are {first}")
    axes.grid(alpha=0.3)
    if others:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
