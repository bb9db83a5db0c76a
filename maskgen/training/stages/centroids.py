"""Stage 1 without gradients: a codebook of k-means centroids."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import trange

from maskgen.evaluation.reconstruction.measures import spread
from maskgen.images import save
from maskgen.tokenizer.quantizers import VectorQuantizer
from maskgen.training.batches import MapDataset
from maskgen.training.metrics import MetricsFile
from maskgen.training.stages.tokenizer import TOKENIZER, TokenizerStage, build_tokenizer

PATCHES = {"encoder": {"type": "patch"}, "quantizer": {"codebook_size": 1024, "dim": 48}, "decoder": {"type": "patch"}}


class CentroidStage(TokenizerStage):
    """Codes are the nearest k-means centroids of patches (CCViT, arXiv:2303.04664), found without gradients.

    Of the training settings of the run, `steps` is the number of Lloyd's iterations and `seed` is the seed; the others
    are not used.

    Args:
        dataset, holdout: the images (given by the run).
        tokenizer: the options of the tokenizer. Its encoder is not trained, and its quantizer must be ``vq``.
        points: the number of patches for k-means, sampled from images spread over the data.

    Raises:
        ValueError: the quantizer is not ``vq``, or there are fewer points than centroids.
    """

    def __init__(
        self,
        dataset: MapDataset,
        holdout: MapDataset | None = None,
        tokenizer: Annotated[Any, TOKENIZER] = PATCHES,
        points: int = 200_000,
    ):
        self.model, _ = build_tokenizer(tokenizer, dataset)
        if not isinstance(self.model.quantizer, VectorQuantizer):
            raise ValueError("stage.tokenizer.quantizer: k-means needs the quantizer of type vq; set type: vq")
        if points < self.model.codebook_size:
            raise ValueError(f"stage.points {points} must be at least the {self.model.codebook_size} centroids")
        self.dataset, self.holdout, self.points = dataset, holdout, points

    def fit(self, iterations: int, seed: int, folder: Path) -> None:
        """Run k-means and write metrics, an image and the pipeline to `folder`."""
        model = self.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        z, metrics, start = self._latents(), MetricsFile(folder / "metrics.jsonl", 0), time.perf_counter()
        model.quantizer.fit(z, 0)
        for step in trange(1, iterations + 1, desc=folder.name, unit="iteration"):
            values = {"error": float(model.quantizer.refine(z, 1)), "seconds": time.perf_counter() - start}
            metrics.write(step, values if step < iterations else {**values, **self.evaluate(model)})
        save(self.image(model), folder / "samples" / f"step_{iterations:08d}.png")
        self.export(model, folder / "pipeline")

    @torch.no_grad()
    def _latents(self) -> Float[Tensor, "n d"]:
        """At most `points` latents, the same share from each image."""
        device, parts = next(self.model.parameters()).device, []
        per_image = self.model._encoded(self.dataset[0]["pixels"][None].to(device)).flatten(2).shape[2]
        images = min(len(self.dataset), 4 * -(-self.points // per_image))
        share = min(1.0, self.points / (images * per_image))
        for pixels in spread(self.dataset, images):
            z = self.model._encoded(pixels.to(device)).flatten(2).transpose(1, 2).flatten(0, 1)
            parts.append(z[torch.randperm(len(z))[: round(len(z) * share)].to(device)])
        return torch.cat(parts)[: self.points]
