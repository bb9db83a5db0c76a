"""Corruptions: what the network sees at replaced tokens. At substituted tokens it sees its learned mask token."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Shaped
from torch import Generator, Tensor

from maskgen.mim.plan import REPLACE, VISIBLE, MaskPlan
from maskgen.registry import choose

Mode = Literal["cond_input", "input_input", "cond_cond"]


class Corruption:
    """Base class; a subclass defines :meth:`content`.

    `source` names the input that it needs in addition to the tokens, or is None. `replaces` is True if it needs a
    dropping that replaces tokens (``replace_more``, ``replace_all``).
    """

    source: str | None = None
    replaces = True

    def planned(self, plan: MaskPlan, **sources: Any) -> MaskPlan:
        """The plan, which a corruption may change if it has content for some tokens only."""
        return plan

    def __call__(
        self, tokens: Tensor, plan: MaskPlan, generator: Generator | None = None, other: Tensor | None = None
    ) -> tuple[Tensor, Bool[Tensor, "b *grid"]]:
        """The tokens that the network sees, and bool (b, *grid), True where its mask token stands instead.

        Args:
            tokens: codes, int64 (b, *grid), or continuous tokens, float (b, *grid, d).
            plan: on the device of the tokens.
            generator: CPU generator of all random choices.
            other: the input named by `source`, of the tokens' shape and dtype.
        """
        where = plan.replaced[..., None] if tokens.is_floating_point() else plan.replaced
        made = self.content(tokens, generator, other)
        return (tokens if made is None else torch.where(where, made, tokens)), plan.substituted

    def content(
        self, tokens: Shaped[Tensor, "b *n"], generator: Generator | None, other: Tensor | None
    ) -> Tensor | None:
        """What stands at replaced tokens, of the shape and dtype of `tokens`; None if nothing is replaced."""
        raise NotImplementedError


class MaskToken(Corruption):
    """No token is replaced; the mask token stands at all hidden tokens (BERT, MaskGIT, BEiT)."""

    replaces = False

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> None:
        return None


class Noise(Corruption):
    """Random codes, or Gaussian noise for continuous tokens (GMML, arXiv:2205.14986).

    Args:
        std: standard deviation of the noise, in the units of the tokens.
        codebook_size: number of codes to choose from; 0 for continuous tokens.
    """

    def __init__(self, std: float = 1.0, codebook_size: int = 0):
        self.std, self.codebook_size = std, codebook_size

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> Tensor:
        if tokens.is_floating_point():
            return self.std * torch.randn(tokens.shape, generator=generator).to(tokens)
        if not self.codebook_size:
            raise ValueError("corruption noise replaces codes by random codes: set its codebook_size")
        return torch.randint(self.codebook_size, tokens.shape, generator=generator).to(tokens)


class Foreign(Corruption):
    """The token at the same position of another image of the batch (GMML; SiT, arXiv:2104.03602, "alien" patches)."""

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> Tensor:
        return tokens.roll(1, 0)


class Centroids(Corruption):
    """The nearest centroid of the patch, as the target tokenizer reconstructs it (CCViT, arXiv:2303.04664)."""

    source = "reconstruction"

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> Tensor:
        if other is None:
            raise ValueError("corruption centroids needs a reconstruction; set stage.target_tokenizer")
        return other


class Condition(Corruption):
    """The condition of a task, made in pixels and tokenized, is part of the sequence (COMMIT, MAGVIT, Yu et al. 2023,
    arXiv:2212.05199, section 3.2).

    The condition's region is the set of tokens with at least one condition pixel; elsewhere the condition is padding.
    The mode decides what stands in the region:

    - ``cond_input`` (COMMIT): the condition token if the token is hidden, else the true token. It is predicted like all
      other tokens, so the network refines it. Hidden tokens outside the region are mask tokens.
    - ``input_input``: always the true token. The region is never hidden and has no loss.
    - ``cond_cond``: always the condition token. The region has no loss.

    In the last two modes the mask ratio holds outside the region on average, because tokens sampled in the region are
    not hidden. Use ``support: all`` in the objective: the paper's loss sums the refinement of condition tokens, the
    prediction of masked tokens and the reconstruction of the others.

    Args:
        mode: one of the three above.

    Raises:
        ValueError: the mode is unknown.
    """

    source = "condition_tokens"
    replaces = False  # `planned` decides what is replaced

    def __init__(self, mode: Mode = "cond_input"):
        choose(dict.fromkeys(get_args(Mode)), mode, "condition mode")
        self.mode = mode

    def planned(
        self, plan: MaskPlan, condition_region: Bool[Tensor, "b *grid"] | None = None, **sources: Any
    ) -> MaskPlan:
        """The plan with the tokens of the region replaced, or visible.

        Raises:
            ValueError: the region is missing, because the stage has no tasks.
        """
        if condition_region is None or self.source not in sources:
            raise ValueError("corruption condition needs the condition tokens of tasks; set stage.tasks")
        region = condition_region.to(plan.roles.device)
        if self.mode == "cond_input":
            return MaskPlan(plan.roles.masked_fill(region & plan.substituted, REPLACE), plan.predict)
        role = VISIBLE if self.mode == "input_input" else REPLACE
        return MaskPlan(plan.roles.masked_fill(region, role), plan.predict & ~region, region)

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> Tensor | None:
        return other


CORRUPTIONS = {
    "mask_token": MaskToken,
    "noise": Noise,
    "foreign": Foreign,
    "centroids": Centroids,
    "condition": Condition,
}
