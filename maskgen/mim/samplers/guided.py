"""Masks that look at the image, through a teacher's attention or predicted losses."""

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
    """By a teacher's attention from its class token to each patch (mean over heads), the `scores`.

    - AttMask-High (Kakogeorgiou et al. 2022, arXiv:2203.12719, section 3.2): the defaults; AttMask-Low ``hide: least``;
      AttMask-Hint ``hint: 0.1``. Its host iBOT needs ``least: 0`` and ratio ``mixture``.
    - MaskAlign (Xue et al. 2022, arXiv:2211.15492), the opposite polarity: ``hide: least, sample: true,
      rounding: ceil``, so the visible tokens are drawn without replacement in proportion to their attention.

    Args:
        hide: the most or the least attended tokens.
        sample: draw them without replacement in proportion to attention instead of ranking: the hidden ones with
            ``hide: most``, the visible ones with ``hide: least``. The scores must then be 0 or more.
        hint: reveal hint * ratio of all tokens again, at random among the hint * n most attended ones.
        rounding: AttMask rounds down, MaskAlign up.
        least: 0 lets a row of ratio 0 hide nothing.
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
            raise ValueError(f"hint must lie in [0, 1) and goes with hide=most, got hint {hint}, hide {hide}")
        self.hide, self.sample, self.hint, self.rounding, self.least = hide, sample, hint, rounding, least

    def draw(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        n = math.prod(grid)
        attention = guide(scores, len(ratio), n, "attention of the teacher's class token to each token")
        keys = attention
        if self.sample:
            if (attention < 0).any():
                raise ValueError("scores are weights of a draw and must be 0 or more; pass attention after the softmax")
            # The order of log(weight) + Gumbel noise is that of draws without replacement (Gumbel top-k).
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
    """Hide what is hard: the tokens of the highest predicted losses, the `scores`, more of them as training goes on.

    HPM (Wang et al. 2023, arXiv:2304.05919, section 3.3): of the hidden tokens the share start + progress (end - start)
    is the hardest ones, rounded down, the rest random. HPM's progress in epoch e (from 0) of E is (e + 1) / E.

    Args:
        start, end: the hard share at the beginning and the end of the training.
        rounding: of the number of hidden tokens.
    """

    guide = "losses"

    def __init__(self, start: float = 0.0, end: float = 0.5, rounding: Rounding = "ceil"):
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise ValueError(f"start and end are shares in [0, 1], got {start} and {end}")
        choose(ROUNDINGS, rounding, "rounding")
        self.start, self.end, self.rounding = start, end, rounding

    def draw(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        losses = guide(scores, len(ratio), math.prod(grid), "predicted loss of each token")
        counts = hidden_counts(ratio, losses.shape[1], self.rounding)
        share = self.start + progress * (self.end - self.start)
        hard = hide_lowest(-losses, (counts.double() * share + 1e-6).floor().long())
        noise = torch.rand(losses.shape, generator=generator)
        return hide_lowest(noise - hard.float(), counts)  # noise is below 1: the hard ones come first
