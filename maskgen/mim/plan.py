"""MaskPlan: what happens to each token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

VISIBLE, SUBSTITUTE, DROP = 0, 1, 2


@dataclass(frozen=True)
class MaskPlan:
    """Per token: *visible*, *substitute* (something else stands in its place) or *drop* (the network never sees it).

    roles: uint8 (b, *grid) of VISIBLE, SUBSTITUTE, DROP.
    predict: bool (b, *grid), the tokens to be predicted; a subset of the hidden ones in most methods.
    """

    roles: UInt8[Tensor, "b *grid"]
    predict: Bool[Tensor, "b *grid"]

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
    def hidden(self) -> Bool[Tensor, "b *grid"]:
        return self.roles != VISIBLE
