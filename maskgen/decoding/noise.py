"""The random numbers of a decode. They come from one small object, so that recorded numbers can replace them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

Generators = Generator | list[Generator] | None


class Noise:
    """Random numbers for b rows of n tokens, generated on the device of the generator.

    Every call generates numbers for all n tokens, so that a row does not depend on the rest of its batch.

    Args:
        generator: one generator for the batch, or a list with one per row; with a list, a row's result does not depend
            on its batch.
        rows, tokens: b and n.
        device: the device of the results.

    Raises:
        ValueError: the list does not have one generator per row.
    """

    def __init__(self, generator: Generators, rows: int, tokens: int, device: torch.device):
        if isinstance(generator, list) and len(generator) != rows:
            raise ValueError(f"{len(generator)} generators for {rows} rows; give one, or one a row")
        self.generator, self.rows, self.tokens, self.device = generator, rows, tokens, device

    def uniform(self, positions: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Uniform numbers in [0, 1), one per position."""
        return self._generate(torch.rand, ()).gather(1, positions)

    def gumbel(self, positions: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Standard Gumbel noise, for the choice of the tokens to keep."""
        return gumbel(self.uniform(positions))

    def normal(self, positions: Int[Tensor, "b k"], dim: int) -> Float[Tensor, "b k d"]:
        """Standard normal numbers, `dim` per position, for continuous tokens."""
        return self._generate(torch.randn, (dim,)).gather(1, positions[..., None].expand(-1, -1, dim))

    def choose(self, p: Float[Tensor, "b k v"], positions: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
        """Sample an index from the probabilities `p` of each position.

        The inverse of the distribution function needs one uniform number per token; Gumbel's method would need one per
        token and code. The distribution is the same.
        """
        return inverse_cdf(p, self.uniform(positions))

    def _generate(self, rand: Callable[..., Tensor], each: tuple[int, ...]) -> Float[Tensor, "b n *d"]:
        if isinstance(self.generator, list):
            shape = (self.tokens, *each)
            return torch.stack([rand(shape, generator=g, device=g.device).to(self.device) for g in self.generator])
        where = self.generator.device if self.generator is not None else self.device
        return rand((self.rows, self.tokens, *each), generator=self.generator, device=where).to(self.device)


def inverse_cdf(p: Float[Tensor, "b k v"], u: Float[Tensor, "b k"]) -> Int[Tensor, "b k"]:
    """The index at which the cumulative sum of `p` passes `u`; an index with p = 0 is never chosen."""
    cdf = p.cumsum(-1)
    total = cdf[..., -1:]
    at = torch.minimum(u[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, at, right=True).clamp_(max=p.shape[-1] - 1)[..., 0]


def gumbel(u: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Uniform numbers -> standard Gumbel noise."""
    return -(-u.clamp(1e-20, 1 - 2**-24).log()).log()
