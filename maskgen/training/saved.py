"""Reads back a whole run: its pipeline, and also what it hides and has to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from maskgen.config import check
from maskgen.data.source import open_files_or_dataset
from maskgen.evaluation.visualise import Sheet, visualise
from maskgen.mim.core import Learner
from maskgen.mim.ratios import Fixed
from maskgen.registry import build
from maskgen.training.batches import MapDataset
from maskgen.training.checkpoint import checkpoints
from maskgen.training.run import DATA, STAGE, load_run, run, split
from maskgen.training.stages.generator import GeneratorStage
from maskgen.training.stages.representation import RepresentationStage


@dataclass
class SavedRun:
    """A run of a generator or of a representation.

    Args:
        path: the folder of the run.
        stage: the stage as it was trained.
        learner: the averaged network and its masked modeling, in evaluation mode.
        dataset: the data held out of training or, where none were, the training data.
    """

    path: Path
    stage: GeneratorStage | RepresentationStage
    learner: Learner
    dataset: MapDataset

    def open(self, files: Sequence[str] | None = None, data: str | None = None, size: int | None = None) -> Any:
        """Open image files or the data set `data`, or return `dataset` where neither is given.

        Args:
            files: paths of images.
            data: a data set, as in :func:`maskgen.data.source.open_files_or_dataset`.
            size: side of the images; None is the size that the run was trained at.

        Raises:
            ValueError: see :func:`maskgen.data.source.open_files_or_dataset`.
        """
        if not files and data is None:
            return self.dataset
        pixels = self.dataset[0].get("pixels")
        own = pixels.shape[1] if pixels is not None and pixels.shape[1] == pixels.shape[2] else None
        channels = self.stage.tokenizer.channels
        return open_files_or_dataset(files, data, str(self.path), size or own, channels)

    def visualise(
        self, dataset: Any, count: int = 8, seed: int = 0, ratio: float | None = None, peek: bool = False
    ) -> Sheet:
        """Run :func:`maskgen.evaluation.visualise.visualise` on `count` images, evenly spread over a data set.

        Labels are left out if the data set has other classes than the run was trained on.

        Args:
            seed: seed of the masks.
            ratio: share of the tokens to hide; None uses the ratio of the run.
            peek: give normalised pixels the hidden patches' own mean and contrast.

        Raises:
            ValueError: the images have several sizes; or see the function.
        """
        count = min(count, len(dataset))
        items = [dataset[i * len(dataset) // count] for i in range(count)]
        if len({item["pixels"].shape for item in items if "pixels" in item}) > 1:
            raise ValueError("the images have several sizes; give one size for all, as --size 224")
        if list(dataset.class_names) != list(self.dataset.class_names):
            items = [{key: value for key, value in item.items() if key != "label"} for item in items]
        device = next(self.learner.parameters()).device
        batch = {key: value.to(device) for key, value in torch.utils.data.default_collate(items).items()}
        masking = self.learner.masking
        own, masking.ratio = masking.ratio, masking.ratio if ratio is None else Fixed(ratio)
        try:
            return visualise(self.learner, self.stage.inputs(batch), seed, peek)
        finally:
            masking.ratio = own


def load_learner(path: str | Path, device: torch.device | str = "cpu") -> SavedRun:
    """Build the stage of a run from its ``config.yaml`` and its data, with the averaged weights of the last checkpoint.
    Raises:
        FileNotFoundError: the folder is no run, or has no checkpoint.
        ValueError: the run is of another stage.
    """
    folder = Path(path)
    file = folder / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no config.yaml; give the folder of a run of `maskgen train`")
    config = check(run, load_run(str(file)), str(file))
    kind = STAGE.table[config["stage"]["type"]]
    if kind not in (GeneratorStage, RepresentationStage):
        raise ValueError(
            f"{folder} is a run of stage {config['stage']['type']}, which hides nothing; give a run of stage generator "
            "or representation (`maskgen reconstruct` shows what a tokenizer does)"
        )
    done = checkpoints(folder / "checkpoints")
    if not done:
        raise FileNotFoundError(f"{folder} has no checkpoint yet; continue the training with the same command")
    kept, held = split(build(DATA, config["data"]), config.get("holdout", 0))
    stage = build(STAGE, config["stage"], dataset=kept, holdout=held)
    learner = stage.modules["model"]
    averaged = load_file(done[-1] / "ema.safetensors")
    prefix = "module."  # AveragedModel adds it to the names of all weights
    learner.load_state_dict({k.removeprefix(prefix): v for k, v in averaged.items() if k.startswith(prefix)})
    for name, module in getattr(stage, "state", {}).items():
        module.load_state_dict(load_file(done[-1] / f"{name}.safetensors"))
    return SavedRun(folder, stage, learner.to(device).eval(), held or kept)
