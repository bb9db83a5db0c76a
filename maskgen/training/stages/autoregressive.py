"""Stage 2 of the autoregressive baseline: a causal transformer that predicts codes one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from maskgen.images import grid as image_grid
from maskgen.pipelines.backbone import save_backbone
from maskgen.pipelines.raster import sample_raster
from maskgen.pipelines.store import load_tokenizer
from maskgen.registry import Part, build
from maskgen.training.batches import MapDataset
from maskgen.training.masked import CONDITIONER, conditioner_inputs, first_batch
from maskgen.training.stages.generator import check_cache, held_out, tokens_of
from maskgen.transformer.autoregressive import CausalTransformer
from maskgen.upgrade import earlier_names
from maskgen.videos import strip

NETWORK = Part(
    {"causal_transformer": CausalTransformer},
    given=("codebook_size", "grid"),
    default="causal_transformer",
)


class NextCode(nn.Module):
    """A causal network whose forward pass returns the loss of a step: the cross-entropy of each next code."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def earlier_names(self) -> dict[str, list[str]]:
        """The parameters in the order of earlier versions, see :func:`maskgen.upgrade.upgrade_optimizer`."""
        return earlier_names(self.network, "network.")

    def forward(self, codes: Int[Tensor, "b *grid"], given: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """``loss`` in nats per code, and ``accuracy``."""
        network: Any = self.network
        conditioning = network.conditioner(given, len(codes), tuple(codes.shape[1:]))
        logits, target = network(codes, conditioning).float(), codes.flatten(1)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        return {"loss": loss, "accuracy": (logits.argmax(-1) == target).float().mean()}


class AutoregressiveStage:
    """Trains the baseline for parallel decoding, with the same codes, blocks and training, in raster order.

    The run's pipeline folder has the tokenizer and the transformer for :func:`maskgen.pipelines.raster.sample_raster`.

    Args:
        tokenizer: a run, pipeline or tokenizer folder, with one code per position.
        dataset: the training set (set by the run); its items have ``codes`` or ``pixels``.
        holdout: data held out from training (set by the run); its loss is reported.
        model: the causal transformer.
        conditioning: ``[class]`` uses the classes of the data; an empty list is an unconditional model.
        samples_per_class: number of columns of the image grid.
        sample_classes: largest number of its rows.

    Raises:
        ValueError: the tokenizer has no codes or several codes per position, or did not make the token cache.
    """

    def __init__(
        self,
        tokenizer: str,
        dataset: MapDataset,
        holdout: MapDataset | None = None,
        model: Annotated[Any, NETWORK] = {},  # noqa: B006
        conditioning: Sequence[Annotated[Any, CONDITIONER]] = ("class",),
        samples_per_class: int = 8,
        sample_classes: int = 16,
    ):
        self.tokenizer = load_tokenizer(tokenizer).requires_grad_(False)
        if not self.tokenizer.codebook_size or self.tokenizer.codes_per_position > 1:
            raise ValueError(
                "stage.tokenizer must have one code per position: use such a tokenizer, or stage type generator"
            )
        check_cache(dataset, self.tokenizer)
        self.holdout, self.columns, self.rows = holdout, samples_per_class, sample_classes
        first = first_batch(dataset)
        inputs = conditioner_inputs(conditioning, dataset, dataset[0])
        self.class_names = list(dataset.class_names) if "label" in inputs else None
        network = build(
            NETWORK,
            model,
            codebook_size=int(self.tokenizer.codebook_size),
            grid=tuple(tokens_of(first, self.tokenizer).shape[1:]),
            conditioning={"inputs": inputs},
        )
        self.modules: dict[str, nn.Module] = {"model": NextCode(network)}

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        yield "model", self.modules["model"](*self._of(batch))

    def _of(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        network: Any = self.modules["model"].network
        return tokens_of(batch, self.tokenizer), {name: batch[name] for name in network.conditioner}

    @torch.no_grad()
    def evaluate(self, model: NextCode) -> dict[str, float]:
        """The loss and accuracy on held-out images; empty without a holdout."""
        if self.holdout is None:
            return {}
        terms = model(*self._of(held_out(self.holdout, next(model.parameters()).device)))
        return {f"holdout/{name}": float(value) for name, value in terms.items()}

    def image(self, model: NextCode) -> Image.Image:
        """A sheet of samples, with one row per class, or four rows without classes; for videos, one row per sample."""
        names = None if self.class_names is None else self.class_names[: self.rows]
        labels = None if names is None else [i for i in range(len(names)) for _ in range(self.columns)]
        generator, network = torch.Generator().manual_seed(0), model.network
        made = sample_raster(self.tokenizer, network, labels, generator, count=4 * self.columns)  # type: ignore[arg-type]
        if made.ndim == 5:
            return strip({str(i + 1): clip for i, clip in enumerate(made.cpu())})
        return image_grid(made.cpu(), self.columns, row_names=names)

    def export(self, model: NextCode, folder: Path) -> None:
        save_backbone(self.tokenizer, model.network, folder)
