"""Which hidden tokens the network never sees, and which it sees as something else."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from maskgen.mim.plan import DROP, MaskPlan
from maskgen.mim.samplers import hide_lowest


class Keep:
    """None is dropped: something stands in the place of every hidden token (BEiT, SimMIM, MaskGIT)."""

    def __call__(self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None) -> MaskPlan:
        """A plan that predicts what `mask` hides."""
        return MaskPlan.from_mask(mask)


class DropAll:
    """All hidden tokens are dropped (MAE, arXiv:2111.06377): only the visible ones cost anything."""

    def __call__(self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None) -> MaskPlan:
        plan = MaskPlan.from_mask(mask)
        return MaskPlan(plan.roles.masked_fill(mask, DROP), mask)


class DropShare:
    """Of the hidden tokens so many, at random, that `share` of all is dropped (MAGE, arXiv:2211.09117, section 3.1).

    A row that hides fewer drops all of these; rows may then keep different numbers of tokens.
    """

    def __init__(self, share: float = 0.5):
        if not 0 < share < 1:
            raise ValueError(f"share {share} of the tokens to drop must lie between 0 and 1")
        self.share = share

    def __call__(self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None) -> MaskPlan:
        flat = mask.flatten(1)
        counts = flat.sum(1).clamp(max=math.ceil(self.share * flat.shape[1]))
        noise = torch.rand(flat.shape, generator=generator).masked_fill(~flat, 2.0)
        plan = MaskPlan.from_mask(mask)
        return MaskPlan(plan.roles.masked_fill(hide_lowest(noise, counts).view_as(mask), DROP), mask)


DROPPINGS = {"none": Keep, "all": DropAll, "share": DropShare}


def kept_tokens(plan: MaskPlan) -> tuple[Int[Tensor, "b m"], list[int]] | None:
    """Flat positions of the tokens that are not dropped, in order, each row at its front and padded with 0, and their
    number in each row; None where nothing is dropped. The plan is on the CPU, so nothing waits."""
    if not plan.dropped.any():
        return None
    there = ~plan.dropped.flatten(1)
    counts = there.sum(1)
    order = (~there).long().argsort(dim=1, stable=True)[:, : int(counts.max())]
    inside = torch.arange(order.shape[1]) < counts[:, None]
    return order.masked_fill(~inside, 0), counts.tolist()
