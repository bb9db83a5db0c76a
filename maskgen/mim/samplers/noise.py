"""Masks from filtered noise (ColorMAE, Hinojosa et al. 2024, arXiv:2407.13036, section 3)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from maskgen.mim.samplers.base import Grid, Ratio, Rounding, Sampler, hidden_counts, hide_lowest
from maskgen.registry import choose


class NoiseSampler(Sampler):
    """Hides the tokens where coloured noise is lowest.

    ``green`` (band-pass, the paper's best) hides clumps of one typical size, ``red`` (low-pass) large clumps; ``blue``
    (high-pass) spreads the tokens evenly, ``purple`` (band-stop) mixes large and small clumps. The paper's code crops
    stored noise patterns and does not publish their sigmas, so our defaults are our choice. We generate new noise for
    each row.

    Args:
        color: the filter, see :func:`colored_noise`.
        sigma: standard deviation of the Gaussian of red and blue, in tokens.
        band: standard deviations of the two Gaussians of green and purple, in tokens, in increasing order.
        rounding: how the number of hidden tokens is rounded, see :func:`hidden_counts`.

    Raises:
        ValueError: the color is unknown, or `sigma` or `band` is out of range.
    """

    def __init__(
        self,
        color: Literal["red", "blue", "green", "purple"] = "green",
        sigma: float = 1.0,
        band: tuple[float, float] = (0.75, 2.0),
        rounding: Rounding = "ceil",
    ):
        choose(COLORS, color, "noise color")
        if sigma <= 0 or not 0 < band[0] < band[1]:
            raise ValueError(f"sigma is {sigma} and band {band}; give sigma > 0 and 0 < band[0] < band[1]")
        self.color, self.sigma, self.band, self.rounding = color, sigma, band, rounding

    def select(
        self, ratio: Ratio, grid: Grid, scores: Tensor | None, generator: Generator | None, progress: float
    ) -> Bool[Tensor, "b ..."]:
        noise = colored_noise(len(ratio), grid, self.color, self.sigma, self.band, generator).flatten(1)
        return hide_lowest(noise, hidden_counts(ratio, noise.shape[1], self.rounding))


COLORS = {
    "red": lambda white, blur, sigma, band: blur(sigma),
    "blue": lambda white, blur, sigma, band: white - blur(sigma),
    "green": lambda white, blur, sigma, band: blur(band[0]) - blur(band[1]),
    "purple": lambda white, blur, sigma, band: white - blur(band[0]) + blur(band[1]),
}


def colored_noise(
    rows: int,
    grid: Grid,
    color: str,
    sigma: float = 1.0,
    band: tuple[float, float] = (0.75, 2.0),
    generator: Generator | None = None,
) -> Float[Tensor, "b *grid"]:
    """White noise W filtered by Gaussians G: red G W, blue W - G W, green G1 W - G2 W, purple W - green."""
    # The noise extends beyond the grid by the reach of the widest Gaussian, so that the edges are not different.
    reach = int(3 * max(sigma, *band) + 1)
    white = torch.randn(rows, *(size + 2 * reach for size in grid), generator=generator)
    inside = white[(slice(None), *(slice(reach, -reach) for _ in grid))]
    return COLORS[color](inside, lambda s: _blur(white, s, reach), sigma, band)


def _blur(x: Float[Tensor, "b ..."], sigma: float, reach: int) -> Float[Tensor, "b ..."]:
    """A Gaussian filter along all axes but the first, without padding; each axis becomes 2 * reach shorter."""
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel /= kernel.sum()
    for axis in range(1, x.ndim):
        x = x.unfold(axis, 2 * reach + 1, 1) @ kernel
    return x
