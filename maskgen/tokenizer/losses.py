"""Losses of tokenizer training, except those of :mod:`maskgen.tokenizer.perceptual`; all compute in float32."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Kind = Literal["hinge", "non_saturating"]


def discriminator_loss(real: Tensor, fake: Tensor, kind: Kind) -> Float[Tensor, ""]:
    """The loss of the discriminator, from its logits of real and of reconstructed images."""
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(fake: Tensor, kind: Kind) -> Float[Tensor, ""]:
    """The adversarial loss of the autoencoder, from the discriminator's logits of its reconstructions."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def lecam_loss(real: Tensor, fake: Tensor, anchor_real: Tensor, anchor_fake: Tensor) -> Float[Tensor, ""]:
    """LeCAM's regularisation of the discriminator (Tseng et al. 2021, arXiv:2104.03310, section 3).

    E |D(x) - a_F|^2 + E |D(G(z)) - a_R|^2, where a_R and a_F are moving averages of the mean logits of real and of
    reconstructed images. As in the authors' code, only positive differences D(x) - a_F and a_R - D(G(z)) count.
    """
    return F.relu(real - anchor_fake).square().mean() + F.relu(anchor_real - fake).square().mean()


def r1_penalty(logits: Float[Tensor, "b 1 p q"], pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """E |dD(x)/dx|^2 at real images (Mescheder et al. 2018, arXiv:1801.04406, eq. 9, without gamma / 2).

    D(x) is the mean of the logits of an image. `pixels` must require a gradient; the graph is kept for the backward
    pass.
    """
    means = logits.float().mean(dim=(1, 2, 3))
    (slope,) = torch.autograd.grad(means.sum(), pixels, create_graph=True)
    return slope.float().square().sum(dim=(1, 2, 3)).mean()


def adaptive_weight(
    reconstruction: Tensor, last_layer: Tensor, grad_loss: Tensor, grad_adversarial: Tensor, maximum: float = 1e4
) -> Float[Tensor, ""]:
    """|d loss / d last layer| / |d adversarial / d last layer| (Esser et al. 2021, arXiv:2012.09841, eq. 7), clipped.

    Args:
        reconstruction: the reconstructed pixels with their graph, which is kept.
        last_layer: the weight of the decoder's last layer.
        grad_loss, grad_adversarial: the gradients of the two losses *with respect to the reconstruction*. With these
            only the last layer is differentiated here, and neither loss a second time.
    """
    norms = []
    for gradient in (grad_loss, grad_adversarial):
        size = gradient.norm()
        unit = (gradient / size.clamp(min=1e-30)).to(
            reconstruction.dtype
        )  # in float16 the unscaled gradient would be 0
        (last,) = torch.autograd.grad(reconstruction, last_layer, unit, retain_graph=True)
        norms.append(size * last.float().norm())
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, maximum)


def feature_loss(made: Float[Tensor, "b d h w"], wanted: Float[Tensor, "b d h w"]) -> Float[Tensor, ""]:
    """1 - cosine similarity, averaged over tokens: VQ-KD's distillation (BEiT v2, arXiv:2208.06366, section 2.2)."""
    return 1 - F.cosine_similarity(made.float(), wanted.float(), dim=1).mean()


def frames_of(pixels: Float[Tensor, "b c *t H W"]) -> Float[Tensor, "n c H W"]:
    """Videos (b, c, t, H, W) as a batch of their frames, one video after the other; images are returned unchanged."""
    return pixels.transpose(1, 2).flatten(0, 1) if pixels.ndim == 5 else pixels
