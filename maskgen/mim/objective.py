"""Objectives: a loss per token, averaged over an explicit support with an explicit reduction."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

Support = Literal["masked", "visible", "all"]
Reduction = Literal["token", "image"]


def supported(
    support: Support, masked: Bool[Tensor, "b n"], there: Bool[Tensor, "b n"] | None = None
) -> Bool[Tensor, "b n"]:
    """The tokens that count: masked, visible (MaskAlign) or all (DTM, MaskBit), as far as they are in `there`."""
    where = {"masked": masked, "visible": ~masked, "all": torch.ones_like(masked)}[support]
    return where if there is None else where & there


def reduced(each: Float[Tensor, "b n"], where: Bool[Tensor, "b n"], reduction: Reduction) -> Float[Tensor, ""]:
    """The mean over the tokens at `where`: over the batch (``token``), or per image and then over images (``image``).

    With ``image``, an image without such tokens counts as 0, as in iBOT. A batch without any gives 0.
    """
    each = torch.where(where, each, 0.0)  # a product would keep NaN of tokens that do not count
    if reduction == "token":
        return each.sum() / where.sum().clamp(min=1)
    return (each.sum(1) / where.sum(1).clamp(min=1)).mean()


class Objective:
    """An averaged loss per token; a subclass defines :meth:`per_token`. All losses are computed in float32.

    Args:
        support: the tokens that count, see :func:`supported`.
        reduction: how their losses are averaged, see :func:`reduced`.
    """

    def __init__(self, support: Support = "masked", reduction: Reduction = "token"):
        self.support, self.reduction = support, reduction

    def per_token(self, predictions: Any, target: Any) -> Float[Tensor, "b n"]:
        """The loss of each token, float32 (b, n), also of tokens outside the support."""
        raise NotImplementedError

    def outputs(self, d: int) -> int:
        """How many values the network must predict per token for a target of `d` values."""
        return d

    def __call__(
        self,
        predictions: Float[Tensor, "b n d"],
        target: Real[Tensor, "b n *e"],
        masked: Bool[Tensor, "b n"],
        there: Bool[Tensor, "b n"] | None = None,
    ) -> dict[str, Tensor]:
        """``loss`` and the other terms that the objective reports.

        Args:
            predictions, target: of all tokens, also those that do not count.
            masked: True at the tokens that were hidden and must be predicted.
            there: True at the tokens that the network predicted, if these are not all: no padding, or the subset that
                VideoMAE v2 decodes.
        """
        where = supported(self.support, masked, there)
        return {"loss": reduced(self.per_token(predictions, target), where, self.reduction)}


class CrossEntropy(Objective):
    """Cross-entropy of predicted codes.

    Args:
        label_smoothing: 0.1 in MaskGIT and MAGE.
        support: ``masked`` in MaskGIT and MAGE, ``all`` in MaskBit and Halton-MaskGIT.
        reduction: see :class:`Objective`.
    """

    def __init__(self, label_smoothing: float = 0.1, support: Support = "masked", reduction: Reduction = "token"):
        super().__init__(support, reduction)
        self.label_smoothing = label_smoothing

    def per_token(self, predictions: Float[Tensor, "b n v"], target: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        each = F.cross_entropy(
            predictions.flatten(0, 1).float(),
            target.flatten(),
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return each.view(target.shape)

    def __call__(
        self,
        predictions: Float[Tensor, "b n v"],
        target: Int[Tensor, "b n"],
        masked: Bool[Tensor, "b n"],
        there: Bool[Tensor, "b n"] | None = None,
    ) -> dict[str, Tensor]:
        """``loss``, and ``accuracy`` in [0, 1] over the support (with ``all``: over the masked tokens)."""
        where = supported("masked" if self.support == "all" else self.support, masked, there)
        hits = (predictions.argmax(-1) == target) & where
        terms = super().__call__(predictions, target, masked, there)
        return {**terms, "accuracy": hits.sum() / where.sum().clamp(min=1)}


class SoftCrossEntropy(Objective):
    """-sum_k target_k log softmax(logits / temperature)_k (iBOT, Zhou et al. 2022, arXiv:2111.07832, eq. 2).

    The target is a distribution over the last axis of (b, n, k), for example from
    :class:`maskgen.mim.targets.CentredSoftmax`.
    """

    def __init__(self, temperature: float = 0.1, support: Support = "masked", reduction: Reduction = "image"):
        super().__init__(support, reduction)
        self.temperature = temperature

    def per_token(self, predictions: Float[Tensor, "b n k"], target: Float[Tensor, "b n k"]) -> Float[Tensor, "b n"]:
        return soft_cross_entropy(predictions, target, self.temperature)


def soft_cross_entropy(
    logits: Float[Tensor, "*b k"], target: Float[Tensor, "*b k"], temperature: float
) -> Float[Tensor, "*b"]:
    """Cross-entropy between the distribution `target` and softmax(logits / temperature), in nats."""
    return -(target.float() * F.log_softmax(logits.float() / temperature, dim=-1)).sum(-1)


class BinaryCrossEntropy(Objective):
    """The mean cross-entropy of a token's bits; the target is 0 or 1 (:class:`maskgen.mim.targets.Bits`)."""

    def per_token(self, predictions: Float[Tensor, "b n k"], target: Float[Tensor, "b n k"]) -> Float[Tensor, "b n"]:
        return F.binary_cross_entropy_with_logits(predictions.float(), target.float(), reduction="none").mean(-1)


class MSE(Objective):
    """The squared error, averaged over a token's values (MAE, MaskFeat, VideoMAE)."""

    def per_token(self, predictions: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        return (predictions.float() - target.float()).square().mean(-1)


class L1(Objective):
    """The absolute error, averaged over a token's values (SimMIM, Xie et al. 2022, arXiv:2111.09886, eq. 1)."""

    def per_token(self, predictions: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        return (predictions.float() - target.float()).abs().mean(-1)


class SmoothL1(Objective):
    """0.5 x^2 / beta where |x| < beta, else |x| - 0.5 beta, averaged over a token's values (MaskDistill; MaskAlign's
    loss is twice this with beta 1)."""

    def __init__(self, beta: float = 1.0, support: Support = "masked", reduction: Reduction = "token"):
        super().__init__(support, reduction)
        self.beta = beta

    def per_token(self, predictions: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        return F.smooth_l1_loss(predictions.float(), target.float(), reduction="none", beta=self.beta).mean(-1)


class Cosine(Objective):
    """1 - cosine similarity, in [0, 2]."""

    def per_token(self, predictions: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        return 1 - F.cosine_similarity(predictions.float(), target.float(), dim=-1)


class GaussianMixture(Objective):
    """The negative log-likelihood of a continuous token under a mixture of diagonal Gaussians, in nats, summed over its
    d values (GIVT, Tschannen et al. 2024, arXiv:2312.02116, section 3.2).

    Predictions are (b, n, k (1 + 2 d)): the logits of the k components, then the d means and d scales (before the
    softplus) of each component. GIVT has the same order, but a square plus instead of the softplus.

    Args:
        components: k.
        floor: the smallest scale; without it the likelihood of a repeated token is unbounded.
    """

    def __init__(
        self,
        components: int = 16,
        floor: float = 1e-4,
        support: Support = "masked",
        reduction: Reduction = "token",
    ):
        super().__init__(support, reduction)
        self.components, self.floor = components, floor

    def outputs(self, d: int) -> int:
        return self.components * (1 + 2 * d)

    def split(
        self, predictions: Float[Tensor, "b n e"]
    ) -> tuple[Float[Tensor, "b n k"], Float[Tensor, "b n k d"], Float[Tensor, "b n k d"]]:
        """The log-probabilities, means and scales (standard deviations) of the components.

        Raises:
            ValueError: the last axis of the predictions is not k (1 + 2 d) long.
        """
        k, size = self.components, predictions.shape[-1]
        if size <= k or (size - k) % (2 * k):
            raise ValueError(
                f"{size} predictions per token are not a mixture of {k} components; predict {k} x (1 + 2 d) for d "
                f"values, {k * 3} for one"
            )
        logits, rest = predictions.float().split([k, size - k], dim=-1)
        means, scales = rest.unflatten(-1, (k, 2, -1)).unbind(-2)
        return logits.log_softmax(-1), means, F.softplus(scales).clamp(min=self.floor)

    def per_token(self, predictions: Float[Tensor, "b n e"], target: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        weights, means, scales = self.split(predictions)
        if means.shape[-1] != target.shape[-1]:
            raise ValueError(
                f"{predictions.shape[-1]} predictions per token are {self.components} components of "
                f"{means.shape[-1]} values, but the target has {target.shape[-1]} values; predict "
                f"{self.components * (1 + 2 * target.shape[-1])}"
            )
        z = (target.float()[:, :, None] - means) / scales
        log_density = -(0.5 * z.square() + scales.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        return -torch.logsumexp(weights + log_density, dim=-1)

    def __call__(
        self,
        predictions: Float[Tensor, "b n e"],
        target: Float[Tensor, "b n d"],
        masked: Bool[Tensor, "b n"],
        there: Bool[Tensor, "b n"] | None = None,
    ) -> dict[str, Tensor]:
        """``loss``, and ``nats_per_value``, the loss / d, which is comparable between tokenizers."""
        terms = super().__call__(predictions, target, masked, there)
        return {**terms, "nats_per_value": terms["loss"].detach() / target.shape[-1]}


OBJECTIVES = {
    "cross_entropy": CrossEntropy,
    "soft_cross_entropy": SoftCrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "mse": MSE,
    "l1": L1,
    "smooth_l1": SmoothL1,
    "cosine": Cosine,
    "gaussian_mixture": GaussianMixture,
}
