"""Stage 2: train a masked transformer on a tokenizer's codes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from maskgen.decoding.scheduler import MaskScheduler
from maskgen.mim.core import MaskedModeling
from maskgen.parts import Part, build
from maskgen.pictures import grid as picture_grid
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.store import fingerprint, load_tokenizer, replace_folder
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.batches import MapDataset
from maskgen.transformer.model import TRANSFORMERS

GIVEN = ("codebook_size", "grid", "num_classes", "token_dim", "predictions")
MODEL = Part(TRANSFORMERS, given=GIVEN, default="mask_transformer")
MASKING = Part({"masked_modeling": MaskedModeling}, default="masked_modeling")
SCHEDULER = Part({"mask_scheduler": MaskScheduler}, default="mask_scheduler")


class GeneratorStage:
    """Masked-token modeling on codes, from a token cache or from pictures encoded as they come.

    Args:
        dataset: the training set (given by the run); its items have ``codes`` or ``pixels``.
        holdout: kept out of training (given by the run); its loss is reported.
        tokenizer: a run, pipeline or tokenizer folder.
        model: the transformer.
        masking: the MIM core.
        scheduler: how the pictures of this run are decoded; saved with the pipeline.
        conditional: condition on the data's classes.
        samples_per_class: columns of the picture grid; `sample_classes` at most are its rows.
    """

    def __init__(
        self,
        tokenizer: str,
        dataset: MapDataset,
        holdout: MapDataset | None = None,
        model: Annotated[Any, MODEL] = {},  # noqa: B006
        masking: Annotated[Any, MASKING] = {},  # noqa: B006
        scheduler: Annotated[Any, SCHEDULER] = {},  # noqa: B006
        conditional: bool = True,
        samples_per_class: int = 8,
        sample_classes: int = 16,
    ):
        self.tokenizer = load_tokenizer(tokenizer).requires_grad_(False)
        _check_tokenizer(self.tokenizer)
        self.class_names = list(dataset.class_names) if conditional else None
        self.conditional, self.holdout = conditional, holdout
        self.columns, self.rows = samples_per_class, sample_classes
        _check_cache(dataset, self.tokenizer)
        codes = self._codes({k: v[None] for k, v in dataset[0].items() if isinstance(v, Tensor)})
        transformer = build(
            MODEL,
            model,
            codebook_size=self.tokenizer.codebook_size,
            grid=tuple(codes.shape[1:]),
            num_classes=len(dataset.class_names) if conditional else None,
        )
        self.modules: dict[str, nn.Module] = {"model": transformer}
        self.masking = build(MASKING, masking)
        self.scheduler = build(SCHEDULER, scheduler)

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        labels = batch["label"] if self.conditional else None
        yield "model", self.masking.losses(self.modules["model"], self._codes(batch), labels)

    @torch.no_grad()
    def _codes(self, batch: dict[str, Any]) -> Int[Tensor, "b *grid"]:
        if "codes" in batch:
            return batch["codes"]
        pixels = batch["pixels"]
        with torch.autocast(pixels.device.type, enabled=False):
            return self.tokenizer.to(pixels.device).encode(pixels)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and accuracy on the held-out pictures, with the same masks every time; nothing without a holdout."""
        if self.holdout is None:
            return {}
        items = [self.holdout[i] for i in range(min(len(self.holdout), 256))]
        device = next(model.parameters()).device
        batch = torch.utils.data.default_collate(items)
        labels = batch["label"].to(device) if self.conditional else None
        codes = self._codes({k: v.to(device) for k, v in batch.items()})
        terms = self.masking.losses(model, codes, labels, torch.Generator().manual_seed(0))
        return {f"holdout/{name}": float(terms[name]) for name in ("loss", "accuracy")}

    def pipeline(self, model: nn.Module) -> MaskedImagePipeline:
        pipeline: Any = MaskedImagePipeline(self.tokenizer, model, self.scheduler, self.class_names)  # type: ignore[arg-type]
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def picture(self, model: nn.Module) -> Image.Image:
        """A row of samples a class."""
        generator = torch.Generator().manual_seed(0)
        rows = list(range(min(len(self.class_names), self.rows))) if self.class_names else None
        count = self.columns if rows else self.columns * 4
        pipeline: Any = self.pipeline(model)
        pixels = pipeline(rows, num_images_per_prompt=count, generator=generator, output_type="pt").images * 2 - 1
        names = None if rows is None or self.class_names is None else [self.class_names[i] for i in rows]
        return picture_grid(pixels.cpu(), self.columns, row_names=names)

    def export(self, model: nn.Module, folder: Path) -> None:
        replace_folder(folder, lambda part: self.pipeline(model).save_pretrained(part))


def _check_tokenizer(tokenizer: Tokenizer) -> None:
    """The transformer predicts one code a place, and its samples are decoded to pixels."""
    problem = (
        "has continuous tokens"
        if tokenizer.codebook_size == 0
        else f"has {tokenizer.levels} codes a place"
        if tokenizer.levels > 1
        else "decodes to a teacher's features"
        if tokenizer.config.target != "pixels"
        else None
    )
    if problem:
        raise ValueError(
            f"stage.tokenizer {problem}; a generator needs one code a place and pixels from its decoder: train it on a "
            "tokenizer with quantizer type vq, fsq or lfq and target pixels"
        )


def _check_cache(dataset: MapDataset, tokenizer: nn.Module) -> None:
    meta = getattr(dataset, "meta", None)
    if meta is not None and meta["tokenizer"] != fingerprint(tokenizer):
        raise ValueError(
            f"the token cache was made by tokenizer {meta['tokenizer']}, this run's is {fingerprint(tokenizer)}; "
            "encode the data again with `maskgen encode`, or name the tokenizer that made the cache"
        )
