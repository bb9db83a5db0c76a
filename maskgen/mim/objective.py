"""The loss, on an explicit support with an explicit reduction."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class CrossEntropy:
    """Cross-entropy of predicted codes.

    Args:
        label_smoothing: 0.1 in MaskGIT and MAGE.
        support: ``masked`` (MaskGIT, MAGE) or ``all`` (MaskBit, Halton-MaskGIT) tokens count.
        reduction: mean over the support's tokens of the whole batch (``token``), or of each image and then over
            images (``image``).
    """

    def __init__(
        self,
        label_smoothing: float = 0.1,
        support: Literal["masked", "all"] = "masked",
        reduction: Literal["token", "image"] = "token",
    ):
        self.label_smoothing, self.support, self.reduction = label_smoothing, support, reduction

    def __call__(
        self, logits: Float[Tensor, "b n v"], target: Int[Tensor, "b n"], predict: Bool[Tensor, "b n"]
    ) -> dict[str, Tensor]:
        """``loss`` by the settings, and ``accuracy`` over the tokens to be predicted (a fraction)."""
        each = F.cross_entropy(
            logits.float().transpose(1, 2), target, reduction="none", label_smoothing=self.label_smoothing
        )
        weight = predict.float() if self.support == "masked" else each.new_ones(each.shape)
        if self.reduction == "token":
            loss = (each * weight).sum() / weight.sum().clamp(min=1)
        else:
            loss = ((each * weight).sum(1) / weight.sum(1).clamp(min=1)).mean()
        hits = (logits.argmax(-1) == target) & predict
        return {"loss": loss, "accuracy": hits.sum() / predict.sum().clamp(min=1)}


OBJECTIVES = {"cross_entropy": CrossEntropy}
