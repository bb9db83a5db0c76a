"""What the network sees in the place of a replaced token; at a substituted one it is its own learned mask token."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Shaped
from torch import Generator, Tensor

from maskgen.mim.plan import REPLACE, VISIBLE, MaskPlan
from maskgen.registry import choose

Mode = Literal["cond_input", "input_input", "cond_cond"]


class Corruption:
    """A subclass says what stands at replaced tokens.

    `source` names what it is made of beside the tokens, None where nothing. `replaces` tells a corruption that needs
    replaced tokens (droppings ``replace_more``, ``replace_all``) from the mask token, which has no use for them.
    """

    source: str | None = None
    replaces = True

    def planned(self, plan: MaskPlan, **sources: Any) -> MaskPlan:
        """The plan, where the corruption has a say in it: it alone knows where there is something to stand."""
        return plan

    def __call__(
        self, tokens: Tensor, plan: MaskPlan, generator: Generator | None = None, other: Tensor | None = None
    ) -> tuple[Tensor, Bool[Tensor, "b *grid"]]:
        """The tokens that the network sees, and the places where its mask token stands instead.

        Args:
            tokens: codes (b, *grid) or continuous (b, *grid, d).
            plan: on the device of the tokens.
            generator: CPU generator of all random choices.
            other: the tensor of `source`, like the tokens.
        """
        where = plan.replaced[..., None] if tokens.is_floating_point() else plan.replaced
        made = self.content(tokens, generator, other)
        return (tokens if made is None else torch.where(where, made, tokens)), plan.substituted

    def content(
        self, tokens: Shaped[Tensor, "b *n"], generator: Generator | None, other: Tensor | None
    ) -> Tensor | None:
        """What stands at the replaced tokens, like `tokens`; None where nothing may be replaced."""
        raise NotImplementedError


class MaskToken(Corruption):
    """Nothing is replaced: the learned mask token alone (BERT, MaskGIT, BEiT)."""

    replaces = False

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> None:
        return None


class Noise(Corruption):
    """Random codes, or Gaussian noise of standard deviation `std` in the tokens' units (GMML, arXiv:2205.14986).

    Args:
        codebook_size: of random codes; 0 for continuous tokens.
    """

    def __init__(self, std: float = 1.0, codebook_size: int = 0):
        self.std, self.codebook_size = std, codebook_size

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> Tensor:
        if tokens.is_floating_point():
            return self.std * torch.randn(tokens.shape, generator=generator).to(tokens)
        if not self.codebook_size:
            raise ValueError("corruption noise replaces codes by random ones: set its codebook_size")
        return torch.randint(self.codebook_size, tokens.shape, generator=generator).to(tokens)


class Foreign(Corruption):
    """The same place of another image of the batch (GMML, SiT, arXiv:2104.03602, "alien" patches)."""

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> Tensor:
        return tokens.roll(1, 0)


class Centroids(Corruption):
    """The patch's nearest centroid (CCViT, arXiv:2303.04664): the reconstruction by the target tokenizer."""

    source = "reconstruction"

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> Tensor:
        if other is None:
            raise ValueError("corruption centroids needs a reconstruction; set stage.target_tokenizer")
        return other


class Condition(Corruption):
    """A task's condition, built in pixels and tokenised, stands in the sequence itself (COMMIT, MAGVIT, Yu et al. 2023,
    arXiv:2212.05199, section 3.2).

    The condition's region are the tokens of which any pixel is a condition pixel; elsewhere the condition is padding.
    What stands at the tokens of the region:

    - ``cond_input``, COMMIT: the condition token where it is hidden, the true one where not. It is to be predicted as
      all others are: refined. Outside the region a hidden token is the mask token.
    - ``input_input``: always the true token. The region is never hidden and has no loss.
    - ``cond_cond``: always the condition token. The region has no loss.

    In the last two the ratio is that of the tokens outside the region on average: those drawn inside are not hidden.
    Take ``support: all`` in the objective: the paper's loss is the sum of refining condition tokens, predicting masked
    ones and reconstructing the others.

    Args:
        mode: see above.

    Raises:
        ValueError: an unknown mode.
    """

    source = "condition_tokens"
    replaces = False  # it says itself what is replaced

    def __init__(self, mode: Mode = "cond_input"):
        choose(dict.fromkeys(get_args(Mode)), mode, "condition mode")
        self.mode = mode

    def planned(
        self, plan: MaskPlan, condition_region: Bool[Tensor, "b *grid"] | None = None, **sources: Any
    ) -> MaskPlan:
        """The plan with the region's tokens replaced, or visible.

        Raises:
            ValueError: no region: there are no tasks.
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
