"""Stage 1: train a tokenizer to reconstruct its input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import Tensor, nn

from maskgen.evaluation.reconstruction.measures import measure, spread_items, text_of
from maskgen.images import side_by_side
from maskgen.pipelines.store import save_tokenizer
from maskgen.registry import Part, build
from maskgen.tokenizer.losses import adaptive_weight, frames_of
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.adversary import Adversary
from maskgen.training.batches import MapDataset
from maskgen.training.offline import PERCEPTUAL

TOKENIZER = Part({"tokenizer": Tokenizer}, default="tokenizer")
ADVERSARY = Part({"patch": Adversary}, given=("channels", "size"), default="patch")


class TokenizerStage:
    """The losses of VQGAN (arXiv:2012.09841, section 3.1): reconstruction, quantizer, perceptual and adversarial terms.

    Args:
        tokenizer: the options of the tokenizer.
        l1, l2: weights of the mean absolute and of the mean squared error.
        perceptual: weight of the distance of `perceptual_network`; with 0 no such network is loaded.
        adversarial: the options of the discriminator and its term; None trains no discriminator. The discriminator and
            the perceptual network see the frames of a video one by one.
        stills: the share of the steps in which the frames of a video are independent images, for joint training on
            images and videos (MAGVIT-v2, arXiv:2310.05737, section 3.2). It matters only to a tokenizer of videos.
        dataset: the training images (given by the run).
        holdout: images kept out of training, for the metrics (given by the run); None keeps none.

    Raises:
        ValueError: an option is out of range, the tokenizer cannot take the data, or it has nothing to train.
    """

    def __init__(
        self,
        dataset: MapDataset,
        holdout: MapDataset | None = None,
        tokenizer: Annotated[Any, TOKENIZER] = {},  # noqa: B006
        l1: float = 1.0,
        l2: float = 0.0,
        perceptual: float = 0.0,
        perceptual_network: Annotated[Any, PERCEPTUAL] = "lpips",
        adversarial: Annotated[Any, ADVERSARY] | None = None,
        stills: float = 0.0,
    ):
        if not 0 <= stills <= 1:
            raise ValueError(f"stage.stills {stills} must be a share of the steps, from 0 to 1")
        model, first = build_tokenizer(tokenizer, dataset)
        if model.config.target != "pixels":
            raise ValueError(
                f"stage.tokenizer.target is {model.config.target!r}: its decoder makes no pixels; train it with "
                "stage type vqkd and a teacher"
            )
        if not any(p.requires_grad for p in [*model.encoder.parameters(), *model.decoder.parameters()]):
            raise ValueError(
                "this tokenizer's encoder and decoder have no weights to train; for k-means centroids use stage type "
                "centroids; raw patches need no run: build them with maskgen.tokenizer.model.Tokenizer"
            )
        self.modules: dict[str, nn.Module] = {"model": model}
        self.adversary = build(ADVERSARY, adversarial, channels=model.channels, size=tuple(first.shape[-2:]))
        if self.adversary is not None:
            self.modules["discriminator"] = self.adversary.discriminator
        self.perceptual_network = build(PERCEPTUAL, perceptual_network) if perceptual > 0 else None
        self.l1, self.l2, self.perceptual = l1, l2, perceptual
        self.dataset, self.holdout, self.stills = dataset, holdout, stills

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The terms of the autoencoder, then those of the discriminator, from one pass of the autoencoder."""
        if self.stills and batch["pixels"].ndim == 5 and float(torch.rand(())) < self.stills:
            batch = {**batch, "pixels": frames_of(batch["pixels"])}
        output = forward(self.modules["model"], batch)
        pixels, made = frames_of(batch["pixels"]), frames_of(output.pixels)
        quantizer = {"quantizer": output.loss, **output.terms}
        if self.adversary is None or step < self.adversary.start:
            fit, terms = self._fit(made, pixels)
            yield "model", {"loss": fit + output.loss, **quantizer, **terms}
            return
        surrogate, terms = self._adversarial(made, pixels, step)
        yield "model", {"loss": surrogate + output.loss, **quantizer, **terms}
        yield "discriminator", self.adversary.terms(self.modules["discriminator"], pixels, made, step)

    def _fit(self, made: Tensor, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the reconstruction and perceptual terms, and each term.

        They are computed in float32 also under autocast: in half precision the gradient of a mean over an image is 0.
        """
        made = made.float()
        terms = {"l1": F.l1_loss(made, pixels), "l2": F.mse_loss(made, pixels)}
        loss = self.l1 * terms["l1"] + self.l2 * terms["l2"]
        if self.perceptual_network is not None:
            network = self.perceptual_network.to(pixels.device)
            with torch.autocast(pixels.device.type, enabled=False):
                terms["perceptual"] = network(made.clamp(-1, 1), pixels)
            loss = loss + self.perceptual * terms["perceptual"]
        return loss, terms

    def _adversarial(self, made: Tensor, pixels: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """fit + weight * adversarial, from the gradients at the reconstruction, so the decoder is differentiated once.

        The loss returned is ``<reconstruction, gradient of the sum>`` with that gradient held fixed. Its gradient with
        respect to the parameters equals that of the sum, and its value is set to the sum.
        """
        at = made.detach().float().requires_grad_()
        fit, terms = self._fit(at, pixels)
        fooled = self.adversary.fooled(self.modules["discriminator"], at)
        grad_fit, grad_fooled = torch.autograd.grad(fit, at)[0], torch.autograd.grad(fooled, at)[0]
        weight = torch.as_tensor(self.adversary.weight_at(step), device=pixels.device)
        if self.adversary.adaptive:
            last = extract_model_from_parallel(self.modules["model"]).decoder.last_layer.weight
            weight = weight * adaptive_weight(made, last, grad_fit, grad_fooled)
        surrogate = (made.float() * (grad_fit + weight * grad_fooled)).sum()
        loss = surrogate - surrogate.detach() + (fit + weight * fooled).detach()
        return loss, {"adversarial": fooled, "adversarial_weight": weight, **terms}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """PSNR of the training and of the held-out images, and the use of the codebook on the training images."""
        found = measure(model, self.dataset)
        metrics = {"train/psnr": found.pop("psnr"), **{f"codebook/{name}": value for name, value in found.items()}}
        return metrics if self.holdout is None else {**metrics, "holdout/psnr": measure(model, self.holdout)["psnr"]}

    @torch.no_grad()
    def image(self, model: nn.Module) -> Image.Image:
        """Images, or the frames of videos, above their reconstructions."""
        count = 32 if self.dataset[0]["pixels"].ndim == 3 else 4
        batch = next(spread_items(self.holdout or self.dataset, count))
        there = {key: value.to(next(model.parameters()).device) for key, value in batch.items()}
        made = frames_of(forward(model, there).pixels.cpu())
        return side_by_side(frames_of(batch["pixels"])[:64], made[:64], columns=16)

    def export(self, model: nn.Module, folder: Path) -> None:
        save_tokenizer(model, folder)


def build_tokenizer(spec: Any, dataset: MapDataset) -> tuple[Any, Tensor]:
    """Build the tokenizer; also return the first image or video of the data.

    Raises:
        ValueError: the tokenizer cannot take the data.
    """
    model = build(TOKENIZER, spec)
    first = dataset[0]["pixels"]
    if first.shape[0] != model.channels:
        raise ValueError(
            f"the data has {first.shape[0]} channels and stage.tokenizer.encoder.channels is {model.channels}"
        )
    model.grid(tuple(first.shape[1:]))  # raises if the size does not fit
    return model, first


def forward(model: nn.Module, batch: dict[str, Any]) -> Any:
    """The output of the tokenizer for a batch; a decoder that reads text gets the text features of the batch.

    Raises:
        ValueError: the decoder reads text and the data has none.
    """
    return model(batch["pixels"], text_of(extract_model_from_parallel(model), batch))
