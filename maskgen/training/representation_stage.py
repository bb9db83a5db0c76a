"""Stage 2 for features: masked modeling of pictures, whatever the tokens, the target and the loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor, nn

from maskgen.evaluation.reconstruction import spread
from maskgen.mim.core import grid_of
from maskgen.mim.targets import Pixels
from maskgen.parts import Part, build
from maskgen.pictures import grid as picture_grid
from maskgen.pipelines.backbone import save_backbone
from maskgen.pipelines.store import load_tokenizer
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.batches import MapDataset
from maskgen.training.generator_stage import MASKING, MODEL
from maskgen.training.offline import TEACHER


def patches(patch: int = 4, channels: int = 3) -> Tokenizer:
    """Patches as they are."""
    part = {"type": "patch", "patch": patch, "channels": channels}
    return Tokenizer(part, {"type": "none", "dim": channels * patch**2}, part)


TOKENS = Part({"patches": patches, "codes": load_tokenizer}, default="patches")


class RepresentationStage:
    """Hide some tokens, predict from the rest what the target says; MAE, SimMIM, BEiT, MaskFeat ... are its parts.

    Args:
        dataset: the training pictures (given by the run); labels are not looked at.
        holdout: kept out of training (given by the run); its loss is reported.
        tokens: what the transformer sees: ``patches`` of pixels, or the ``codes`` of a tokenizer (its ``path``).
        model: the transformer.
        masking: the MIM core.
        target_tokenizer: the run of a tokenizer whose codes are the target where the tokens are patches (BEiT).
        teacher: whose features are the target, where it is made of them.
    """

    def __init__(
        self,
        dataset: MapDataset,
        holdout: MapDataset | None = None,
        tokens: Annotated[Any, TOKENS] = {},  # noqa: B006
        model: Annotated[Any, MODEL] = {},  # noqa: B006
        masking: Annotated[Any, MASKING] = {},  # noqa: B006
        target_tokenizer: str | None = None,
        teacher: Annotated[Any, TEACHER] | None = None,
    ):
        self.tokenizer = build(TOKENS, tokens).eval().requires_grad_(False)
        self.target_tokenizer = target_tokenizer and load_tokenizer(target_tokenizer).requires_grad_(False)
        self.teacher = None if teacher is None else build(TEACHER, teacher)
        self.masking = build(MASKING, masking)
        self.dataset, self.holdout = dataset, holdout
        example, sources = self._sources(dataset[0]["pixels"][None])
        wanted = self.masking.wanted(example, **sources)
        codes = self.target_tokenizer or self.tokenizer
        continuous = self.tokenizer.codebook_size == 0
        transformer = build(
            MODEL,
            model,
            codebook_size=self.tokenizer.codebook_size,
            grid=grid_of(example),
            num_classes=None,
            token_dim=example.shape[-1] if continuous else 0,
            predictions=wanted.shape[-1] if wanted.is_floating_point() else codes.codebook_size,
        )
        self.modules: dict[str, nn.Module] = {"model": transformer}

    @torch.no_grad()
    def _sources(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The tokens, and what targets are made of."""
        with torch.autocast(pixels.device.type, enabled=False):
            tokens, sources = self.tokenizer.to(pixels.device).encode(pixels), {"pixels": pixels}
            if self.target_tokenizer:
                sources["codes"] = self.target_tokenizer.to(pixels.device).encode(pixels)
            if self.teacher is not None:
                grid = tuple(self.tokenizer.grid((pixels.shape[2], pixels.shape[3])))
                sources["features"] = self.teacher.to(pixels.device)(pixels, grid)
        return tokens, sources

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        tokens, sources = self._sources(batch["pixels"])
        yield "model", self.masking.losses(self.modules["model"], tokens, **sources)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss on held-out pictures, with the same masks every time; nothing without a holdout."""
        if self.holdout is None:
            return {}
        pixels = next(spread(self.holdout, 256, 256)).to(next(model.parameters()).device)
        tokens, sources = self._sources(pixels)
        generator = torch.Generator().manual_seed(0)
        terms = self.masking.losses(model, tokens, generator=generator, **sources)
        return {f"holdout/{name}": float(terms[name]) for name in ("loss", "accuracy") if name in terms}

    @torch.no_grad()
    def picture(self, model: nn.Module) -> Image.Image:
        """Pictures, what is left of them, and, where the target is pixels, the predictions pasted into that.

        Normalised predictions take mean and contrast from the visible patches: no hidden pixel reaches the picture.
        """
        pixels = next(spread(self.holdout or self.dataset, 16))
        device = next(model.parameters()).device
        tokens, _ = self._sources(pixels.to(device))
        grid = tuple(self.tokenizer.grid((pixels.shape[2], pixels.shape[3])))
        plan = self.masking.plan(len(pixels), grid, torch.Generator().manual_seed(0))
        side = pixels.shape[2] // grid[0] if len(grid) == 2 else 1
        cover = plan.hidden.repeat_interleave(side, 1).repeat_interleave(side, 2) if len(grid) == 2 else None
        rows, names = [pixels], ["picture"]
        if cover is not None:
            rows.append(torch.where(cover[:, None], 0.0, pixels))
            names.append("seen")
        if isinstance(self.masking.target, Pixels):
            predictions, keep, _ = self.masking.predictions(model, tokens, plan)
            if keep is None:  # else what was dropped is not predicted
                filled = self.masking.target.picture(predictions.float().cpu(), pixels, plan.hidden.flatten(1))
                rows.append(filled)
                names.append("predicted")
        return picture_grid(torch.cat(rows), len(pixels), row_names=names)

    def export(self, model: nn.Module, folder: Path) -> None:
        save_backbone(self.tokenizer, model, folder)
