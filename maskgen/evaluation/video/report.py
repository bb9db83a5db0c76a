"""The report on predicted videos against the true ones, which `maskgen evaluate-video` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from maskgen.data.pixels import check_size
from maskgen.data.unreadable import Unreadable
from maskgen.data.video_sources import ArrayVideos, VideoSource
from maskgen.data.videos import open_videos, to_clip
from maskgen.evaluation.reconstruction.report import LPIPS_SIDE, load_lpips
from maskgen.evaluation.video.fvd import ClipFeatures, clip_distance
from maskgen.evaluation.video.measures import METRICS, TRIVIAL, Metric, best_of, by_frame

Clip = Float[Tensor, "1 c t h w"]


@dataclass
class VideoReport:
    """What was compared, and the metrics.

    Args:
        predicted, truth: paths of the videos. Each path of `predicted` has one sample of every video.
        metrics: name -> ``mean`` over samples, clips and frames; with several samples ``best_of_N`` (for each clip the
            best sample by this metric alone) and ``of_the_mean`` (of the mean image of the samples); ``per_frame``,
            the mean of each frame; and ``unit``.
        distances: name -> ``value`` and everything that the value depends on.
        left_out: metric -> the reason why it was not computed.
    """

    predicted: list[str]
    truth: str
    clips: int
    context: int
    frames: int
    size: list[int]
    channels: int
    range: str = "pixels clipped to [-1, 1] and mapped to [0, 1]"
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    distances: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(vars(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    def __str__(self) -> str:
        samples = f" of {len(self.predicted)} samples" if len(self.predicted) > 1 else ""
        lines = [
            f"{self.clips} clips{samples}, {self.frames} frames after {self.context} of context, "
            f"{self.size[0]}x{self.size[1]} (h x w), {self.channels} channels"
        ]
        for name, found in self.metrics.items():
            numbers = ", ".join(
                f"{key} {found[key]:.4f}" for key in ("mean", "best_of_N", "of_the_mean") if key in found
            )
            lines.append(f"{name}: {numbers} ({found['unit']})")
        lines += [f"{name}: {found['value']:.4f}" for name, found in self.distances.items()]
        lines += [f"{name}: left out, {why}" for name, why in self.left_out.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@torch.no_grad()
def evaluate_videos(
    predicted: Sequence[str],
    truth: str,
    *,
    context: int = 0,
    size: int | list[int] | None = None,
    lpips: str | None = None,
    extractors: Sequence[Any] = (),
    with_context: bool = False,
    device: torch.device | str = "cpu",
) -> VideoReport:
    """Compare each predicted video with the true one.

    Args:
        predicted: folders or array files, as in :class:`maskgen.data.videos.Videos`; each has one sample of every
            video. "blank" and "copy-last" predict from the true context.
        truth: the true videos. Videos in folders are matched by name, others by order.
        context: number of first frames of the truth that were given to the model; they are not scored. The predicted
            videos may contain them or begin after them.
        size: resize all frames to this size. With None, predicted frames must have the size of the true ones.
        lpips: a local file of torchvision's VGG-16 weights, or "download"; None leaves LPIPS out.
        extractors: features for Fréchet distances, from :mod:`maskgen.evaluation.video.fvd`.
        with_context: compute these features on the true context frames followed by the predicted ones.

    Raises:
        ValueError: videos cannot be read, do not match, or are too short for the context.
    """
    _check(predicted, context, [extractor.name for extractor in extractors])
    true = _open(truth)
    made = {name: _open(name) for name in predicted if name not in TRIVIAL}
    sources = {name: _matched(source, name, true, truth) for name, source in made.items()}
    shape, channels = _shape(made, true, truth, size), true.channels
    frames = min(true.lengths) - context
    if frames < 1 or len(set(true.lengths)) > 1:
        raise ValueError(
            f"videos in {truth} have {sorted(set(true.lengths))[:5]} frames; all must have the same number, more than "
            f"the {context} of the context"
        )
    report = VideoReport(list(predicted), truth, len(true.names), context, frames, list(shape), channels)
    metrics = _metrics(lpips, min(shape), report)
    scores: dict[str, list[Tensor]] = {name: [] for name in metrics}
    of_mean: dict[str, list[Tensor]] = {name: [] for name in metrics}
    seen: list[tuple[list[list[Tensor]], list[Tensor]]] = [([[] for _ in predicted], []) for _ in extractors]
    for i in range(len(true.names)):
        whole = _read(true, i, shape, channels, device)
        given, wanted = whole[:, :, :context], whole[:, :, context:]
        samples = [_sample(name, sources, i, given, frames, shape, channels, device) for name in predicted]
        for name, metric in metrics.items():
            scores[name].append(torch.cat([metric.compute(sample, wanted) for sample in samples]).cpu())
            if len(samples) > 1:
                of_mean[name].append(metric.compute(torch.stack(samples).mean(0), wanted).cpu())
        for extractor, (fakes, reals) in zip(extractors, seen):
            reals.append(_features(extractor, whole if with_context else wanted))
            for fake, sample in zip(fakes, samples):
                fake.append(_features(extractor, torch.cat([given, sample], dim=2) if with_context else sample))
    for name, metric in metrics.items():
        report.metrics[name] = _summary(torch.stack(scores[name], dim=1), of_mean[name], metric)
    for extractor, (fakes, reals) in zip(extractors, seen):
        if len(reals) <= reals[0].shape[1]:
            report.notes.append(
                f"{extractor.name}: with {len(reals)} clips for {reals[0].shape[1]} features the covariance is "
                "rank-deficient and the distance is biased upwards"
            )
        values = [clip_distance(torch.cat(fake), torch.cat(reals)) for fake in fakes]
        report.distances[extractor.name] = {
            "value": sum(values) / len(values),
            **({"of_each_sample": values} if len(values) > 1 else {}),
            **extractor.facts,
            "real": len(reals),
            "fake": len(reals),
            "frames": frames + (context if with_context else 0),
            "context_included": with_context,
        }
    return report


def _check(predicted: Sequence[str], context: int, distances: Sequence[str]) -> None:
    taken = [*METRICS, "lpips"]
    if twice := [name for i, name in enumerate(distances) if name in taken or name in distances[:i]]:
        raise ValueError(f"the report already has a metric named {twice[0]!r}; give the distance another name")
    if not predicted or context < 0:
        raise ValueError(f"give at least one predicted set, and a context of at least 0; got {predicted}, {context}")
    if "copy-last" in predicted and context < 1:
        raise ValueError("copy-last needs a context of at least 1 frame: --context")


def _open(name: str) -> VideoSource:
    """Open videos; an unreadable one is an error."""
    root = Path(name).expanduser()
    return open_videos(root, Unreadable(root, "video", 0))


def _matched(source: VideoSource, name: str, true: VideoSource, truth: str) -> tuple[VideoSource, list[int]]:
    """The source, and for each true video the index of the predicted one."""
    if len(source.names) != len(true.names):
        raise ValueError(f"{name} has {len(source.names)} videos and {truth} has {len(true.names)}; they must match")
    if isinstance(source, ArrayVideos) or isinstance(true, ArrayVideos):
        return source, list(range(len(true.names)))
    number = {str(Path(other).with_suffix("")): i for i, other in enumerate(source.names)}
    stems = [str(Path(other).with_suffix("")) for other in true.names]
    if missing := [stem for stem in stems if stem not in number]:
        raise ValueError(f"{name} has no video with the name {missing[0]}, which {truth} has; names must match")
    return source, [number[stem] for stem in stems]


def _shape(
    made: dict[str, VideoSource], true: VideoSource, truth: str, size: int | list[int] | None
) -> tuple[int, int]:
    if size is not None:
        return check_size(size)
    if true.size is None:
        raise ValueError(f"videos in {truth} have several sizes; give the size to resize them to with --size")
    for name, source in made.items():
        if source.size != true.size:
            raise ValueError(
                f"frames in {name} have the size {source.size} (h, w) and in {truth} {true.size}; give --size"
            )
    return true.size


def _metrics(lpips: str | None, side: int, report: VideoReport) -> dict[str, Metric]:
    metrics = dict(METRICS)
    if lpips is None:
        report.left_out["lpips"] = "no weights of VGG-16 given (--lpips FILE, or the word download)"
    else:
        name, network = load_lpips(lpips)

        def distance(made: Tensor, truth: Tensor) -> Tensor:
            return by_frame(network.to(made.device).each, made, truth)

        metrics[name] = Metric(distance, "VGG-16, mean over frames and clips", False, LPIPS_SIDE)
    for name in [name for name, metric in metrics.items() if side < metric.side]:
        report.left_out[name] = f"needs frames with sides of at least {metrics.pop(name).side} pixels, found {side}"
    return metrics


def _read(source: VideoSource, i: int, shape: tuple[int, int], channels: int, device: torch.device | str) -> Clip:
    return to_clip(source.frames_of(i, range(source.lengths[i])), shape, channels)[None].to(device)


def _sample(
    name: str,
    sources: dict[str, tuple[VideoSource, list[int]]],
    i: int,
    given: Tensor,
    frames: int,
    shape: tuple[int, int],
    channels: int,
    device: torch.device | str,
) -> Clip:
    """The predicted frames after the context of video i."""
    if name in TRIVIAL:
        seen = given if given.shape[2] else given.new_empty(1, channels, 1, *shape)  # blank needs no context
        return TRIVIAL[name](seen, frames)
    source, order = sources[name]
    clip = _read(source, order[i], shape, channels, device)
    if clip.shape[2] not in (frames, frames + given.shape[2]):
        raise ValueError(
            f"video {source.names[order[i]]} in {name} has {clip.shape[2]} frames; {frames} are predicted after a "
            f"context of {given.shape[2]}, so give {frames} or {frames + given.shape[2]} (--context)"
        )
    return clip[:, :, -frames:]


def _features(extractor: ClipFeatures, clip: Tensor) -> Tensor:
    return extractor(clip.cpu()).cpu()


def _summary(values: Float[Tensor, "n b t"], of_mean: list[Tensor], metric: Metric) -> dict[str, Any]:
    found: dict[str, Any] = {"mean": float(values.mean())}
    if len(values) > 1:
        found["best_of_N"] = float(best_of(values, metric.higher).mean())
        found["of_the_mean"] = float(torch.cat(of_mean).mean())
    return {**found, "per_frame": values.mean(dim=(0, 1)).tolist(), "unit": metric.unit}
