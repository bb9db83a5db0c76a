"""Droppings: whether hidden tokens become mask tokens, are dropped, or are replaced by other content."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from maskgen.mim.plan import DROP, REPLACE, MaskPlan
from maskgen.mim.samplers import hide_lowest


class Dropping:
    """Base class. `replaces` is True if the plan replaces tokens, so that the corruption must supply the content."""

    replaces = False

    def __call__(
        self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, codes_per_position: int = 1
    ) -> MaskPlan:
        """A plan that predicts what `mask` hides.

        Args:
            mask: bool (b, *grid), True = hidden.
            generator: CPU generator of all random choices.
            codes_per_position: length of the mask's last axis if it is the codes of a position, else 1. Only whole
                positions are dropped.
        """
        raise NotImplementedError


class Keep(Dropping):
    """Every hidden token becomes a mask token (BEiT, SimMIM, MaskGIT)."""

    def __call__(
        self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, codes_per_position: int = 1
    ) -> MaskPlan:
        return MaskPlan.from_mask(mask)


class DropAll(Dropping):
    """All hidden tokens are dropped, so that only visible tokens cost time (MAE, arXiv:2111.06377)."""

    def __call__(
        self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, codes_per_position: int = 1
    ) -> MaskPlan:
        return _dropped(mask, _hidden_positions(mask, codes_per_position), codes_per_position)


class DropShare(Dropping):
    """Random hidden tokens are dropped, `share` of all tokens (MAGE, arXiv:2211.09117, section 3.1).

    A row with fewer hidden tokens drops all of them, so rows may keep different numbers of tokens.

    Args:
        share: the share to drop, in (0, 1).

    Raises:
        ValueError: `share` is out of range.
    """

    def __init__(self, share: float = 0.5):
        if not 0 < share < 1:
            raise ValueError(f"masking.dropping share is {share}; it must lie between 0 and 1")
        self.share = share

    def __call__(
        self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, codes_per_position: int = 1
    ) -> MaskPlan:
        places = _hidden_positions(mask, codes_per_position)
        counts = places.sum(1).clamp(max=math.ceil(self.share * places.shape[1]))
        noise = torch.rand(places.shape, generator=generator).masked_fill(~places, 2.0)
        return _dropped(mask, hide_lowest(noise, counts), codes_per_position)


def _hidden_positions(mask: Bool[Tensor, "b *grid"], codes_per_position: int) -> Bool[Tensor, "b n"]:
    """The positions at which every code is hidden."""
    return mask.flatten(1).unflatten(1, (-1, codes_per_position)).all(-1)


def _dropped(mask: Bool[Tensor, "b *grid"], places: Bool[Tensor, "b n"], codes_per_position: int) -> MaskPlan:
    """Drops these positions and substitutes the other hidden tokens."""
    drop = places.repeat_interleave(codes_per_position, 1).view_as(mask)
    return MaskPlan(MaskPlan.from_mask(mask).roles.masked_fill(drop, DROP), mask)


class ReplaceMore(Dropping):
    """Hidden tokens become mask tokens, and `count` visible tokens are replaced; both are predicted (CCViT,
    arXiv:2303.04664, section 3.2: 20 of 196)."""

    replaces = True

    def __init__(self, count: int = 20):
        if count < 1:
            raise ValueError(f"masking.dropping count is {count}; replace at least 1 token")
        self.count = count

    def __call__(
        self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, codes_per_position: int = 1
    ) -> MaskPlan:
        flat = mask.flatten(1)
        noise = torch.rand(flat.shape, generator=generator).masked_fill(flat, 2.0)
        counts = (~flat).sum(1).clamp(max=self.count)
        replaced = hide_lowest(noise, counts).view_as(mask)
        return MaskPlan(MaskPlan.from_mask(mask).roles.masked_fill(replaced, REPLACE), mask | replaced)


class ReplaceAll(Dropping):
    """Every hidden token is replaced, and the network does not know which tokens are hidden (GMML, SiT)."""

    replaces = True

    def __call__(
        self, mask: Bool[Tensor, "b *grid"], generator: Generator | None = None, codes_per_position: int = 1
    ) -> MaskPlan:
        return MaskPlan(MaskPlan.from_mask(mask).roles.masked_fill(mask, REPLACE), mask)


DROPPINGS = {"none": Keep, "all": DropAll, "share": DropShare, "replace_more": ReplaceMore, "replace_all": ReplaceAll}


def kept_tokens(plan: MaskPlan, codes_per_position: int = 1) -> tuple[Int[Tensor, "b m"], list[int]] | None:
    """The flat positions that are not dropped, and their number in each row; None if nothing is dropped.

    The positions are in order and padded with 0 at the end of each row. The plan is on the CPU, so no device waits.
    """
    there = ~plan.dropped.flatten(1)[:, ::codes_per_position]
    if there.all():
        return None
    counts = there.sum(1)
    order = (~there).long().argsort(dim=1, stable=True)[:, : int(counts.max())]
    numbers = counts.tolist()
    return order.masked_fill(~no_padding(numbers), 0), numbers


def no_padding(counts: list[int]) -> Bool[Tensor, "b m"]:
    """True at the first `counts[i]` entries of row i; a row has max(counts) entries."""
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]
