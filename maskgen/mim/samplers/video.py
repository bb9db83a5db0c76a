"""Mask samplers for videos, whose grids are (t, h, w)."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

import torch
from jaxtyping import Bool
from torch import Generator, Tensor

from maskgen.mim.samplers.base import Grid, RandomSampler, Ratio, Rounding, Sampler, hidden_counts, hide_lowest
from maskgen.mim.samplers.blocks import BlockSampler, UnitSampler
from maskgen.mim.samplers.noise import NoiseSampler
from maskgen.registry import Part, build

FRAME = {
    "random": partial(RandomSampler, rounding="floor"),  # VideoMAE: int(0.9 * 196) = 176 per frame
    "block": BlockSampler,
    "units": UnitSampler,
    "noise": NoiseSampler,
}


class TubeSampler(Sampler):
    """The same mask in every frame, so that slow content cannot be copied from a neighbouring frame (VideoMAE, Tong et
    al. 2022, arXiv:2203.12602, section 3.3; ratio 0.9).

    Args:
        frame: the sampler of the mask of a frame; ``random`` rounds down here, as in VideoMAE.
    """

    axes = (3,)

    def __init__(self, frame: Annotated[Any, Part(FRAME)] = "random"):
        self.frame = build(Part(FRAME), frame)

    def select(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        return self.frame(ratio, grid[1:], generator=generator)[:, None].expand(-1, *grid)


class CellSampler(Sampler):
    """Running cells: 1 to 3 tokens of each 2 x 2 are hidden, and they move on by one position in every frame.

    VideoMAE v2 (Wang et al. 2023, arXiv:2303.16727, section 3.2; ratio 0.5) does *not* decode these tokens. Only the
    start of the cells is random, so there are four masks per ratio. Ratios are rounded down to quarters.
    """

    axes = (3,)

    def select(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        t, h, w = grid
        counts = hidden_counts(ratio, 4, "floor", least=0)
        if h % 2 or w % 2:
            raise ValueError(f"cells of 2 x 2 tokens do not tile frames of {h} x {w} tokens; both sides must be even")
        if not ((counts > 0) & (counts < 4)).all():
            raise ValueError(
                f"sampler cells hides 1 to 3 of 4 tokens; ratios must lie in [0.25, 1), got {ratio.tolist()}"
            )
        start = torch.randint(4, (len(ratio), 1, 1, 1), generator=generator)
        position = 2 * (torch.arange(h) % 2)[:, None] + torch.arange(w) % 2
        phase = torch.arange(1, t + 1)[:, None, None] + position
        return (phase + start) % 4 < counts[:, None, None, None]


class FrameSampler(Sampler):
    """The first `context` frames stay visible, and `ratio` of all later tokens is hidden at random (MaskViT, Gupta et
    al. 2022, arXiv:2206.11894, section 3.2). With ratio 1 the whole future is hidden.

    Args:
        context: number of visible frames (of the token grid).
        rounding: how the number of hidden tokens is rounded, see :func:`hidden_counts`.

    Raises:
        ValueError: `context` is negative; or, when called, it leaves no frame to hide.
    """

    axes = (3, 4)

    def __init__(self, context: int = 1, rounding: Rounding = "ceil"):
        if context < 0:
            raise ValueError(f"context is {context}; give 0 or more frames")
        self.context, self.rounding = context, rounding

    def select(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        if self.context >= grid[0]:
            raise ValueError(
                f"context {self.context} leaves none of the {grid[0]} frames to hide; give a smaller context"
            )
        noise = torch.rand(len(ratio), *grid, generator=generator)
        noise[:, : self.context] = 2
        future = (grid[0] - self.context) * math.prod(grid[1:])
        return hide_lowest(noise.flatten(1), hidden_counts(ratio, future, self.rounding))
