"""MaskPlan: what happens to each token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

VISIBLE, SUBSTITUTE, DROP, REPLACE = 0, 1, 2, 3


@dataclass(frozen=True)
class MaskPlan:
    """Per token: *visible*, *substitute* (the mask token stands in its place), *drop* (the network never sees it) or
    *replace* (another content stands there, and nothing tells the network so).

    roles: uint8 (b, *grid) of VISIBLE, SUBSTITUTE, DROP, REPLACE.
    predict: bool (b, *grid), the tokens to be predicted; a subset of the hidden ones in most methods.
    given: bool (b, *grid), the tokens that no objective counts, being given for good; None where there are none.
    """

    roles: UInt8[Tensor, "b *grid"]
    predict: Bool[Tensor, "b *grid"]
    given: Bool[Tensor, "b *grid"] | None = None

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "b *grid"]) -> MaskPlan:
        """Substitute and predict where `mask` is True, the rest visible (BEiT, MaskGIT, SimMIM)."""
        return cls(torch.where(mask, SUBSTITUTE, VISIBLE).to(torch.uint8), mask)

    @property
    def substituted(self) -> Bool[Tensor, "b *grid"]:
        return self.roles == SUBSTITUTE

    @property
    def dropped(self) -> Bool[Tensor, "b *grid"]:
        return self.roles == DROP

    @property
    def replaced(self) -> Bool[Tensor, "b *grid"]:
        return self.roles == REPLACE

    @property
    def hidden(self) -> Bool[Tensor, "b *grid"]:
        return self.roles != VISIBLE
