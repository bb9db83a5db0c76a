"""Masks from filtered noise (ColorMAE, Hinojosa et al. 2024, arXiv:2407.13036, section 3)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from maskgen.mim.samplers.base import Grid, Ratio, Rounding, Sampler, hidden_counts, hide_lowest
from maskgen.registry import choose


class NoiseSampler(Sampler):
    """Keep the tokens where fresh coloured noise is strongest.

    ``green`` (band-pass, the paper's best) hides and keeps in clumps of one typical size; ``red`` (low-pass) in large
    ones, ``blue`` (high-pass) spreads them evenly, ``purple`` (band-stop) mixes large and small. The paper's code cuts
    windows from stored patterns and gives no sigmas: ours are choices. Here each row has noise of its own, as if cut
    from an endless pattern.

    Args:
        color: the filter, see :func:`colored_noise`.
        sigma: Gaussian of red and blue, in tokens.
        band: the two Gaussians of green and purple, in tokens, the narrow one first.
        rounding: of the number of hidden tokens.
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
            raise ValueError(f"sigma > 0 and 0 < band[0] < band[1] are needed, got sigma {sigma}, band {band}")
        self.color, self.sigma, self.band, self.rounding = color, sigma, band, rounding

    def draw(
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
    """White noise W through Gaussians G: red G W, blue W - G W, green G1 W - G2 W, purple W - green."""
    # Noise beyond the grid by the reach of the widest Gaussian, so that its edges are like its middle.
    reach = int(3 * max(sigma, *band) + 1)
    white = torch.randn(rows, *(size + 2 * reach for size in grid), generator=generator)
    inside = white[(slice(None), *(slice(reach, -reach) for _ in grid))]
    return COLORS[color](inside, lambda s: _blur(white, s, reach), sigma, band)


def _blur(x: Float[Tensor, "b ..."], sigma: float, reach: int) -> Float[Tensor, "b ..."]:
    """Gaussian along each axis but the first, without padding: each loses 2 * reach."""
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel /= kernel.sum()
    for axis in range(1, x.ndim):
        x = x.unfold(axis, 2 * reach + 1, 1) @ kernel
    return x
