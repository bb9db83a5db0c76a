"""The random numbers of a decode: one small source, so that recorded ones can be fed instead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

Generators = Generator | list[Generator] | None


class Noise:
    """Random numbers for b rows of n tokens, drawn where the generator lives.

    Every call draws for all n tokens, whatever is asked for, so that a row does not depend on the rest of its batch.

    Args:
        generator: one for the batch, or a list of one a row, which makes a row's result independent of its batch.
        rows, tokens: b and n.
        device: of the results.

    Raises:
        ValueError: a list of another length than the rows.
    """

    def __init__(self, generator: Generators, rows: int, tokens: int, device: torch.device):
        if isinstance(generator, list) and len(generator) != rows:
            raise ValueError(f"{len(generator)} generators for {rows} rows; give one, or one a row")
        self.generator, self.rows, self.tokens, self.device = generator, rows, tokens, device

    def uniform(self, positions: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """On [0, 1), a number a position."""
        return self._draw(torch.rand, ()).gather(1, positions)

    def gumbel(self, positions: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Standard Gumbel noise, for the choice of tokens to keep."""
        return gumbel(self.uniform(positions))

    def normal(self, positions: Int[Tensor, "b k"], dim: int) -> Float[Tensor, "b k d"]:
        """Standard normal, `dim` a position, for continuous tokens."""
        return self._draw(torch.randn, (dim,)).gather(1, positions[..., None].expand(-1, -1, dim))

    def choose(self, p: Float[Tensor, "b k v"], positions: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
        """One of v a position with the probabilities `p`.

        One uniform number a token, through the inverse of the distribution function, against one a token and code for
        Gumbel's method; the distribution is the same.
        """
        return inverse_cdf(p, self.uniform(positions))

    def _draw(self, rand: Callable[..., Tensor], each: tuple[int, ...]) -> Float[Tensor, "b n *d"]:
        if isinstance(self.generator, list):
            shape = (self.tokens, *each)
            return torch.stack([rand(shape, generator=g, device=g.device).to(self.device) for g in self.generator])
        where = self.generator.device if self.generator is not None else self.device
        return rand((self.rows, self.tokens, *each), generator=self.generator, device=where).to(self.device)


def inverse_cdf(p: Float[Tensor, "b k v"], u: Float[Tensor, "b k"]) -> Int[Tensor, "b k"]:
    """The index where the running sum of `p` passes `u`; never one with p = 0."""
    cdf = p.cumsum(-1)
    total = cdf[..., -1:]
    at = torch.minimum(u[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, at, right=True).clamp_(max=p.shape[-1] - 1)[..., 0]


def gumbel(u: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Standard Gumbel noise from uniform numbers."""
    return -(-u.clamp(1e-20, 1 - 2**-24).log()).log()
