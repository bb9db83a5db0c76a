"""Losses beside the objective: contrast of two views, the class token's distillation, predicting the loss itself.

Their arithmetic on plain tensors; :mod:`maskgen.mim.terms` brings them into a step.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from maskgen.mim.objective import Reduction, reduced, soft_cross_entropy


def added(terms: dict[str, Tensor], name: str, weight: float, auxiliary: dict[str, Tensor]) -> dict[str, Tensor]:
    """`terms` with ``loss`` raised by weight x the auxiliary loss, whose own terms are named ``name/...``."""
    own = {f"{name}/{key}": value for key, value in auxiliary.items()}
    return {**terms, **own, "loss": terms["loss"] + weight * auxiliary["loss"]}


class InfoNCE:
    """Which image of the batch is the other view of mine? (MAGE-C, Li et al. 2023, arXiv:2211.09117, eq. 2; weight
    0.1.)

    Cross-entropy of cosine similarities / temperature against the other view of all images, of all processes; the
    mean of both directions.

    Args:
        temperature: 0.2 in MAGE-C.
    """

    def __init__(self, temperature: float = 0.2):
        self.temperature = temperature

    def __call__(self, first: Float[Tensor, "b d"], second: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        """``loss``, and ``accuracy`` (a fraction).

        Args:
            first, second: projections of two views, row i of both from the same image; as many in all processes.
        """
        a, b = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
        every_a, every_b = gathered(a), gathered(b)
        own = torch.arange(len(a), device=a.device) + (len(a) * dist.get_rank() if _distributed() else 0)
        ab, ba = a @ every_b.T / self.temperature, b @ every_a.T / self.temperature
        loss = (F.cross_entropy(ab, own) + F.cross_entropy(ba, own)) / 2
        return {"loss": loss, "accuracy": (ab.argmax(-1) == own).float().mean()}


def gathered(x: Float[Tensor, "b d"]) -> Float[Tensor, "all d"]:
    """Rows of all processes, in their order; gradients go back to the process that a row came from."""
    if not _distributed():
        return x
    from torch.distributed.nn import all_gather  # not in every build of PyTorch

    return torch.cat(all_gather(x))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


class ClassDistillation:
    """The class token of a view must tell the teacher's class token of each *other* view (DINO, arXiv:2104.14294,
    eq. 3; iBOT, arXiv:2111.07832, eq. 1).

    Args:
        temperature: of the student.
    """

    def __init__(self, temperature: float = 0.1):
        self.temperature = temperature

    def __call__(self, student: Float[Tensor, "v b k"], teacher: Float[Tensor, "g b k"]) -> dict[str, Tensor]:
        """``loss``, the mean over all pairs of different views.

        Args:
            student: logits of all views, the teacher's (global) ones first and in its order.
            teacher: distributions of the global views (:class:`maskgen.mim.targets.CentredSoftmax`).

        Raises:
            ValueError: no pair of different views.
        """
        views, globals_ = len(student), len(teacher)
        pairs = [(v, g) for v in range(views) for g in range(globals_) if v != g]
        if not pairs:
            raise ValueError(f"{views} view of the student and {globals_} of the teacher make no pair; give two views")
        losses = [soft_cross_entropy(student[v], teacher[g], self.temperature).mean() for v, g in pairs]
        return {"loss": torch.stack(losses).mean()}


class LossPrediction:
    """A second head predicts the reconstruction loss of each masked token, to find the hard ones (HPM, Wang et al.
    2023, arXiv:2304.05919, section 3.2).

    Args:
        kind: ``relative`` - of two masked tokens of an image, which has the larger loss? Binary cross-entropy over all
            pairs, the sigmoid of the difference of predictions. ``absolute`` - squared error against the losses,
            normalised in each image.
        reduction: mean over all pairs (tokens) of the batch, or of each image first.
    """

    def __init__(self, kind: Literal["relative", "absolute"] = "relative", reduction: Reduction = "token"):
        self.kind, self.reduction = kind, reduction

    def __call__(
        self, predicted: Float[Tensor, "b n"], losses: Float[Tensor, "b n"], masked: Bool[Tensor, "b n"]
    ) -> dict[str, Tensor]:
        """``loss``, and of ``relative`` the ``accuracy`` of the pairs' order (a fraction).

        Args:
            predicted: the head's outputs.
            losses: what the objective's ``per_token`` gave; no gradient goes there.
            masked: the tokens that count; rows may have different numbers.
        """
        predicted, losses = predicted.float(), losses.detach().float()
        if self.kind == "relative":
            return self._relative(predicted, losses, masked)
        wanted = _standardised(losses, masked)
        return {"loss": reduced((predicted - wanted).square(), masked, self.reduction)}

    def _relative(
        self, predicted: Float[Tensor, "b n"], losses: Float[Tensor, "b n"], masked: Bool[Tensor, "b n"]
    ) -> dict[str, Tensor]:
        """Each pair once, the harder token first: of (i, j) and (j, i) the cross-entropy is the same."""
        harder = (losses[:, :, None] > losses[:, None]) & masked[:, :, None] & masked[:, None]
        margin = (predicted[:, :, None] - predicted[:, None]).flatten(1)
        where = harder.flatten(1)
        hits = ((margin > 0) & where).sum() / where.sum().clamp(min=1)
        return {"loss": reduced(-F.logsigmoid(margin), where, self.reduction), "accuracy": hits}


def _standardised(x: Float[Tensor, "b n"], where: Bool[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Mean 0 and unbiased variance 1 over each row's tokens of `where`, 1e-6 added to the variance."""
    x = torch.where(where, x, 0.0)
    count = where.sum(1, keepdim=True)
    apart = torch.where(where, x - x.sum(1, keepdim=True) / count.clamp(min=1), 0.0)
    return apart / (apart.square().sum(1, keepdim=True) / (count - 1).clamp(min=1) + 1e-6).sqrt()
