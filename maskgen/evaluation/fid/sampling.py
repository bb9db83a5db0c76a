"""Samples that a pipeline generates for an evaluation, with one seed per image and a stated protocol of classes."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from maskgen.evaluation.fid.sources import Images, Reading, Source, digest_of, note_grey
from maskgen.images import to_uint8
from maskgen.pipelines.generate import sample
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.store import fingerprint

CLASSES = ("equal", "uniform", "reference", "none")


@dataclass(frozen=True)
class Sampling:
    """How a pipeline generates samples. None leaves a setting to the pipeline.

    Args:
        count: number of images; papers use 50,000.
        seed: image i is generated with seed + i, so processes and batches do not change it.
        steps, guidance, temperature, choice_temperature: settings of the decode loop; guidance is
            ``u + s (c - u)``, and 1 means none.
        classes: the protocol of the classes. ``equal``: all classes in turn, so that each has an equal share;
            ``uniform``: a random class per image; ``reference``: random classes with the frequencies of the reference's
            labels; ``none``: no class. None is ``equal`` if the pipeline has classes, else ``none``.
    """

    count: int = 50_000
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    classes: str | None = None
    choice_temperature: float | None = None


def load_pipeline(path: str | Path | None, device: torch.device | str | None) -> Any:
    """The pipeline of a folder or a run, or for None the bundled one; the default `device` is CUDA if available."""
    pipe = MaskedImagePipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)  # there is one bar for all batches
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def of_pipeline(pipe: Any, name: str, sampling: Sampling, reading: Reading, reference: Source | None = None) -> Source:
    """The samples of a pipeline as a source, which are generated when they are read.

    Raises:
        ValueError: the pipeline or the reference has no classes for the protocol.
    """
    if sampling.count < 1:
        raise ValueError(f"count must be at least 1, got {sampling.count}")
    temperatures = {"temperature": sampling.temperature, "choice_temperature": sampling.choice_temperature}
    if changed := {name: value for name, value in temperatures.items() if value is not None}:
        pipe = copy.copy(pipe)  # the caller's pipeline stays as it is
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changed)
    protocol, labels = labels_of(list(pipe.class_names), sampling, reference)
    settings = asdict(sampling) | {"classes": protocol}
    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    settings["steps"] = sampling.steps or scheduler.get("num_inference_steps")
    settings["guidance"] = scheduler.get("guidance_scale") if sampling.guidance is None else sampling.guidance
    settings |= {name: scheduler.get(name) for name in temperatures}
    others = ("num_inference_steps", "guidance_scale", *temperatures)
    settings["scheduler"] = {key: value for key, value in scheduler.items() if key not in others}
    settings["model"] = {part: fingerprint(getattr(pipe, part)) for part in ("vqvae", "transformer")}

    def read(start: int, stop: int) -> np.ndarray:
        asked: list[int | None] = [None] * (stop - start) if labels is None else labels[start:stop].tolist()
        pixels = sample(
            pipe, asked, sampling.seed + start, sampling.steps, sampling.guidance, batch_size=max(1, stop - start)
        )
        if pixels.shape[1] == 1:
            note_grey(f"the output of {name}", len(pixels), reading, images.notes)
        return to_uint8(pixels.expand(-1, 3, -1, -1))

    identity = settings | {"labels_digest": None if labels is None else digest_of(labels.tolist())}
    images = Images(sampling.count, read, identity)
    return Source(name, "pipeline", images, facts={"sampling": settings})


def labels_of(
    names: list[str], sampling: Sampling, reference: Source | None
) -> tuple[str, Int64[np.ndarray, "n"] | None]:
    """The protocol, and the class of each image or None. A smaller count gives the first labels of a larger one."""
    protocol = sampling.classes or ("equal" if names else "none")
    if protocol not in CLASSES:
        raise ValueError(f"unknown protocol classes={protocol!r}; choose one of {', '.join(CLASSES)}")
    if protocol == "none":
        return protocol, None
    if not names:
        raise ValueError(f"classes={protocol} needs a pipeline with classes, this one has none; use classes=none")
    if protocol == "equal":
        return protocol, np.arange(sampling.count, dtype=np.int64) % len(names)
    shares = None
    if protocol == "reference":
        images = reference.images if reference else None
        if images is None or images.labels is None or list(images.class_names) != names:
            raise ValueError(
                f"classes=reference needs a reference whose images are labelled with the pipeline's {len(names)} "
                "classes (a data set of maskgen); use classes=equal or classes=uniform"
            )
        shares = np.bincount(images.labels, minlength=len(names)) / len(images.labels)
    rng = np.random.default_rng(sampling.seed)
    return protocol, rng.choice(len(names), size=sampling.count, p=shares).astype(np.int64)
