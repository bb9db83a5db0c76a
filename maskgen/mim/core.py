"""One training step of masked modeling, from its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from jaxtyping import Bool
from torch import Generator, Tensor

from maskgen.mim.corruption import CORRUPTIONS
from maskgen.mim.dropping import DROPPINGS, kept_tokens
from maskgen.mim.objective import OBJECTIVES
from maskgen.mim.plan import MaskPlan
from maskgen.mim.ratios import RATIOS
from maskgen.mim.samplers import SAMPLERS
from maskgen.mim.targets import TARGETS
from maskgen.parts import Part, build


class MaskedModeling:
    """ratio -> sampler -> dropping -> corruption -> backbone -> objective(target).

    The defaults are MaskGIT's (arXiv:2202.04200, section 3.2): cosine ratio, random places, mask token, codes,
    cross-entropy on the masked tokens with label smoothing 0.1.

    Args:
        ratio: how much to hide.
        sampler: which tokens.
        dropping: which of them the network never sees: ``none``, ``all`` (MAE) or a ``share`` (MAGE).
        corruption: what stands at the hidden tokens that it does see.
        target: what it must predict.
        objective: the loss.
    """

    def __init__(
        self,
        ratio: Annotated[Any, Part(RATIOS)] = "cosine",
        sampler: Annotated[Any, Part(SAMPLERS)] = "random",
        dropping: Annotated[Any, Part(DROPPINGS)] = "none",
        corruption: Annotated[Any, Part(CORRUPTIONS)] = "mask_token",
        target: Annotated[Any, Part(TARGETS)] = "codes",
        objective: Annotated[Any, Part(OBJECTIVES)] = "cross_entropy",
    ):
        self.ratio = build(Part(RATIOS), ratio)
        self.sampler = build(Part(SAMPLERS), sampler)
        self.dropping = build(Part(DROPPINGS), dropping)
        self.corruption = build(Part(CORRUPTIONS), corruption)
        self.target = build(Part(TARGETS), target)
        self.objective = build(Part(OBJECTIVES), objective)

    def plan(self, batch: int, grid: tuple[int, ...], generator: Generator | None = None) -> MaskPlan:
        """A fresh plan for `batch` pictures; drawn on the CPU, so its counts are known without a synchronisation."""
        mask: Bool[Tensor, "b *grid"] = self.sampler(self.ratio(batch, generator), grid, generator=generator)
        return self.dropping(mask, generator)

    def losses(
        self,
        backbone: Callable[..., Any],
        tokens: Tensor,
        condition: Tensor | None = None,
        generator: Generator | None = None,
    ) -> dict[str, Tensor]:
        """``loss`` and what else the objective reports, with gradients to the backbone.

        Args:
            backbone: ``(tokens, masked, condition) -> output`` with ``output.predictions`` (b, n, ...); where tokens
                are dropped also ``keep``, and ``kept`` where rows keep different numbers. It predicts all n tokens, or,
                having no decoder, those kept.
            tokens: (b, *grid) codes.
            condition: what the backbone takes, int64 (b,) class labels for instance.
            generator: CPU generator of all random choices; None uses torch's default.
        """
        plan = self.plan(tokens.shape[0], tuple(tokens.shape[1:]), generator)
        keeping = kept_tokens(plan)
        plan = MaskPlan(plan.roles.to(tokens.device), plan.predict.to(tokens.device))
        seen, masked = self.corruption(tokens, plan, generator)
        target, predict = self.target(tokens).flatten(1), plan.predict.flatten(1)
        if keeping is None:
            predictions = backbone(seen, masked, condition).predictions
        else:
            keep, counts = keeping[0].to(tokens.device), keeping[1]
            kept = None if len(set(counts)) == 1 else counts
            predictions = backbone(seen, masked, condition, keep=keep, kept=kept).predictions
            if predictions.shape[1] != target.shape[1]:  # no decoder: at the tokens that it saw
                there = torch.arange(keep.shape[1]) < torch.tensor(counts)[:, None]
                target, predict = target.gather(1, keep), predict.gather(1, keep) & there.to(predict.device)
        terms = self.objective(predictions, target, predict)
        return {**terms, "mask_ratio": plan.hidden.float().mean(), "drop_ratio": plan.dropped.float().mean()}
