"""The adversarial part of tokenizer training: the discriminator, its loss, and the guards that keep it stable."""

from __future__ import annotations

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from maskgen.tokenizer.discriminator import PatchDiscriminator
from maskgen.tokenizer.losses import Kind, discriminator_loss, generator_loss, lecam_loss, r1_penalty


class Adversary:
    """A PatchGAN and the settings of the adversarial term; docs/tokenizers.md measures the effect of each guard.

    Args:
        channels, size: channels and size (H, W) of the images (given by the stage).
        weight: weight of the adversarial term.
        start: the step from which the discriminator is trained.
        warmup: the number of steps, counted from `start`, over which the weight rises from 0.
        adaptive: whether the weight is multiplied by the ratio of the two gradients at the decoder's last layer (Esser
            et al. 2021, eq. 7). There the gradient of the term is then `weight` times as long as that of the
            reconstruction terms. If not, the weight is constant.
        kind: ``hinge`` or ``non_saturating`` loss.
        lecam: weight of LeCAM's regularisation (Tseng et al. 2021); 0 turns it off.
        lecam_decay: decay of LeCAM's moving averages.
        r1: gamma of the gradient penalty gamma / 2 |dD/dx|^2 (Mescheder et al. 2018); 0 turns it off.
        r1_every: the penalty is computed in every `r1_every`-th step and multiplied by `r1_every` (StyleGAN2,
            arXiv:1912.04958, section 3.1).
        width, layers: size of the discriminator, see :class:`~maskgen.tokenizer.discriminator.PatchDiscriminator`.

    Raises:
        ValueError: a setting is out of range, or the discriminator is too deep for the images.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        weight: float = 0.1,
        start: int = 0,
        warmup: int = 0,
        adaptive: bool = True,
        kind: Kind = "hinge",
        lecam: float = 0.0,
        lecam_decay: float = 0.999,
        r1: float = 0.0,
        r1_every: int = 16,
        width: int = 64,
        layers: int = 3,
    ):
        wrong = [
            f"adversarial.{name} must be {words}, got {value}"
            for name, value, right, words in (
                ("weight", weight, weight > 0, "above 0 (to train without a discriminator leave adversarial out)"),
                ("start", start, start >= 0, "at least 0"),
                ("warmup", warmup, warmup >= 0, "at least 0"),
                ("lecam", lecam, lecam >= 0, "at least 0"),
                ("lecam_decay", lecam_decay, 0 <= lecam_decay < 1, "at least 0 and below 1"),
                ("r1", r1, r1 >= 0, "at least 0"),
                ("r1_every", r1_every, r1_every >= 1, "at least 1"),
            )
            if not right
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        self.discriminator = PatchDiscriminator(channels, width, layers)
        self.discriminator.check_size(size)
        self.weight, self.start, self.warmup, self.adaptive, self.kind = weight, start, warmup, adaptive, kind
        self.lecam, self.lecam_decay, self.r1, self.r1_every = lecam, lecam_decay, r1, r1_every

    def weight_at(self, step: int) -> float:
        """The weight at a step, with warm-up; 0 before `start`."""
        if step < self.start:
            return 0.0
        return self.weight * min(1.0, (step - self.start + 1) / (self.warmup + 1))

    def fooled(self, module: nn.Module, made: Tensor) -> Tensor:
        """The adversarial loss of the autoencoder, in float32; the discriminator's weights get no gradient."""
        discriminator = extract_model_from_parallel(module)
        discriminator.requires_grad_(False)
        with torch.autocast(made.device.type, enabled=False):
            loss = generator_loss(discriminator(made.float()), self.kind)
        discriminator.requires_grad_(True)
        return loss

    def terms(self, module: nn.Module, pixels: Tensor, made: Tensor, step: int) -> dict[str, Tensor]:
        """The loss of the discriminator and its terms; LeCAM's anchors are updated."""
        penalise = self.r1 > 0 and (step - self.start) % self.r1_every == 0
        pixels = pixels.detach().requires_grad_(penalise)
        with torch.autocast(pixels.device.type, enabled=torch.is_autocast_enabled(pixels.device.type) and not penalise):
            logits = module(torch.cat([pixels, made.detach().to(pixels.dtype)]))
        real, fake = logits.float().chunk(2)
        terms = {"real": real.mean(), "fake": fake.mean()}
        loss = discriminator_loss(real, fake, self.kind)
        if self.lecam > 0:
            bare = extract_model_from_parallel(module)
            terms["lecam"] = lecam_loss(real, fake, bare.anchor_real.clone(), bare.anchor_fake.clone())
            bare.follow(real, fake, self.lecam_decay)
            loss = loss + self.lecam * terms["lecam"]
        if penalise:
            terms["r1"] = r1_penalty(real, pixels)
            loss = loss + 0.5 * self.r1 * self.r1_every * terms["r1"]
        return {"loss": loss, **terms}
