"""Reports of evaluations: the results with all their settings, and whether two reports may be compared."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

UNBIASED = ("kid", "clean_kid", "kernel_distance", "fid_infinity", "frechet_distance_infinity")
OF_PIXELS = ("psnr", "ssim", "lpips")
PACKAGES = ("torch", "torch-fidelity", "torchvision", "torchmetrics", "numpy", "pillow", "diffusers")


def versions() -> dict[str, str]:
    """The versions of maskgen, Python and the libraries that results may depend on."""
    import maskgen

    found = {"maskgen": maskgen.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


@dataclass
class Report:
    """The result of an evaluation.

    Args:
        metrics: name -> ``value`` and, where it has them, ``std``, ``interval`` and settings.
        samples, reference: ``name``, ``kind``, ``count``, ``pixels_sha256`` (for a file of statistics ``file_sha256``;
            for reconstructions ``described_sha256`` of the names, labels and a few images), ``size`` [h, w], changes of
            the images (``notes``), and for a pipeline its settings (``sampling``).
        extractor: ``name``, ``weights_sha256``, ``layers``, ``resize``; None if both sides are ready-made.
        reading: ``crop``, ``grey``, ``limit``.
        batch_size, device: settings that change only the rounding of the last digits.
        versions: see :func:`versions`.
        warnings: what a reader must be careful about.
    """

    metrics: dict[str, dict[str, Any]]
    samples: dict[str, Any]
    reference: dict[str, Any] | None
    extractor: dict[str, Any] | None
    reading: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    device: str | None = None
    versions: dict[str, str] = field(default_factory=versions)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json() + "\n", encoding="utf-8")
        return path

    def __str__(self) -> str:
        """The results in one line."""
        numbers = ", ".join(f"{name} = {_shown(result)}" for name, result in self.metrics.items())
        counts = f"{_count(self.samples)} images"
        if self.reference is not None:
            counts += f" against {_count(self.reference)}"
        line = f"{numbers} ({counts})"
        return line + (f"; careful: {'; '.join(self.warnings)}" if self.warnings else "")


def _count(side: Mapping[str, Any]) -> str:
    return "an unknown number of" if side.get("count") is None else f"{side['count']:,}"


def _shown(result: Mapping[str, Any]) -> str:
    text = f"{result['value']:.4f}"
    if "interval" in result:
        return f"{text} [{result['interval'][0]:.4f}, {result['interval'][1]:.4f}]"
    return f"{text} ± {result['std']:.4f}" if "std" in result else text


@dataclass
class Comparison:
    """Whether the results of two reports may be compared: metric -> reasons against it, empty if they may.

    `remarks` are differences that are usually the purpose of a comparison or that only change the last digits.
    """

    a: dict[str, Any]
    b: dict[str, Any]
    reasons: dict[str, list[str]]
    remarks: list[str]

    def __str__(self) -> str:
        lines = []
        for name, reasons in self.reasons.items():
            if reasons:
                lines += [f"{name}: NOT comparable", *(f"  - {reason}" for reason in reasons)]
            else:
                x, y = (report["metrics"][name] for report in (self.a, self.b))
                lines.append(f"{name}: comparable, {_shown(x)} and {_shown(y)}{_overlap(x, y)}")
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])


def _overlap(x: Mapping[str, Any], y: Mapping[str, Any]) -> str:
    if "interval" not in x or "interval" not in y:
        return ""
    apart = x["interval"][1] < y["interval"][0] or y["interval"][1] < x["interval"][0]
    return "; the intervals are apart" if apart else "; the intervals overlap"


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Compare two reports on disk.

    Raises:
        ValueError: a file is not a report, or the reports have no metric in common.
    """
    left, right = _load(a), _load(b)
    shared = [name for name in left["metrics"] if name in right["metrics"]]
    if not shared:
        names = " and ".join(", ".join(report["metrics"]) for report in (left, right))
        raise ValueError(f"{a} and {b} have no metric in common: {names}; other weights give a metric another name")
    reasons = {name: list(_reasons(name, left, right)) for name in shared}
    return Comparison(left, right, reasons, list(_remarks(left, right)))


def _load(path: str | Path) -> dict[str, Any]:
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); give two reports of `maskgen evaluate`") from error
    if not isinstance(held, dict) or (missing := {f.name for f in fields(Report)} - set(held)):
        what = ", ".join(sorted(missing)) if isinstance(held, dict) else "everything"
        raise ValueError(f"{path} is not a report of `maskgen evaluate`: it lacks {what}")
    return held


def _reasons(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Why the results of a metric cannot be compared; the bias of most metrics depends on the number of samples."""
    if not name.startswith(OF_PIXELS):  # these use no network, or the one in the name
        yield from _networks(a["extractor"], b["extractor"])
    for key in ("crop", "grey"):
        yield from _differs(key, a["reading"].get(key), b["reading"].get(key))
    x, y = a["samples"], b["samples"]
    yield from _differs("size of the images (h, w)", x.get("size"), y.get("size"))
    if not name.startswith(UNBIASED):
        yield from _differs("number of samples", x.get("count"), y.get("count"))
    protocols = [side.get("sampling", {}).get("classes") for side in (x, y)]
    if None not in protocols:
        yield from _differs("protocol of the classes", *protocols)
    for key in ("splits", "subsets", "subset_size", "neighbours", "points"):
        yield from _differs(key, a["metrics"][name].get(key), b["metrics"][name].get(key))
    if "score" not in name:
        yield from _references(a["reference"] or {}, b["reference"] or {})


def _networks(x: Mapping[str, Any] | None, y: Mapping[str, Any] | None) -> Iterator[str]:
    if x is None or y is None:
        yield "a report has ready-made statistics on both sides, whose network and resize are unknown"
        return
    for key in ("name", "weights_sha256", "layers", "resize"):
        yield from _differs(f"extractor's {key}", x.get(key), y.get(key))


def _references(x: Mapping[str, Any], y: Mapping[str, Any]) -> Iterator[str]:
    known = [key for key in ("pixels_sha256", "file_sha256", "described_sha256") if x.get(key) and y.get(key)]
    if not known:
        yield (
            f"references: {x.get('name')} and {y.get('name')} are identified in different ways (images and a file), "
            "so they may not be the same"
        )
    for key in known:
        yield from _differs(f"reference's {key}", x[key], y[key])


def _remarks(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Differences that are usually the purpose of a comparison, or that only change the last digits."""
    x, y = (side.get("sampling") or {} for side in (a["samples"], b["samples"]))
    for key in sorted(set(x) & set(y) - {"classes", "count"}):
        yield from _differs(f"sampling's {key}", x[key], y[key])
    for key in ("batch_size", "device"):
        yield from _differs(f"{key} (rounding)", a.get(key), b.get(key))
    for key in sorted(set(a["versions"]) | set(b["versions"])):
        yield from _differs(f"version of {key}", a["versions"].get(key), b["versions"].get(key))
    digest = a["samples"].get("pixels_sha256")
    if digest is not None and digest == b["samples"].get("pixels_sha256"):
        yield "the samples are the same, pixel by pixel"


def _differs(what: str, x: Any, y: Any) -> Iterator[str]:
    if x != y:
        yield f"{what}: {x} and {y}"
