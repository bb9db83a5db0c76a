"""Auxiliary terms of a masked-modeling step: what else its outcome must satisfy, each with its weight and its heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from maskgen.mim.auxiliary import ClassDistillation, InfoNCE, LossPrediction
from maskgen.mim.dropping import kept_tokens, no_padding
from maskgen.mim.objective import OBJECTIVES, Objective, Reduction
from maskgen.mim.plan import MaskPlan
from maskgen.mim.targets import TARGETS, CentredSoftmax
from maskgen.registry import Part, build


@dataclass
class StepOutput:
    """What a step made.

    output: of the network, with ``predictions`` (b, n, ...), ``features``, ``prefix`` and what it has beside these.
    target, predict: what is wanted, (b, n) or (b, n, d), and bool (b, n) where.
    part, objective: what made the target, and what measures it.
    sources: what targets are made of, by name.
    plan, groups: what was hidden (on the CPU), and codes a place.
    views: rows are `views` blocks, one view of the same images each.
    small: the network's output for further, smaller views, a block each.
    """

    output: Any
    target: Tensor
    predict: Bool[Tensor, "b n"]
    part: Callable[[Any], Tensor]
    objective: Objective
    sources: dict[str, Any]
    plan: MaskPlan
    groups: int = 1
    views: int = 1
    small: Any = None

    def pooled(self) -> Float[Tensor, "b w"]:
        """The mean of a row's features, those of padding left out."""
        features, kept = self.output.features, kept_tokens(self.plan, self.groups)
        if kept is None:
            return features.mean(1)
        there = no_padding(kept[1])[..., None].to(features)
        return (features * there).sum(1) / there.sum(1)

    def made(self, name: str, how: str) -> Tensor:
        """Something of the network's output.

        Raises:
            ValueError: it is not there; `how` says how to get it.
        """
        found = getattr(self.output, name, None)
        if found is None:
            raise ValueError(f"this auxiliary term needs the network's {name}: {how}")
        return found

    def given(self, name: str, how: str) -> Any:
        """A source.

        Raises:
            ValueError: it is not there; `how` says how to get it.
        """
        if name not in self.sources:
            raise ValueError(f"this auxiliary term needs {name}: {how}")
        return self.sources[name]


class Term(nn.Module):
    """One auxiliary term; a subclass gives `forward(outcome)`, its ``loss`` and what else it reports.

    Args:
        weight: of its loss in the sum.
    """

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, outcome: StepOutput) -> dict[str, Tensor]:
        raise NotImplementedError


class ClassTokens(Term):
    """The class token of each view tells the EMA teacher's of the other views (iBOT, arXiv:2111.07832, eq. 1).

    Args:
        prototypes: of the projector, the teacher's logits.
        temperature: of the student.
        teacher_temperature, first_temperature, warmup: of the teacher, see :class:`CentredSoftmax`.
        momentum: of its centre.
    """

    def __init__(
        self,
        prototypes: int = 8192,
        temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        first_temperature: float = 0.04,
        warmup: int = 0,
        momentum: float = 0.9,
        weight: float = 1.0,
        width: int = 0,
    ):
        super().__init__(weight)
        self.softmax = CentredSoftmax(prototypes, teacher_temperature, first_temperature, warmup, momentum)
        self.distillation = ClassDistillation(temperature)

    def forward(self, outcome: StepOutput) -> dict[str, Tensor]:
        how = "set model.cls_token_head: true"
        student = outcome.made("class_predictions", how).unflatten(0, (outcome.views, -1))
        teacher = outcome.given("class_features", "set teacher: ema, and model.cls_token_head: true")
        if outcome.small is not None:
            small = outcome.small.class_predictions.unflatten(0, (-1, student.shape[1]))
            student = torch.cat([student, small])
        return self.distillation(student, self.softmax(teacher).unflatten(0, (outcome.views, -1)))


class PredictedLoss(Term):
    """A second decoder predicts which tokens are hard (HPM, arXiv:2304.05919, section 3.2).

    Args:
        kind, reduction: see :class:`maskgen.mim.auxiliary.LossPrediction`.
    """

    def __init__(
        self,
        kind: Literal["relative", "absolute"] = "relative",
        reduction: Reduction = "token",
        weight: float = 1.0,
        width: int = 0,
    ):
        super().__init__(weight)
        self.prediction = LossPrediction(kind, reduction)

    def forward(self, outcome: StepOutput) -> dict[str, Tensor]:
        how = "set model.branch: {kind: decoder, out_dim: 1}"
        predicted = outcome.made("branch", how).mean(-1)
        each = outcome.objective.per_token(outcome.output.predictions, outcome.target)
        return self.prediction(predicted, each, outcome.predict)


class Branch(Term):
    """The second branch predicts too: the main target by the main objective (BEiT v2, arXiv:2208.06366, eq. 5), or
    another target (CCViT's pixels, arXiv:2303.04664).

    Args:
        target, objective: of its own; None are the main ones.
    """

    def __init__(
        self,
        target: Annotated[Any, Part(TARGETS)] | None = None,
        objective: Annotated[Any, Part(OBJECTIVES)] | None = None,
        weight: float = 1.0,
        width: int = 0,
    ):
        super().__init__(weight)
        self.target = None if target is None else build(Part(TARGETS), target)
        self.objective = None if objective is None else build(Part(OBJECTIVES), objective)

    def forward(self, outcome: StepOutput) -> dict[str, Tensor]:
        predictions = outcome.made("branch", "set model.branch: {kind: class_bottleneck}")
        target = outcome.target
        if self.target is not None:
            with torch.no_grad():
                target = self.target(outcome.given(self.target.source, "its target is made of them"))
        return (self.objective or outcome.objective)(predictions, target, outcome.predict)


class Contrast(Term):
    """Two views of an image are found by each other's pooled features (MAGE-C, arXiv:2211.09117, section 3.3).

    Args:
        hidden, out: of the two-layer MLP on the mean of the encoder's tokens.
        temperature: 0.2 in MAGE-C.
        weight: 0.1 in MAGE-C.
        width: of the features (given by the stage).
    """

    def __init__(
        self, hidden: int = 2048, out: int = 256, temperature: float = 0.2, weight: float = 0.1, width: int = 0
    ):
        super().__init__(weight)
        self.projection = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))
        self.contrast = InfoNCE(temperature)

    def forward(self, outcome: StepOutput) -> dict[str, Tensor]:
        if outcome.views != 2:
            raise ValueError(f"info_nce needs two views, there is {outcome.views}; set augment: {{type: views}}")
        first, second = self.projection(outcome.pooled()).chunk(2)
        return self.contrast(first, second)


class ClassFeature(Term):
    """The class token predicts the teacher's class token by the main objective's loss (MaskAlign, arXiv:2211.15492).

    MaskAlign counts it as one token more; weight 1 / (visible tokens) does that, up to a common factor.
    """

    def __init__(self, weight: float = 1.0, width: int = 0):
        super().__init__(weight)

    def forward(self, outcome: StepOutput) -> dict[str, Tensor]:
        made = outcome.made("class_predictions", "set model.cls_token_head: true")
        wanted = outcome.given("class_features", "take a teacher with a class token: torchvision's ViT, or run")
        return {"loss": outcome.objective.per_token(made[:, None], outcome.part(wanted)).mean()}


TERMS = {
    "class_distillation": ClassTokens,
    "loss_prediction": PredictedLoss,
    "branch": Branch,
    "info_nce": Contrast,
    "class_feature": ClassFeature,
}
TERM = Part(TERMS, given=("width",))
