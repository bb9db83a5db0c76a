"""MaskPlan: what happens to each token in a training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

VISIBLE, SUBSTITUTE, DROP, REPLACE = 0, 1, 2, 3


@dataclass(frozen=True)
class MaskPlan:
    """The role of each token: *visible*, *substitute* (the network sees the mask token instead), *drop* (the network
    never sees it) or *replace* (the network sees other content and does not know it).

    Args:
        roles: uint8 (b, *grid) of VISIBLE, SUBSTITUTE, DROP, REPLACE.
        predict: bool (b, *grid), the tokens that the network must predict; in most methods hidden ones only.
        given: bool (b, *grid), the tokens that no objective counts because the task supplies them; None is no token.
    """

    roles: UInt8[Tensor, "b *grid"]
    predict: Bool[Tensor, "b *grid"]
    given: Bool[Tensor, "b *grid"] | None = None

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "b *grid"]) -> MaskPlan:
        """Substitutes and predicts the tokens where `mask` is True; the others are visible (BEiT, MaskGIT, SimMIM)."""
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
