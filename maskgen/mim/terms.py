"""Auxiliary terms of a masked-modeling step: further losses, each with its weight and its heads."""

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
    """The tensors of a step, from which auxiliary terms compute their losses.

    Args:
        output: the network's output, with ``predictions`` (b, n, ...), ``features``, ``prefix`` and others.
        target: codes (b, n) or values (b, n, d).
        predict: bool (b, n), the tokens that the network must predict.
        part: the part that made the target.
        objective: the main loss.
        sources: inputs of targets by name.
        plan: the roles of the tokens, on the CPU.
        codes_per_position: length of the grid's last axis if it is the codes of a position, else 1.
        views: number of views. The rows are `views` blocks, each with one view of every image.
        small: the network's output for smaller views, one block per view; None without such views.
    """

    output: Any
    target: Tensor
    predict: Bool[Tensor, "b n"]
    part: Callable[[Any], Tensor]
    objective: Objective
    sources: dict[str, Any]
    plan: MaskPlan
    codes_per_position: int = 1
    views: int = 1
    small: Any = None

    def pooled(self) -> Float[Tensor, "b w"]:
        """The mean of each row's features without padding."""
        features, kept = self.output.features, kept_tokens(self.plan, self.codes_per_position)
        if kept is None:
            return features.mean(1)
        there = no_padding(kept[1])[..., None].to(features)
        return (features * there).sum(1) / there.sum(1)

    def made(self, name: str, how: str) -> Tensor:
        """The field `name` of the network's output.

        Raises:
            ValueError: the network has no such output; the message ends with the remedy `how`.
        """
        found = getattr(self.output, name, None)
        if found is None:
            raise ValueError(f"this auxiliary term needs the network's {name}: {how}")
        return found

    def given(self, name: str, how: str) -> Any:
        """The source `name`.

        Raises:
            ValueError: the source is missing; the message ends with the remedy `how`.
        """
        if name not in self.sources:
            raise ValueError(f"this auxiliary term needs {name}: {how}")
        return self.sources[name]


class Term(nn.Module):
    """Base class of auxiliary terms. A subclass defines `forward(step)`, which returns a dict with ``loss``.

    Args:
        weight: factor of its loss in the total loss.
    """

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, step: StepOutput) -> dict[str, Tensor]:
        raise NotImplementedError


class ClassTokens(Term):
    """The class token of each view predicts the EMA teacher's class token of the other views (iBOT, arXiv:2111.07832,
    eq. 1).

    Args:
        prototypes: number of prototypes of the projector, which are the teacher's logits.
        temperature: softmax temperature of the student.
        teacher_temperature, first_temperature, warmup: of the teacher, see :class:`CentredSoftmax`.
        momentum: share of the old centre that is kept.
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

    def forward(self, step: StepOutput) -> dict[str, Tensor]:
        how = "set model.cls_token_head: true"
        student = step.made("class_predictions", how).unflatten(0, (step.views, -1))
        teacher = step.given("class_features", "set stage.teacher: ema and model.cls_token_head: true")
        if step.small is not None:
            small = step.small.class_predictions.unflatten(0, (-1, student.shape[1]))
            student = torch.cat([student, small])
        return self.distillation(student, self.softmax(teacher).unflatten(0, (step.views, -1)))


class PredictedLoss(Term):
    """A second decoder predicts which tokens have a large loss (HPM, arXiv:2304.05919, section 3.2).

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

    def forward(self, step: StepOutput) -> dict[str, Tensor]:
        how = "set model.branch: {kind: decoder, out_dim: 1}"
        predicted = step.made("branch", how).mean(-1)
        each = step.objective.per_token(step.output.predictions, step.target)
        return self.prediction(predicted, each, step.predict)


class Branch(Term):
    """The second branch also predicts: the main target with the main objective (BEiT v2, arXiv:2208.06366, eq. 5), or
    another target (pixels in CCViT, arXiv:2303.04664).

    Args:
        target, objective: of the branch; None takes the main one.
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

    def forward(self, step: StepOutput) -> dict[str, Tensor]:
        predictions = step.made("branch", "set model.branch: {kind: class_bottleneck}")
        target = step.target
        if self.target is not None:
            with torch.no_grad():
                target = self.target(
                    step.given(self.target.source, "the stage must give this input of the term's target")
                )
        return (self.objective or step.objective)(predictions, target, step.predict)


class Contrast(Term):
    """A contrastive loss between the pooled features of two views (MAGE-C, arXiv:2211.09117, section 3.3).

    Args:
        hidden, out: widths of the two-layer MLP on the mean of the encoder's tokens.
        temperature: 0.2 in MAGE-C.
        weight: 0.1 in MAGE-C.
        width: width of the features (set by the stage).
    """

    def __init__(
        self, hidden: int = 2048, out: int = 256, temperature: float = 0.2, weight: float = 0.1, width: int = 0
    ):
        super().__init__(weight)
        self.projection = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))
        self.contrast = InfoNCE(temperature)

    def forward(self, step: StepOutput) -> dict[str, Tensor]:
        if step.views != 2:
            raise ValueError(f"info_nce needs two views, got {step.views}; set augment: {{type: views}}")
        first, second = self.projection(step.pooled()).chunk(2)
        return self.contrast(first, second)


class ClassFeature(Term):
    """The class token predicts the teacher's class token with the main objective (MaskAlign, arXiv:2211.15492).

    MaskAlign counts the class token as one more token; the weight 1 / (visible tokens) does the same up to a common
    factor.
    """

    def __init__(self, weight: float = 1.0, width: int = 0):
        super().__init__(weight)

    def forward(self, step: StepOutput) -> dict[str, Tensor]:
        made = step.made("class_predictions", "set model.cls_token_head: true")
        wanted = step.given("class_features", "choose a teacher with a class token: a ViT of torchvision, or run")
        return {"loss": step.objective.per_token(made[:, None], step.part(wanted)).mean()}


TERMS = {
    "class_distillation": ClassTokens,
    "loss_prediction": PredictedLoss,
    "branch": Branch,
    "info_nce": Contrast,
    "class_feature": ClassFeature,
}
TERM = Part(TERMS, given=("width",))
