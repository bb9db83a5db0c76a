"""Stage 1 for semantic codes: train a tokenizer to reconstruct a teacher's features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor, nn

from maskgen.evaluation.reconstruction.measures import codebook_use, spread
from maskgen.images import grid
from maskgen.pipelines.store import save_tokenizer
from maskgen.registry import build
from maskgen.tokenizer.losses import feature_loss
from maskgen.training.batches import MapDataset
from maskgen.training.offline import TEACHER
from maskgen.training.stages.tokenizer import TOKENIZER, build_tokenizer, forward


class VqkdStage:
    """Vector-quantized knowledge distillation (BEiT v2, arXiv:2208.06366, section 2.2).

    Args:
        teacher: the network whose features the decoder reconstructs.
        tokenizer: the options of the tokenizer, with ``target: features``; the decoder has as many channels as the
            teacher has features.
        dataset: the training images (given by the run).
        holdout: images kept out of training, for the metrics (given by the run); None keeps none.

    Raises:
        ValueError: the tokenizer, the teacher and the data do not fit together.
    """

    def __init__(
        self,
        dataset: MapDataset,
        teacher: Annotated[Any, TEACHER],
        holdout: MapDataset | None = None,
        tokenizer: Annotated[Any, TOKENIZER] = {},  # noqa: B006
    ):
        model, first = build_tokenizer(tokenizer, dataset)
        if model.config.target != "features":
            raise ValueError(
                "stage vqkd trains a decoder of features; set stage.tokenizer.target=features, or train pixels with "
                "stage type tokenizer"
            )
        self.grid = tuple(model.grid(tuple(first.shape[1:])))
        if len(self.grid) != 2:
            raise ValueError(f"stage vqkd needs tokens on a grid (h, w), this tokenizer's is {self.grid}")
        self.teacher = build(TEACHER, teacher)
        with torch.no_grad():
            wanted, made = self.teacher(first[None], self.grid), model.eval()(first[None]).pixels
        model.train()
        if made.shape[2:] != wanted.shape[2:]:
            raise ValueError(
                f"the decoder makes a map of {tuple(made.shape[2:])} for tokens on a grid {self.grid}; it needs one "
                "position per token: use patch=1 and no upsampling in stage.tokenizer.decoder"
            )
        if made.shape[1] != wanted.shape[1]:
            raise ValueError(
                f"the teacher has {wanted.shape[1]} features per token, the decoder makes {made.shape[1]}; set "
                f"stage.tokenizer.decoder.channels={wanted.shape[1]}"
            )
        self.modules: dict[str, nn.Module] = {"model": model}
        self.dataset, self.holdout = dataset, holdout

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """1 - cosine similarity to the teacher's features, and the terms of the quantizer."""
        output = forward(self.modules["model"], batch)
        loss = feature_loss(output.pixels, self._wanted(batch["pixels"]))
        terms = {"quantizer": output.loss, **output.terms}
        yield "model", {"loss": loss + output.loss, "cosine": 1 - loss, **terms}

    def _wanted(self, pixels: Tensor) -> Tensor:
        return self.teacher.to(pixels.device)(pixels, self.grid)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean cosine similarity on training and held-out images, and the use of the codebook on the former."""
        cosine, codes = self._measure(model, self.dataset)
        metrics = {"train/cosine": cosine}
        if size := int(model.codebook_size):  # type: ignore[arg-type]
            metrics |= {f"codebook/{name}": value for name, value in codebook_use(codes, size).items()}
        return metrics if self.holdout is None else {**metrics, "holdout/cosine": self._measure(model, self.holdout)[0]}

    @torch.no_grad()
    def _measure(self, model: nn.Module, dataset: MapDataset) -> tuple[float, Shaped[Tensor, "n"]]:
        """The mean cosine similarity, and all codes."""
        device = next(model.parameters()).device
        cosines, codes = [], []
        for pixels in spread(dataset, 2048):
            output = model(pixels.to(device))
            cosines.append(F.cosine_similarity(output.pixels.float(), self._wanted(pixels.to(device)), dim=1).flatten())
            codes.append(output.codes.flatten().cpu())
        return float(torch.cat(cosines).mean()), torch.cat(codes)

    @torch.no_grad()
    def image(self, model: nn.Module) -> Image.Image:
        """Images above their codes as colours; similar code vectors have similar colours."""
        pixels = next(spread(self.holdout or self.dataset, 32)).cpu()
        codes = model(pixels.to(next(model.parameters()).device)).codes
        maps = colours(model.embed(codes).float().cpu())  # type: ignore[operator]
        maps = F.interpolate(maps, tuple(pixels.shape[2:]), mode="nearest")
        rows = [row.expand(-1, 3, -1, -1) for pair in zip(pixels.split(16), maps.split(16)) for row in pair]
        return grid(torch.cat(rows), min(16, len(pixels)), row_names=["image", "codes"] * (len(rows) // 2))

    def export(self, model: nn.Module, folder: Path) -> None:
        save_tokenizer(model, folder)


def colours(vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 h w"]:
    """The three principal components of the vectors, each scaled to [-1, 1], as red, green and blue."""
    b, d, h, w = vectors.shape
    flat = vectors.permute(0, 2, 3, 1).reshape(-1, d)
    flat = flat - flat.mean(0)
    _, axes = torch.linalg.eigh(flat.T @ flat)
    components = F.pad(flat @ axes[:, -3:], (0, max(0, 3 - d)))
    low, high = components.amin(0), components.amax(0)
    components = 2 * (components - low) / (high - low).clamp(min=1e-12) - 1
    return components.view(b, h, w, 3).permute(0, 3, 1, 2)
