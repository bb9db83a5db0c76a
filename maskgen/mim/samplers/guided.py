"""Masks that depend on the image, through a teacher's attention or predicted losses."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Generator, Tensor

from maskgen.mim.samplers.base import (
    ROUNDINGS,
    Grid,
    Least,
    Ratio,
    Rounding,
    Sampler,
    guide,
    hidden_counts,
    hide_lowest,
)
from maskgen.registry import choose


class AttentionSampler(Sampler):
    """Hides tokens by the attention of a teacher's class token to each patch (averaged over heads), the `scores`.

    - AttMask (Kakogeorgiou et al. 2022, arXiv:2203.12719, section 3.2): the defaults are AttMask-High; ``hide: least``
      is AttMask-Low, ``hint: 0.1`` AttMask-Hint. With iBOT, use ``least: 0`` and the ratio ``mixture``.
    - MaskAlign (Xue et al. 2022, arXiv:2211.15492): ``hide: least, sample: true, rounding: ceil``, which samples the
      visible tokens without replacement in proportion to their attention.

    Args:
        hide: hide the most or the least attended tokens.
        sample: sample without replacement in proportion to the attention instead of ranking: the hidden tokens with
            ``hide: most``, the visible tokens with ``hide: least``. The scores must not be negative.
        hint: reveal hint * ratio of all tokens, at random among the hint * n most attended ones.
        rounding: ``floor`` in AttMask, ``ceil`` in MaskAlign.
        least: 0 allows rows without hidden tokens.

    Raises:
        ValueError: an unknown option, or `hint` with ``hide: least``; or, when called, unsuitable scores.
    """

    guide = "attention"

    def __init__(
        self,
        hide: Literal["most", "least"] = "most",
        sample: bool = False,
        hint: float = 0.0,
        rounding: Rounding = "floor",
        least: Least = 1,
    ):
        choose(dict.fromkeys(("most", "least")), hide, "value of hide")
        choose(ROUNDINGS, rounding, "rounding")
        if not 0 <= hint < 1 or (hint and hide == "least"):
            raise ValueError(
                f"hint is {hint} with hide {hide}; hint must lie in [0, 1), and above 0 it needs hide: most"
            )
        self.hide, self.sample, self.hint, self.rounding, self.least = hide, sample, hint, rounding, least

    def select(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        n = math.prod(grid)
        attention = guide(scores, len(ratio), n, "attention of the teacher's class token to each token")
        keys = attention
        if self.sample:
            if (attention < 0).any():
                raise ValueError("with sample: true, scores must be 0 or more; give the attention after the softmax")
            # Sorting log(weight) + Gumbel noise samples without replacement (Gumbel top-k).
            uniform = torch.rand(attention.shape, generator=generator).clamp(1e-30, 1 - 1e-7)
            keys = attention.clamp(min=1e-30).log() - (-uniform.log()).log()
        keys = -keys if self.hide == "most" else keys
        mask = hide_lowest(keys, hidden_counts(ratio, n, self.rounding, self.least))
        return mask & ~self._revealed(ratio, attention, generator) if self.hint else mask

    def _revealed(self, ratio: Ratio, attention: Tensor, generator: Generator | None) -> Bool[Tensor, "b n"]:
        n = attention.shape[1]
        top = hide_lowest(-attention, hidden_counts(torch.full_like(ratio, self.hint), n, "floor", least=0))
        noise = torch.rand(attention.shape, generator=generator).masked_fill(~top, 2)
        return hide_lowest(noise, hidden_counts(ratio * self.hint, n, "floor", least=0))


class LossSampler(Sampler):
    """Hides the tokens with the highest predicted losses, the `scores` (HPM, Wang et al. 2023, arXiv:2304.05919,
    section 3.3).

    Of the hidden tokens the share start + progress * (end - start), rounded down, are the hardest ones; the others are
    random. In HPM the progress in epoch e (from 0) of E epochs is (e + 1) / E.

    Args:
        start, end: share of hard tokens at the beginning and at the end of the training, in [0, 1].
        rounding: how the number of hidden tokens is rounded, see :func:`hidden_counts`.

    Raises:
        ValueError: a share is out of range; or, when called, unsuitable scores.
    """

    guide = "losses"

    def __init__(self, start: float = 0.0, end: float = 0.5, rounding: Rounding = "ceil"):
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise ValueError(f"start is {start} and end {end}; both must lie in [0, 1]")
        choose(ROUNDINGS, rounding, "rounding")
        self.start, self.end, self.rounding = start, end, rounding

    def select(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        losses = guide(scores, len(ratio), math.prod(grid), "predicted loss of each token")
        counts = hidden_counts(ratio, losses.shape[1], self.rounding)
        share = self.start + progress * (self.end - self.start)
        hard = hide_lowest(-losses, (counts.double() * share + 1e-6).floor().long())
        noise = torch.rand(losses.shape, generator=generator)
        return hide_lowest(noise - hard.float(), counts)  # noise is below 1, so hard tokens rank first
