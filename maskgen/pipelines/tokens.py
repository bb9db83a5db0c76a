"""Between a tokenizer's tokens on their grid and the flat tokens that a transformer completes."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from maskgen.decoding.token_samplers import Draw, gaussian_mixture
from maskgen.mim.objective import GaussianMixture
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.groups import group_size, join_codes, split_codes
from maskgen.transformer.model import MaskTransformer


class TokenLayout:
    """One code a place, a code as several groups of bits, several codes, or a vector: what a place holds.

    A canvas is as the tokenizer has it: codes (b, *grid) or (b, *grid, levels), or vectors (b, *grid, d). A mask is
    (b, *grid): places. The transformer's tokens are flat, (b, places x groups) or (b, places, d).

    Raises:
        ValueError: tokenizer and transformer were not trained together.
    """

    def __init__(self, tokenizer: Tokenizer, transformer: MaskTransformer):
        self.groups, self.grid = transformer.codes_per_position, tuple(transformer.grid)
        self.levels, self.dim = tokenizer.codes_per_position, transformer.token_dim
        self.split = self.groups > 1 and self.levels == 1
        self.size = transformer.codebook_size
        wanted = group_size(int(tokenizer.codebook_size), self.groups) if self.split else int(tokenizer.codebook_size)
        if wanted != self.size or (self.levels > 1 and self.levels != self.groups):
            raise ValueError(
                f"the tokenizer has {wanted} codes{' a group' if self.split else ''} and the transformer predicts "
                f"{self.size}: they were not trained together"
            )
        self.predictions = transformer.config.out_dim

    @property
    def draw(self) -> Draw | None:
        """How tokens are drawn from predictions, where they are no codes."""
        if self.size:
            return None
        return partial(gaussian_mixture, split=GaussianMixture(self.predictions // (1 + 2 * self.dim)).split)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid that the transformer sees: several codes a place are a last axis."""
        return (*self.grid, self.groups) if self.groups > 1 else self.grid

    def blank(self, count: int, device: torch.device) -> Shaped[Tensor, "b *grid"]:
        """A canvas on which nothing stands."""
        if not self.size:
            return torch.zeros(count, *self.grid, self.dim, device=device)
        shape = self.grid if self.levels == 1 else (*self.grid, self.levels)
        return torch.zeros(count, *shape, dtype=torch.long, device=device)

    def flat(self, canvas: Shaped[Tensor, "b *grid"]) -> Shaped[Tensor, "b n *d"]:
        """A canvas as the transformer's tokens."""
        if not self.size:
            return canvas.flatten(1, -2)
        return (split_codes(canvas, self.size, self.groups) if self.split else canvas).flatten(1)

    def hidden(self, mask: Bool[Tensor, "b *grid"]) -> Bool[Tensor, "b n"]:
        """A mask of places as one of the transformer's tokens."""
        return mask.flatten(1).repeat_interleave(self.groups, 1)

    def canvas(self, tokens: Shaped[Tensor, "b n *d"], like: Shaped[Tensor, "b *grid"]) -> Shaped[Tensor, "b *grid"]:
        """The inverse of :meth:`flat`."""
        if self.split:
            return join_codes(tokens.unflatten(1, (-1, self.groups)), self.size).view(like.shape)
        return tokens.view(like.shape)

    def mask(self, hidden: Bool[Tensor, "b n"]) -> Bool[Tensor, "b p"]:
        """TokenLayout of which anything is hidden."""
        return hidden.unflatten(1, (-1, self.groups)).any(-1)

    def confidence(self, values: Float[Tensor, "b n"]) -> Float[Tensor, "b p"]:
        """Mean of each place's values that are no NaN."""
        return values.unflatten(1, (-1, self.groups)).nanmean(-1)


def actions_of_tokens(actions: Float[Tensor, "b T a"], factor: int = 1) -> Float[Tensor, "b t fa"]:
    """The actions of a token's frames side by side; before the first frame, whose token is its own, stand zeros."""
    return F.pad(actions, (0, 0, factor - 1, 0)).unflatten(1, (-1, factor)).flatten(2)
