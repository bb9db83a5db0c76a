"""One training step of masked modeling, from its parts."""

from __future__ import annotations

import math
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

    def plan(
        self, batch: int, grid: tuple[int, ...], generator: Generator | None = None, progress: float = 0.0
    ) -> MaskPlan:
        """A fresh plan for `batch` pictures; drawn on the CPU, so its counts are known without a synchronisation."""
        ratio = self.ratio(batch, generator)
        mask: Bool[Tensor, "b *grid"] = self.sampler(ratio, grid, generator=generator, progress=progress)
        return self.dropping(mask, generator)

    def losses(
        self,
        backbone: Callable[..., Any],
        tokens: Tensor,
        condition: Tensor | None = None,
        generator: Generator | None = None,
        progress: float = 0.0,
        **sources: Tensor,
    ) -> dict[str, Tensor]:
        """``loss`` and what else the objective reports, with gradients to the backbone.

        Args:
            backbone: ``(tokens, masked, condition) -> output`` with ``output.predictions`` (b, n, ...); where tokens
                are dropped also ``keep``, and ``kept`` where rows keep different numbers. It predicts all n tokens, or,
                having no decoder, those kept.
            tokens: what the backbone sees: codes (b, *grid), or continuous (b, *grid, d).
            condition: what the backbone takes, int64 (b,) class labels for instance.
            generator: CPU generator of all random choices; None uses torch's default.
            progress: of the training, 0 to 1, for samplers that follow it.
            sources: what the target may be made of, by name: ``pixels`` (b, c, H, W), ``codes`` where they are not the
                tokens, a teacher's ``features``.

        Raises:
            ValueError: the target's source is not given, or its grid is not the tokens'.
        """
        plan = self.plan(tokens.shape[0], grid_of(tokens), generator, progress)
        target, predict = self.wanted(tokens, **sources), plan.predict.flatten(1).to(tokens.device)
        predictions, keep, there = self.predictions(backbone, tokens, plan, condition, generator)
        if keep is not None and there is not None:
            target = target[torch.arange(len(keep), device=keep.device)[:, None], keep]
            predict = predict.gather(1, keep) & there
        terms = self.objective(predictions, target, predict)
        return {**terms, "mask_ratio": plan.hidden.float().mean(), "drop_ratio": plan.dropped.float().mean()}

    def predictions(
        self,
        backbone: Callable[..., Any],
        tokens: Tensor,
        plan: MaskPlan,
        condition: Tensor | None = None,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the backbone predicts under a plan (on the CPU), (b, n, ...).

        Where tokens are dropped and there is no decoder it predicts only the m kept: then also their places, int64
        (b, m), and which of these are no padding, bool (b, m).
        """
        keeping = kept_tokens(plan)
        there = MaskPlan(plan.roles.to(tokens.device), plan.predict.to(tokens.device))
        seen, masked = self.corruption(tokens, there, generator)
        if keeping is None:
            return backbone(seen, masked, condition).predictions, None, None
        keep, counts = keeping[0].to(tokens.device), keeping[1]
        kept = None if len(set(counts)) == 1 else counts
        predictions = backbone(seen, masked, condition, keep=keep, kept=kept).predictions
        if predictions.shape[1] == plan.roles[0].numel():
            return predictions, None, None
        inside = torch.arange(keep.shape[1]) < torch.tensor(counts)[:, None]
        return predictions, keep, inside.to(tokens.device)

    @torch.no_grad()
    def wanted(self, tokens: Tensor, **sources: Tensor) -> Tensor:
        """What is to be predicted, (b, n) codes or (b, n, d) values.

        Raises:
            ValueError: the target's source is not given, or its grid is not the tokens'.
        """
        given = {"tokens": tokens, **({} if tokens.is_floating_point() else {"codes": tokens}), **sources}
        if self.target.source not in given:
            raise ValueError(
                f"masking.target needs {self.target.source}; there are {', '.join(given)}: give the stage what makes "
                "them (target_tokenizer for codes, teacher for features), or choose another target"
            )
        target = self.target(given[self.target.source])
        n = math.prod(grid_of(tokens))
        if target.shape[1] != n:
            raise ValueError(
                f"the target has {target.shape[1]} values a picture for {n} tokens; make its patch, cell or tokenizer "
                "fit the tokens'"
            )
        return target


def grid_of(tokens: Tensor) -> tuple[int, ...]:
    """The grid of codes (b, *grid) or continuous tokens (b, *grid, d)."""
    return tuple(tokens.shape[1:-1] if tokens.is_floating_point() else tokens.shape[1:])
