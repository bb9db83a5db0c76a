"""One training step of masked modeling, from its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Bool
from torch import Generator, Tensor, nn

from maskgen.mim.auxiliary import added
from maskgen.mim.corruption import CORRUPTIONS
from maskgen.mim.dropping import DROPPINGS, kept_tokens, no_padding
from maskgen.mim.objective import OBJECTIVES
from maskgen.mim.plan import MaskPlan
from maskgen.mim.ratios import RATIOS
from maskgen.mim.samplers import SAMPLERS
from maskgen.mim.targets import TARGETS
from maskgen.mim.terms import TERM, StepOutput
from maskgen.registry import Part, build, split
from maskgen.upgrade import earlier_names


class MaskedModeling(nn.Module):
    """ratio -> sampler -> dropping -> corruption -> network -> objective(target), and auxiliary terms.

    The defaults are MaskGIT's (arXiv:2202.04200, section 3.2): cosine ratio, random places, mask token, codes,
    cross-entropy on the masked tokens with label smoothing 0.1. It is a module: targets may keep running statistics,
    and terms bring heads, which are trained with the network.

    Args:
        ratio: how much to hide.
        sampler: which tokens.
        dropping: which of them the network never sees (``all`` MAE, a ``share`` MAGE), or sees replaced.
        corruption: what stands at replaced tokens.
        target: what it must predict.
        objective: the loss.
        auxiliary: further terms.
        width: of the network's features, for the terms' heads (given by the stage).
    """

    def __init__(
        self,
        ratio: Annotated[Any, Part(RATIOS)] = "cosine",
        sampler: Annotated[Any, Part(SAMPLERS)] = "random",
        dropping: Annotated[Any, Part(DROPPINGS)] = "none",
        corruption: Annotated[Any, Part(CORRUPTIONS)] = "mask_token",
        target: Annotated[Any, Part(TARGETS)] = "codes",
        objective: Annotated[Any, Part(OBJECTIVES)] = "cross_entropy",
        auxiliary: Sequence[Annotated[Any, TERM]] = (),
        width: int = 0,
    ):
        super().__init__()
        self.ratio = build(Part(RATIOS), ratio)
        self.sampler = build(Part(SAMPLERS), sampler)
        self.dropping = build(Part(DROPPINGS), dropping)
        self.corruption = build(Part(CORRUPTIONS), corruption)
        self.target = build(Part(TARGETS), target)
        self.objective = build(Part(OBJECTIVES), objective)
        names = [split(term)[0] if isinstance(term, (str, Mapping)) else type(term).__name__ for term in auxiliary]
        built = [build(TERM, term, width=width) for term in auxiliary]
        self.auxiliary = nn.ModuleDict(dict(zip(names, built)))
        if len(self.auxiliary) < len(built):
            raise ValueError(f"masking.auxiliary names one term twice: {', '.join(names)}; give each once")
        if self.dropping.replaces != self.corruption.replaces:
            raise ValueError(
                f"masking.dropping {type(self.dropping).__name__} "
                f"{'replaces' if self.dropping.replaces else 'replaces no'} tokens, masking.corruption "
                f"{type(self.corruption).__name__} {'does' if self.corruption.replaces else 'does not'} say by what: "
                "replace_more and replace_all go with noise, foreign or centroids, the others with mask_token"
            )

    def plan(
        self,
        batch: int,
        grid: tuple[int, ...],
        generator: Generator | None = None,
        progress: float = 0.0,
        groups: int = 1,
        **sources: Any,
    ) -> MaskPlan:
        """A fresh plan for `batch` images; drawn on the CPU, so its counts are known without a synchronisation.

        Raises:
            ValueError: the sampler looks at a source that is not given.
        """
        guide = self.sampler.guide
        if guide is not None and guide not in sources:
            raise ValueError(f"masking.sampler looks at the teacher's {guide}: set stage.teacher (ema, or run)")
        scores = None if guide is None else sources[guide]
        ratio = self.ratio(batch, generator)
        mask: Bool[Tensor, "b *grid"] = self.sampler(ratio, grid, scores, generator, progress)
        return self.corruption.planned(self.dropping(mask, generator, groups), **sources)

    def losses(
        self,
        network: Callable[..., Any],
        tokens: Tensor,
        given: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        progress: float = 0.0,
        views: int = 1,
        small: Tensor | None = None,
        groups: int = 1,
        **sources: Any,
    ) -> dict[str, Tensor]:
        """``loss`` and what else objective and terms report, with gradients to the network.

        Args:
            network: ``(tokens, masked, given) -> output`` with ``output.predictions`` (b, n, ...); where tokens
                are dropped also ``keep``, and ``kept`` where rows keep different numbers. It predicts all n tokens, or,
                having no decoder, those kept.
            tokens: what the network sees: codes (b, *grid), or continuous (b, *grid, d).
            given: the inputs of the network's conditioners by name, which are passed on.
            generator: CPU generator of all random choices; None uses torch's default.
            progress: of the training, 0 to 1, for samplers that follow it.
            views: rows are so many blocks, one view of the same images each.
            small: tokens of further, smaller views, which the network sees whole; for terms.
            groups: codes a place, the last axis of the grid; only whole places are dropped.
            sources: what the target may be made of, by name: ``pixels`` (b, c, H, W), ``codes`` where they are not the
                tokens, a teacher's ``features``; what the sampler looks at: ``attention``, ``losses`` (b, n).

        Raises:
            ValueError: a source is not given, or its grid is not the tokens'.
        """
        outcome, terms = self._step(network, tokens, given, generator, progress, groups, sources)
        outcome.views = views
        if small is not None and self.auxiliary:
            nothing = torch.zeros(len(small), *grid_of(small), dtype=torch.bool, device=small.device)
            outcome.small = network(small, nothing)
        for name, term in self.auxiliary.items():
            weight: Any = term.weight
            terms = added(terms, name, weight, term(outcome))
        return terms

    def main_losses(
        self,
        network: Callable[..., Any],
        tokens: Tensor,
        given: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        groups: int = 1,
        **sources: Any,
    ) -> dict[str, Tensor]:
        """:meth:`losses` without the auxiliary terms, which may need several views: for evaluation."""
        return self._step(network, tokens, given, generator, 0.0, groups, sources)[1]

    def _step(
        self,
        network: Callable[..., Any],
        tokens: Tensor,
        given: Mapping[str, Any] | None,
        generator: Generator | None,
        progress: float,
        groups: int,
        sources: dict[str, Any],
    ) -> tuple[StepOutput, dict[str, Tensor]]:
        plan = self.plan(tokens.shape[0], grid_of(tokens), generator, progress, groups, **sources)
        target, predict = self.wanted(tokens, **sources), plan.predict.flatten(1).to(tokens.device)
        output, keep, there = self.outputs(network, tokens, plan, given, generator, groups, **sources)
        if plan.given is not None:
            counted = ~plan.given.flatten(1).to(tokens.device)
            counted = counted if keep is None else counted.gather(1, keep)
            there = counted if there is None else there & counted
        if keep is not None:
            target = target[torch.arange(len(keep), device=keep.device)[:, None], keep]
            predict = predict.gather(1, keep)
        outcome = StepOutput(output, target, predict, self.target, self.objective, sources, plan, groups)
        shares = {"mask_ratio": plan.hidden.float().mean(), "drop_ratio": plan.dropped.float().mean()}
        return outcome, {**self.objective(output.predictions, target, predict, there), **shares}

    def outputs(
        self,
        network: Callable[..., Any],
        tokens: Tensor,
        plan: MaskPlan,
        given: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        groups: int = 1,
        **sources: Any,
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        """What the network makes under a plan (on the CPU), ``predictions`` (b, n, ...) among it.

        Where tokens are dropped and there is no decoder it predicts only the m kept: then also their places, int64
        (b, m), and which of these are no padding, bool (b, m).
        """
        keeping = kept_tokens(plan, groups)
        on_device = MaskPlan(plan.roles.to(tokens.device), plan.predict.to(tokens.device))
        other = sources.get(self.corruption.source or "")
        seen, masked = self.corruption(tokens, on_device, generator, other)
        masked = masked | on_device.dropped
        if keeping is None:
            return network(seen, masked, given), None, None
        keep, counts = keeping[0].to(tokens.device), keeping[1]
        kept = None if len(set(counts)) == 1 else counts
        output = network(seen, masked, given, keep=keep, kept=kept)
        if output.predictions.shape[1] == plan.roles[0].numel():
            return output, None, None
        codes = keep[..., None] * groups + torch.arange(groups, device=keep.device)
        return output, codes.flatten(1), no_padding(counts).to(tokens.device).repeat_interleave(groups, 1)

    @torch.no_grad()
    def wanted(self, tokens: Tensor, **sources: Any) -> Tensor:
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
                f"the target has {target.shape[1]} values an image for {n} tokens; make its patch, cell or tokenizer "
                "fit the tokens'"
            )
        return target


class Learner(nn.Module):
    """A network and the masked modeling that trains it: one module, whose forward pass is one step's losses."""

    def __init__(self, network: nn.Module, masking: MaskedModeling):
        super().__init__()
        self.network, self.masking = network, masking

    def forward(self, tokens: Tensor, given: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Tensor]:
        """:meth:`MaskedModeling.losses` of the network under its conditions: `given` has the inputs of its
        conditioners by name."""
        return self.masking.losses(self.conditioned, tokens, given, **options)

    def earlier_names(self) -> dict[str, list[str]]:
        """The parameters in the order of earlier versions, see :func:`maskgen.upgrade.upgrade_optimizer`."""
        own = earlier_names(self.network, "network.")
        return own | {name: [name] for name, _ in self.named_parameters() if name not in own}

    def conditioned(
        self, tokens: Tensor, masked: Tensor, given: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """The network's output under the conditions `given`; None is the null condition of every row."""
        if not given:
            return self.network(tokens, masked, **options)
        conditioner: Any = self.network.conditioner
        codes = getattr(self.network, "codes_per_position", 1)
        grid = tuple(masked.shape[1:-1] if codes > 1 else masked.shape[1:])
        return self.network(tokens, masked, conditioner(given, len(tokens), grid), **options)


def grid_of(tokens: Tensor) -> tuple[int, ...]:
    """The grid of codes (b, *grid) or continuous tokens (b, *grid, d)."""
    return tuple(tokens.shape[1:-1] if tokens.is_floating_point() else tokens.shape[1:])
