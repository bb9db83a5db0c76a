"""Auxiliary losses on plain tensors: contrast of two views, distillation of the class token, prediction of the loss.

:mod:`maskgen.mim.terms` adds them to a training step.
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
    """`terms` whose ``loss`` is raised by `weight` times the auxiliary loss; auxiliary terms are named ``name/...``."""
    own = {f"{name}/{key}": value for key, value in auxiliary.items()}
    return {**terms, **own, "loss": terms["loss"] + weight * auxiliary["loss"]}


class InfoNCE:
    """Contrastive loss: each view has to find the other view of its image (MAGE-C, Li et al. 2023, arXiv:2211.09117,
    eq. 2, with weight 0.1).

    The loss is the cross-entropy of cosine similarities / temperature over the other views of all images of all
    processes, averaged over both directions.

    Args:
        temperature: divisor of the similarities; 0.2 in MAGE-C.
    """

    def __init__(self, temperature: float = 0.2):
        self.temperature = temperature

    def __call__(self, first: Float[Tensor, "b d"], second: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        """``loss``, and ``accuracy`` in [0, 1].

        Args:
            first, second: projections of the two views; row i of both is of the same image. All processes have equally
                many rows.
        """
        a, b = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
        every_a, every_b = gathered(a), gathered(b)
        own = torch.arange(len(a), device=a.device) + (len(a) * dist.get_rank() if _distributed() else 0)
        ab, ba = a @ every_b.T / self.temperature, b @ every_a.T / self.temperature
        loss = (F.cross_entropy(ab, own) + F.cross_entropy(ba, own)) / 2
        return {"loss": loss, "accuracy": (ab.argmax(-1) == own).float().mean()}


def gathered(x: Float[Tensor, "b d"]) -> Float[Tensor, "all d"]:
    """The rows of all processes, in the order of the processes. Gradients flow back to the process of each row."""
    if not _distributed():
        return x
    from torch.distributed.nn import all_gather  # not in every build of PyTorch

    return torch.cat(all_gather(x))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


class ClassDistillation:
    """The class token of each view predicts the teacher's class token of each *other* view (DINO, arXiv:2104.14294,
    eq. 3; iBOT, arXiv:2111.07832, eq. 1).

    Args:
        temperature: softmax temperature of the student.
    """

    def __init__(self, temperature: float = 0.1):
        self.temperature = temperature

    def __call__(self, student: Float[Tensor, "v b k"], teacher: Float[Tensor, "g b k"]) -> dict[str, Tensor]:
        """``loss``, the mean over all pairs of different views.

        Args:
            student: logits of all views. The global views, which the teacher sees, come first, in the same order.
            teacher: distributions of the global views (:class:`maskgen.mim.targets.CentredSoftmax`).

        Raises:
            ValueError: there is no pair of different views.
        """
        views, globals_ = len(student), len(teacher)
        pairs = [(v, g) for v in range(views) for g in range(globals_) if v != g]
        if not pairs:
            raise ValueError(f"{views} student view and {globals_} teacher view make no pair; give two views")
        losses = [soft_cross_entropy(student[v], teacher[g], self.temperature).mean() for v, g in pairs]
        return {"loss": torch.stack(losses).mean()}


class LossPrediction:
    """The loss of a second head, which predicts the reconstruction loss of each masked token to find the hard ones
    (HPM, Wang et al. 2023, arXiv:2304.05919, section 3.2).

    Args:
        kind: ``relative`` predicts which of two masked tokens of an image has the larger loss: binary cross-entropy
            over all pairs, with the sigmoid of the difference of their predictions. ``absolute`` is the squared error
            against the losses, which are normalised per image.
        reduction: ``token`` averages over all pairs (or tokens) of the batch, ``image`` first within each image.
    """

    def __init__(self, kind: Literal["relative", "absolute"] = "relative", reduction: Reduction = "token"):
        self.kind, self.reduction = kind, reduction

    def __call__(
        self, predicted: Float[Tensor, "b n"], losses: Float[Tensor, "b n"], masked: Bool[Tensor, "b n"]
    ) -> dict[str, Tensor]:
        """``loss``; kind ``relative`` also returns ``accuracy``, the fraction of pairs in the right order.

        Args:
            predicted: the head's outputs.
            losses: the result of the objective's ``per_token``; it gets no gradient.
            masked: the tokens that count; their number may differ between rows.
        """
        predicted, losses = predicted.float(), losses.detach().float()
        if self.kind == "relative":
            return self._relative(predicted, losses, masked)
        wanted = _standardised(losses, masked)
        return {"loss": reduced((predicted - wanted).square(), masked, self.reduction)}

    def _relative(
        self, predicted: Float[Tensor, "b n"], losses: Float[Tensor, "b n"], masked: Bool[Tensor, "b n"]
    ) -> dict[str, Tensor]:
        """Counts each pair once, with the harder token first: (i, j) and (j, i) have the same cross-entropy."""
        harder = (losses[:, :, None] > losses[:, None]) & masked[:, :, None] & masked[:, None]
        margin = (predicted[:, :, None] - predicted[:, None]).flatten(1)
        where = harder.flatten(1)
        hits = ((margin > 0) & where).sum() / where.sum().clamp(min=1)
        return {"loss": reduced(-F.logsigmoid(margin), where, self.reduction), "accuracy": hits}


def _standardised(x: Float[Tensor, "b n"], where: Bool[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Standardises each row over its tokens at `where`: mean 0, unbiased variance 1 (plus 1e-6)."""
    x = torch.where(where, x, 0.0)
    count = where.sum(1, keepdim=True)
    apart = torch.where(where, x - x.sum(1, keepdim=True) / count.clamp(min=1), 0.0)
    return apart / (apart.square().sum(1, keepdim=True) / (count - 1).clamp(min=1) + 1e-6).sqrt()
