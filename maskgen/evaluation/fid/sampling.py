"""What a pipeline draws for an evaluation, and how: a seed an image, the classes by a stated protocol."""

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
    """Samples to be drawn from a pipeline. None leaves a setting to the pipeline.

    Args:
        count: images; papers draw 50,000.
        seed: image i is drawn with seed + i, so neither processes nor batches change it.
        steps, guidance, temperature: of the decode loop; guidance is ``u + s (c - u)``, 1 is none.
        classes: whose images are drawn. ``equal``: all classes in turn, so each has its equal share; ``uniform``:
            each image's at random; ``reference``: at random as often as in the reference's labels; ``none``: without
            a class. None is ``equal`` where the pipeline has classes.
    """

    count: int = 50_000
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    classes: str | None = None


def load_pipeline(path: str | Path | None, device: torch.device | str | None) -> Any:
    """The pipeline of a folder or a run, the bundled one for None; `device` None is CUDA where there is one."""
    pipe = MaskedImagePipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)  # one bar for all batches is enough
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def drawn(pipe: Any, name: str, sampling: Sampling, reading: Reading, reference: Source | None = None) -> Source:
    """The samples of a pipeline as a source, drawn when read.

    Raises:
        ValueError: a protocol that the pipeline or the reference has no classes for.
    """
    if sampling.count < 1:
        raise ValueError(f"count must be at least 1, got {sampling.count}")
    if sampling.temperature is not None:
        pipe = copy.copy(pipe)  # the caller's keeps its own
        pipe.scheduler = type(pipe.scheduler).from_config(
            pipe.scheduler.config, choice_temperature=sampling.temperature
        )
    protocol, labels = labels_of(list(pipe.class_names), sampling, reference)
    settings = asdict(sampling) | {"classes": protocol}
    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    settings["steps"] = sampling.steps or scheduler.get("num_inference_steps")
    settings["guidance"] = scheduler.get("guidance_scale") if sampling.guidance is None else sampling.guidance
    settings["temperature"] = scheduler.get("choice_temperature")
    others = ("num_inference_steps", "guidance_scale", "choice_temperature")
    settings["scheduler"] = {key: value for key, value in scheduler.items() if key not in others}
    settings["model"] = {part: fingerprint(getattr(pipe, part)) for part in ("vqvae", "transformer")}

    def read(start: int, stop: int) -> np.ndarray:
        asked: list[int | None] = [None] * (stop - start) if labels is None else labels[start:stop].tolist()
        pixels = sample(
            pipe, asked, sampling.seed + start, sampling.steps, sampling.guidance, batch_size=max(1, stop - start)
        )
        if pixels.shape[1] == 1:
            note_grey(f"what {name} draws", len(pixels), reading, images.notes)
        return to_uint8(pixels.expand(-1, 3, -1, -1))

    identity = settings | {"labels_digest": None if labels is None else digest_of(labels.tolist())}
    images = Images(sampling.count, read, identity)
    return Source(name, "pipeline", images, facts={"sampling": settings})


def labels_of(
    names: list[str], sampling: Sampling, reference: Source | None
) -> tuple[str, Int64[np.ndarray, "n"] | None]:
    """The protocol and the class of each image, None where they have none; the first of more are those of fewer."""
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
                "classes (a data set of maskgen's); use classes=equal or classes=uniform"
            )
        shares = np.bincount(images.labels, minlength=len(names)) / len(images.labels)
    rng = np.random.default_rng(sampling.seed)
    return protocol, rng.choice(len(names), size=sampling.count, p=shares).astype(np.int64)
