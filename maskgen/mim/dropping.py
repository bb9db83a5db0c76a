"""What becomes of the hidden tokens: a mask token in their place, nothing at all, or another content."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from maskgen.mim.plan import DROP, REPLACE, MaskPlan
from maskgen.mim.samplers import hide_lowest


class Dropping:
    """A subclass makes a plan. `replaces`: some tokens are to be replaced, and the corruption must say by what."""

    replaces = False

    def __call__(self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, groups: int = 1) -> MaskPlan:
        """A plan that predicts what `mask` hides.

        Args:
            mask: True = hidden.
            generator: CPU generator of all random choices.
            groups: codes a place, the last axis of the mask; only whole places are dropped.
        """
        raise NotImplementedError


class Keep(Dropping):
    """None is dropped: the mask token stands in the place of every hidden token (BEiT, SimMIM, MaskGIT)."""

    def __call__(self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, groups: int = 1) -> MaskPlan:
        return MaskPlan.from_mask(mask)


class DropAll(Dropping):
    """All hidden tokens are dropped (MAE, arXiv:2111.06377): only the visible ones cost anything."""

    def __call__(self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, groups: int = 1) -> MaskPlan:
        return _dropped(mask, _hidden_places(mask, groups), groups)


class DropShare(Dropping):
    """Of the hidden tokens so many, at random, that `share` of all is dropped (MAGE, arXiv:2211.09117, section 3.1).

    A row that hides fewer drops all of these; rows may then keep different numbers of tokens.
    """

    def __init__(self, share: float = 0.5):
        if not 0 < share < 1:
            raise ValueError(f"share {share} of the tokens to drop must lie between 0 and 1")
        self.share = share

    def __call__(self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, groups: int = 1) -> MaskPlan:
        places = _hidden_places(mask, groups)
        counts = places.sum(1).clamp(max=math.ceil(self.share * places.shape[1]))
        noise = torch.rand(places.shape, generator=generator).masked_fill(~places, 2.0)
        return _dropped(mask, hide_lowest(noise, counts), groups)


def _hidden_places(mask: Bool[Tensor, "b *grid"], groups: int) -> Bool[Tensor, "b n"]:
    """TokenLayout of which every code is hidden."""
    return mask.flatten(1).unflatten(1, (-1, groups)).all(-1)


def _dropped(mask: Bool[Tensor, "b *grid"], places: Bool[Tensor, "b n"], groups: int) -> MaskPlan:
    """Drop these places, substitute what else is hidden."""
    drop = places.repeat_interleave(groups, 1).view_as(mask)
    return MaskPlan(MaskPlan.from_mask(mask).roles.masked_fill(drop, DROP), mask)


class ReplaceMore(Dropping):
    """The mask token at every hidden token, and of the visible ones `count` replaced: both are predicted (CCViT,
    arXiv:2303.04664, section 3.2: 20 of 196). What stands there says the corruption."""

    replaces = True

    def __init__(self, count: int = 20):
        if count < 1:
            raise ValueError(f"count must be at least 1 token to replace, got {count}")
        self.count = count

    def __call__(self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, groups: int = 1) -> MaskPlan:
        flat = mask.flatten(1)
        noise = torch.rand(flat.shape, generator=generator).masked_fill(flat, 2.0)
        counts = (~flat).sum(1).clamp(max=self.count)
        replaced = hide_lowest(noise, counts).view_as(mask)
        return MaskPlan(MaskPlan.from_mask(mask).roles.masked_fill(replaced, REPLACE), mask | replaced)


class ReplaceAll(Dropping):
    """Another content at every hidden token (GMML, SiT): nothing tells the network which are theirs."""

    replaces = True

    def __call__(self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, groups: int = 1) -> MaskPlan:
        return MaskPlan(MaskPlan.from_mask(mask).roles.masked_fill(mask, REPLACE), mask)


DROPPINGS = {"none": Keep, "all": DropAll, "share": DropShare, "replace_more": ReplaceMore, "replace_all": ReplaceAll}


def kept_tokens(plan: MaskPlan, groups: int = 1) -> tuple[Int[Tensor, "b m"], list[int]] | None:
    """Flat positions of the places that are not dropped, in order, each row at its front and padded with 0, and their
    number in each row; None where nothing is dropped. The plan is on the CPU, so nothing waits."""
    there = ~plan.dropped.flatten(1)[:, ::groups]
    if there.all():
        return None
    counts = there.sum(1)
    order = (~there).long().argsort(dim=1, stable=True)[:, : int(counts.max())]
    numbers = counts.tolist()
    return order.masked_fill(~no_padding(numbers), 0), numbers


def no_padding(counts: list[int]) -> Bool[Tensor, "b m"]:
    """The first `counts` of each row, of as many as the longest has."""
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]
