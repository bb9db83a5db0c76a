"""Trains what a configuration describes, and makes the folder of the run."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml

from maskgen.config import Config, ConfigError, check, load, override
from maskgen.data import DATASETS
from maskgen.data.augment import AUGMENTATIONS
from maskgen.data.subset import Subset
from maskgen.registry import Part, build, plain
from maskgen.training.batches import MapDataset, mix
from maskgen.training.loop import Training, train
from maskgen.training.stages.autoregressive import AutoregressiveStage
from maskgen.training.stages.centroids import CentroidStage
from maskgen.training.stages.critic import CriticStage
from maskgen.training.stages.generator import GeneratorStage
from maskgen.training.stages.representation import RepresentationStage
from maskgen.training.stages.tokenizer import TokenizerStage
from maskgen.training.stages.vqkd import VqkdStage
from maskgen.training.upgrade import FORMAT, upgraded

STAGES = {
    "tokenizer": TokenizerStage,
    "vqkd": VqkdStage,
    "centroids": CentroidStage,
    "generator": GeneratorStage,
    "critic": CriticStage,
    "autoregressive": AutoregressiveStage,
    "representation": RepresentationStage,
}
STAGE = Part(STAGES, given=("dataset", "holdout"))
DATA = Part(DATASETS)
AUGMENT = Part(AUGMENTATIONS, default="standard")
FREE_ON_RESUME = ("steps", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints", "workers", "trackers")


def run(
    name: str,
    stage: Annotated[Any, STAGE],
    data: Annotated[Any, DATA],
    training: Training,
    augment: Annotated[Any, AUGMENT] | None = None,
    holdout: int = 0,
    folder: str = "runs",
) -> Path:
    """Train a checked configuration; return the folder of the run, ``folder/name``.

    Args:
        name: name of the run.
        stage: a name in :data:`STAGES`, with its parts.
        data: the data set.
        training: settings of the loop.
        augment: augmentation of training images.
        holdout: number of images that are kept out of training, for the metrics.
        folder: folder of all runs.
    """
    config = {**locals(), "training": asdict(training)}
    del config["folder"]
    path = Path(folder) / name
    _same_run(path, config)
    dataset = build(DATA, data)
    kept, held = split(dataset, holdout)
    torch.manual_seed(mix(training.seed, 3))  # initial weights
    built = build(STAGE, stage, dataset=kept, holdout=held)
    if isinstance(built, CentroidStage):
        if augment:
            raise ValueError("stage centroids does not augment its data; leave augment out")
        built.fit(training.steps, training.seed, path)
    else:
        train(built, kept, training, path, build(AUGMENT, augment or {}))
    return path


def run_config(source: str, overrides: Sequence[str] = ()) -> Path:
    """Load, check and run a YAML file.

    Raises:
        ConfigError: the configuration has errors; the message lists all of them.
    """
    return run(**check(run, load_run(source, list(overrides)), source))


def load_run(source: str, overrides: Sequence[str] = ()) -> Config:
    """The settings of a YAML file; the ``config.yaml`` that a run wrote may be of an earlier version.

    Raises:
        ConfigError: it cannot be read.
    """
    file = Path(source)
    config = load(source)
    if "format" in config or (file.name == "config.yaml" and (file.parent / "checkpoints").is_dir()):
        config = Config(upgraded(config), config.problems)
    return override(config, overrides)


def split(dataset: MapDataset, holdout: int) -> tuple[MapDataset, MapDataset | None]:
    """Split a data set into a training part and a held-out part, the same ones for every run.

    All clips of a video are in the same part (``groups``), so more than `holdout` clips may be held out.
    """
    if not 0 <= holdout < len(dataset):
        raise ValueError(f"holdout is {holdout}; it must be at least 0 and below the {len(dataset)} images of the data")
    if holdout == 0:
        return dataset, None
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    groups = getattr(dataset, "groups", range(len(dataset)))
    held = {int(groups[i]) for i in order[:holdout]}
    parts = [[i for i in range(len(dataset)) if (int(groups[i]) in held) == kept_out] for kept_out in (False, True)]
    if not parts[0]:
        raise ValueError(f"holdout={holdout} leaves no video to train on; hold out fewer clips")
    return Subset(dataset, parts[0]), Subset(dataset, parts[1])


def _same_run(path: Path, config: dict[str, Any]) -> None:
    """Write config.yaml, unless the folder has a run with other settings.

    Raises:
        ConfigError: the settings differ; the message names them.
    """
    settings = _read_again(config)
    file = path / "config.yaml"
    if file.is_file() and any((path / "checkpoints").glob("step_*")):
        begun, now = (
            _fixed(_read_again({**_defaults(), **check(run, given, str(file))}))
            for given in (upgraded(yaml.safe_load(file.read_text())), settings)
        )
        differing = _differences(begun, now)
        if differing:
            advice = f"give the new run another name (name=...), or remove {path} to start again"
            raise ConfigError(str(path), [f"{d} since this run was started; {advice}" for d in differing])
    path.mkdir(parents=True, exist_ok=True)
    part = path / f".config.yaml.{os.getpid()}"  # written atomically, because other processes of the run read it
    part.write_text(yaml.safe_dump({"format": FORMAT, **settings}, sort_keys=False))
    os.replace(part, file)


def _read_again(config: dict[str, Any]) -> dict[str, Any]:
    """The settings as ``config.yaml`` keeps them."""
    return yaml.safe_load(yaml.safe_dump(_plain(config)))


def _defaults() -> dict[str, Any]:
    """The settings of a run that need not be given."""
    parameters = inspect.signature(run).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "folder"}


def _plain(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that must not change in a run, with all defaults, so that an explicit default is no change."""
    training = {**_plain(asdict(Training(steps=1))), **config["training"]}
    return {**config, "training": {k: v for k, v in training.items() if k not in FREE_ON_RESUME}}


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in {**a, **b} for d in _differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)]
    return [] if a == b else [f"{path} changed from {a!r} to {b!r}"]
