"""Stage 1: train a tokenizer to reconstruct."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import Tensor, nn

from maskgen.evaluation.reconstruction import measure, spread
from maskgen.parts import Part, build
from maskgen.pictures import side_by_side
from maskgen.pipelines.store import save_tokenizer
from maskgen.tokenizer.losses import (
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.batches import MapDataset

TOKENIZER = Part({"tokenizer": Tokenizer}, default="tokenizer")


class TokenizerStage:
    """Reconstruction + quantizer + optional perceptual and adversarial terms (VQGAN, arXiv:2012.09841, section 3.1).

    Args:
        tokenizer: its parts.
        l1, l2: weights of the mean absolute and the mean squared error.
        perceptual: weight of LPIPS; `perceptual_weights` is a local file of VGG-16's weights.
        adversarial: weight of the adversarial term, itself scaled by the adaptive weight; 0 trains no discriminator.
        adversarial_start: step from which the discriminator and its term are on.
        adversarial_kind: loss of the discriminator.
        discriminator_width, discriminator_layers: of the PatchGAN.
        dataset: the training pictures (given by the run).
        holdout: pictures kept out of training, for the metrics (given by the run); None keeps none.
    """

    def __init__(
        self,
        dataset: MapDataset,
        holdout: MapDataset | None = None,
        tokenizer: Annotated[Any, TOKENIZER] = {},  # noqa: B006
        l1: float = 1.0,
        l2: float = 0.0,
        perceptual: float = 0.0,
        perceptual_weights: str | None = None,
        adversarial: float = 0.0,
        adversarial_start: int = 0,
        adversarial_kind: Literal["hinge", "non_saturating"] = "hinge",
        discriminator_width: int = 64,
        discriminator_layers: int = 3,
    ):
        model = build(TOKENIZER, tokenizer)
        first = dataset[0]["pixels"]
        if first.shape[0] != model.channels:
            raise ValueError(
                f"the data has {first.shape[0]} channels and stage.tokenizer.encoder.channels is {model.channels}"
            )
        model.grid(tuple(first.shape[1:]))  # complains of a size that does not fit
        self.modules: dict[str, nn.Module] = {"model": model}
        if adversarial > 0:
            self.modules["discriminator"] = PatchDiscriminator(
                model.channels, discriminator_width, discriminator_layers
            )
        self.perceptual_loss = PerceptualLoss(perceptual_weights) if perceptual > 0 else None
        self.l1, self.l2, self.perceptual = l1, l2, perceptual
        self.adversarial, self.adversarial_start, self.kind = adversarial, adversarial_start, adversarial_kind
        self.dataset, self.holdout = dataset, holdout

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One pass of the autoencoder serves both its own step and the discriminator's."""
        pixels = batch["pixels"]
        output = self.modules["model"](pixels)
        if self.adversarial == 0 or step < self.adversarial_start:
            fit, terms = self._fit(output.pixels, pixels)
            yield "model", {"loss": fit + output.loss, "quantizer": output.loss, **terms}
            return
        yield "model", self._adversarial_terms(output, pixels)
        both = self.modules["discriminator"](torch.cat([pixels, output.pixels.detach().to(pixels.dtype)]))
        real, fake = both.float().chunk(2)
        loss = discriminator_loss(real, fake, self.kind)
        yield "discriminator", {"loss": loss, "real": real.mean(), "fake": fake.mean()}

    def _fit(self, made: Tensor, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction and perceptual terms, weighted and summed; and each alone."""
        made = made.float()
        terms = {"l1": F.l1_loss(made, pixels), "l2": F.mse_loss(made, pixels)}
        loss = self.l1 * terms["l1"] + self.l2 * terms["l2"]
        if self.perceptual_loss is not None:
            terms["perceptual"] = self.perceptual_loss.to(pixels.device)(made.clamp(-1, 1), pixels)
            loss = loss + self.perceptual * terms["perceptual"]
        return loss, terms

    def _adversarial_terms(self, output: Any, pixels: Tensor) -> dict[str, Tensor]:
        """All terms from their gradients at the reconstruction, so that the decoder is differentiated once.

        The loss handed to backward is ``<reconstruction, gradient>`` with the gradient of fit + weight * adversarial
        held fixed: its gradient by the parameters is the plain sum's.
        """
        made = output.pixels.detach().float().requires_grad_()
        fit, terms = self._fit(made, pixels)
        discriminator = extract_model_from_parallel(self.modules["discriminator"])
        discriminator.requires_grad_(False)
        fooled = generator_loss(discriminator(made).float(), self.kind)
        discriminator.requires_grad_(True)
        grad_fit, grad_fooled = torch.autograd.grad(fit, made)[0], torch.autograd.grad(fooled, made)[0]
        last = extract_model_from_parallel(self.modules["model"]).decoder.output.weight
        kind = output.pixels.dtype
        weight = self.adversarial * adaptive_weight(output.pixels, last, grad_fit.to(kind), grad_fooled.to(kind))
        surrogate = (output.pixels * (grad_fit + weight * grad_fooled).to(kind)).sum()
        total = (fit + weight * fooled).detach()
        loss = output.loss + surrogate - surrogate.detach() + total
        return {
            "loss": loss,
            "quantizer": output.loss,
            "adversarial": fooled,
            "adversarial_weight": weight,
            **terms,
        }

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """PSNR of the training and of the held-out pictures; codebook use on the former."""
        found = measure(model, self.dataset)
        metrics = {
            "train/psnr": found["psnr"],
            "codebook/use": found["use"],
            "codebook/perplexity": found["perplexity"],
        }
        return metrics if self.holdout is None else {**metrics, "holdout/psnr": measure(model, self.holdout)["psnr"]}

    @torch.no_grad()
    def picture(self, model: nn.Module) -> Image.Image:
        """Pictures above their reconstructions."""
        pixels = next(spread(self.holdout or self.dataset, 32))
        made = model(pixels.to(next(model.parameters()).device)).pixels
        return side_by_side(pixels, made.cpu(), columns=16)

    def export(self, model: nn.Module, folder: Path) -> None:
        save_tokenizer(model, folder)
