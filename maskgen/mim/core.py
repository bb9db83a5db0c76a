"""MaskedModeling: one training step of masked modeling, composed of its parts."""

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

    The defaults are those of MaskGIT (arXiv:2202.04200, section 3.2): cosine ratio, random positions, mask token,
    codes, cross-entropy on the masked tokens with label smoothing 0.1. It is a module because targets may keep running
    statistics and auxiliary terms may have heads, which are trained with the network.

    Args:
        ratio: how many tokens to hide.
        sampler: which tokens to hide.
        dropping: which hidden tokens the network never sees (MAE: ``all``; MAGE: a ``share``), and whether some are
            replaced.
        corruption: what stands at replaced tokens.
        target: what the network must predict.
        objective: the loss.
        auxiliary: further losses.
        width: width of the network's features, for the heads of the terms (set by the stage).

    Raises:
        ValueError: an auxiliary term is named twice, or `dropping` and `corruption` do not go together.
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
            raise ValueError(f"masking.auxiliary names a term twice: {', '.join(names)}; name each term once")
        if self.dropping.replaces != self.corruption.replaces:
            raise ValueError(
                f"masking.dropping {type(self.dropping).__name__} replaces "
                f"{'some' if self.dropping.replaces else 'no'} tokens, but masking.corruption "
                f"{type(self.corruption).__name__} has "
                f"{'a' if self.corruption.replaces else 'no'} replacement for them: combine replace_more and "
                "replace_all with noise, foreign or centroids, and the other droppings with mask_token"
            )

    def plan(
        self,
        batch: int,
        grid: tuple[int, ...],
        generator: Generator | None = None,
        progress: float = 0.0,
        codes_per_position: int = 1,
        **sources: Any,
    ) -> MaskPlan:
        """A random plan for `batch` images, on the CPU, so that its counts are known without a synchronisation.

        Args:
            batch: number of images.
            grid: of the tokens; codes_per_position > 1 is its last axis.
            generator: CPU generator of all random choices; None uses torch's default.
            progress: of the training, in [0, 1].
            codes_per_position: see :meth:`losses`.
            sources: see :meth:`losses`.

        Raises:
            ValueError: a source that the sampler needs is not given.
        """
        guide = self.sampler.guide
        if guide is not None and guide not in sources:
            raise ValueError(f"masking.sampler needs the teacher's {guide}: set stage.teacher to ema or run")
        scores = None if guide is None else sources[guide]
        ratio = self.ratio(batch, generator)
        mask: Bool[Tensor, "b *grid"] = self.sampler(ratio, grid, scores, generator, progress)
        return self.corruption.planned(self.dropping(mask, generator, codes_per_position), **sources)

    def losses(
        self,
        network: Callable[..., Any],
        tokens: Tensor,
        given: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        progress: float = 0.0,
        views: int = 1,
        small: Tensor | None = None,
        codes_per_position: int = 1,
        **sources: Any,
    ) -> dict[str, Tensor]:
        """``loss`` and the other terms that the objective and the auxiliary terms report.

        Args:
            network: ``(tokens, masked, given) -> output`` with ``output.predictions`` (b, n, ...). It also gets
                ``keep`` where tokens are dropped, and ``kept`` where rows keep different numbers. It predicts all n
                tokens, or the kept ones if it has no decoder.
            tokens: codes, int64 (b, *grid), or continuous tokens, float (b, *grid, d).
            given: the inputs of the network's conditioners by name; they are passed on to the network.
            generator: CPU generator of all random choices; None uses torch's default.
            progress: of the training, in [0, 1], for samplers that depend on it.
            views: number of views. The rows are `views` blocks, each with one view of every image.
            small: tokens of smaller views, which the network sees without a mask; for auxiliary terms.
            codes_per_position: length of the grid's last axis if it is the codes of a position, else 1. Only whole
                positions are dropped.
            sources: inputs of the target by name: ``pixels`` (b, c, H, W), ``codes`` if they differ from the tokens,
                ``features`` of a teacher; inputs of the sampler: ``attention`` or ``losses``, (b, n).

        Raises:
            ValueError: a source is missing, or its grid differs from that of the tokens.
        """
        step, terms = self._step(network, tokens, given, generator, progress, codes_per_position, sources)
        step.views = views
        if small is not None and self.auxiliary:
            nothing = torch.zeros(len(small), *grid_of(small), dtype=torch.bool, device=small.device)
            step.small = network(small, nothing)
        for name, term in self.auxiliary.items():
            weight: Any = term.weight
            terms = added(terms, name, weight, term(step))
        return terms

    def main_losses(
        self,
        network: Callable[..., Any],
        tokens: Tensor,
        given: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        codes_per_position: int = 1,
        **sources: Any,
    ) -> dict[str, Tensor]:
        """:meth:`losses` without the auxiliary terms, which may need several views. For evaluation."""
        return self._step(network, tokens, given, generator, 0.0, codes_per_position, sources)[1]

    def _step(
        self,
        network: Callable[..., Any],
        tokens: Tensor,
        given: Mapping[str, Any] | None,
        generator: Generator | None,
        progress: float,
        codes_per_position: int,
        sources: dict[str, Any],
    ) -> tuple[StepOutput, dict[str, Tensor]]:
        plan = self.plan(tokens.shape[0], grid_of(tokens), generator, progress, codes_per_position, **sources)
        target, predict = self.wanted(tokens, **sources), plan.predict.flatten(1).to(tokens.device)
        output, keep, there = self.outputs(network, tokens, plan, given, generator, codes_per_position, **sources)
        if plan.given is not None:
            counted = ~plan.given.flatten(1).to(tokens.device)
            counted = counted if keep is None else counted.gather(1, keep)
            there = counted if there is None else there & counted
        if keep is not None:
            target = target[torch.arange(len(keep), device=keep.device)[:, None], keep]
            predict = predict.gather(1, keep)
        step = StepOutput(output, target, predict, self.target, self.objective, sources, plan, codes_per_position)
        shares = {"mask_ratio": plan.hidden.float().mean(), "drop_ratio": plan.dropped.float().mean()}
        return step, {**self.objective(output.predictions, target, predict, there), **shares}

    def outputs(
        self,
        network: Callable[..., Any],
        tokens: Tensor,
        plan: MaskPlan,
        given: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
        codes_per_position: int = 1,
        **sources: Any,
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        """The network's output under a plan (on the CPU), with ``predictions`` (b, n, ...).

        A network without a decoder predicts only the m kept tokens. Then the second value holds their positions, int64
        (b, m), and the third is bool (b, m), False at padding; otherwise both are None.
        """
        keeping = kept_tokens(plan, codes_per_position)
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
        codes = keep[..., None] * codes_per_position + torch.arange(codes_per_position, device=keep.device)
        return output, codes.flatten(1), no_padding(counts).to(tokens.device).repeat_interleave(codes_per_position, 1)

    @torch.no_grad()
    def wanted(self, tokens: Tensor, **sources: Any) -> Tensor:
        """What the network must predict: codes, int64 (b, n), or values, float (b, n, d).

        Raises:
            ValueError: the target's source is missing, or its grid differs from that of the tokens.
        """
        given = {"tokens": tokens, **({} if tokens.is_floating_point() else {"codes": tokens}), **sources}
        if self.target.source not in given:
            raise ValueError(
                f"masking.target needs {self.target.source}, but there are only {', '.join(given)}: set "
                "stage.target_tokenizer for codes or stage.teacher for features, or choose another target"
            )
        target = self.target(given[self.target.source])
        n = math.prod(grid_of(tokens))
        if target.shape[1] != n:
            raise ValueError(
                f"the target has {target.shape[1]} values per image for {n} tokens; change the patch, cell or "
                "tokenizer of masking.target so that both numbers agree"
            )
        return target


class Learner(nn.Module):
    """A network and the masked modeling that trains it, as one module. Its forward pass gives the losses of a step."""

    def __init__(self, network: nn.Module, masking: MaskedModeling):
        super().__init__()
        self.network, self.masking = network, masking

    def forward(self, tokens: Tensor, given: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Tensor]:
        """:meth:`MaskedModeling.losses` of the network. `given` holds the inputs of its conditioners by name."""
        return self.masking.losses(self.conditioned, tokens, given, **options)

    def earlier_names(self) -> dict[str, list[str]]:
        """The parameters in the order of earlier versions, see :func:`maskgen.upgrade.upgrade_optimizer`."""
        own = earlier_names(self.network, "network.")
        return own | {name: [name] for name, _ in self.named_parameters() if name not in own}

    def conditioned(
        self, tokens: Tensor, masked: Tensor, given: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """The network's output under the conditions `given`; None is the null condition for every row."""
        if not given:
            return self.network(tokens, masked, **options)
        conditioner: Any = self.network.conditioner
        codes = getattr(self.network, "codes_per_position", 1)
        grid = tuple(masked.shape[1:-1] if codes > 1 else masked.shape[1:])
        return self.network(tokens, masked, conditioner(given, len(tokens), grid), **options)


def grid_of(tokens: Tensor) -> tuple[int, ...]:
    """The grid of codes (b, *grid) or continuous tokens (b, *grid, d)."""
    return tuple(tokens.shape[1:-1] if tokens.is_floating_point() else tokens.shape[1:])
