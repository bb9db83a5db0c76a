"""What the network sees in the place of a substituted token."""

from __future__ import annotations

from torch import Generator, Tensor

from maskgen.mim.plan import MaskPlan


class MaskToken:
    """The learned mask token (BERT, MaskGIT).

    A corruption returns the tokens that the network sees and a bool mask of the places where its own learned mask
    token stands instead.
    """

    def __call__(self, tokens: Tensor, plan: MaskPlan, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        return tokens, plan.substituted


CORRUPTIONS = {"mask_token": MaskToken}
