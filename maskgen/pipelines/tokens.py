"""TokenLayout: how the tokens of a tokenizer on their grid become the flat tokens of a transformer."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from maskgen.decoding.token_samplers import TokenSampler, gaussian_mixture
from maskgen.mim.objective import GaussianMixture
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.model import MaskTransformer
from maskgen.transformer.several_codes import group_size, join_codes, split_codes


class TokenLayout:
    """The grid, the codes per position, and the flat order of tokens. A pipeline builds it once.

    A position of the grid holds one code, one code that is split into several groups of bits, several codes, or a
    vector. A canvas has the shape that the tokenizer gives: int64 codes (b, *grid) or (b, *grid, q), or float vectors
    (b, *grid, d). A mask is bool (b, *grid). The transformer's tokens are flat: (b, n) with n the number of positions
    times the codes per position, or (b, n, d); the codes of a position are adjacent.

    Args:
        tokenizer, transformer: two networks that were trained together.

    Attributes:
        grid: the trained grid of positions, (h, w), (t, h, w) or (n,).
        codes_per_position: how many codes the transformer predicts at each position.
        codebook_size: values of each predicted code; 0 if tokens are vectors.

    Raises:
        ValueError: the codes of the tokenizer are not those that the transformer predicts.
    """

    def __init__(self, tokenizer: Tokenizer, transformer: MaskTransformer):
        self.grid, self.codes_per_position = tuple(transformer.grid), transformer.codes_per_position
        self.codebook_size = transformer.codebook_size
        codes, several = int(tokenizer.codebook_size), tokenizer.codes_per_position
        self._split = self.codes_per_position > 1 and several == 1
        wanted = group_size(codes, self.codes_per_position) if self._split else codes
        if wanted != self.codebook_size or (several > 1 and several != self.codes_per_position):
            raise ValueError(
                f"the tokenizer has {wanted} codes{' per group' if self._split else ''} and the transformer predicts "
                f"{self.codebook_size}: they were not trained together"
            )
        dim, predictions = transformer.token_dim, transformer.config.out_dim
        self._item: tuple[int, ...] = () if several == 1 else (several,)
        self.token_sampler: TokenSampler | None = None  # the scheduler's own sampler, if tokens are codes
        if not self.codebook_size:
            self._item = (dim,)
            self.token_sampler = partial(gaussian_mixture, split=GaussianMixture(predictions // (1 + 2 * dim)).split)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row of tokens before it is flattened: the grid, with a last axis for several codes."""
        return (*self.grid, self.codes_per_position) if self.codes_per_position > 1 else self.grid

    def blank(self, count: int, device: torch.device) -> Shaped[Tensor, "b *grid"]:
        """`count` canvases of zeros, of the trained grid."""
        dtype = torch.long if self.codebook_size else torch.float32
        return torch.zeros(count, *self.grid, *self._item, dtype=dtype, device=device)

    def flat(self, canvas: Shaped[Tensor, "b *grid"]) -> Shaped[Tensor, "b n *d"]:
        """A canvas -> the transformer's tokens."""
        if not self.codebook_size:
            return canvas.flatten(1, -2)
        codes = split_codes(canvas, self.codebook_size, self.codes_per_position) if self._split else canvas
        return codes.flatten(1)

    def flat_mask(self, mask: Bool[Tensor, "b *grid"]) -> Bool[Tensor, "b n"]:
        """A mask of positions -> a mask of the transformer's tokens."""
        return mask.flatten(1).repeat_interleave(self.codes_per_position, 1)

    def canvas(self, tokens: Shaped[Tensor, "b n *d"], like: Shaped[Tensor, "b *grid"]) -> Shaped[Tensor, "b *grid"]:
        """The inverse of :meth:`flat`: tokens -> a canvas of the shape of `like`."""
        if self._split:
            return join_codes(tokens.unflatten(1, (-1, self.codes_per_position)), self.codebook_size).view(like.shape)
        return tokens.view(like.shape)

    def mask(self, hidden: Bool[Tensor, "b n"], like: Bool[Tensor, "b *grid"]) -> Bool[Tensor, "b *grid"]:
        """The positions at which any token is hidden, of the shape of `like`."""
        return hidden.unflatten(1, (-1, self.codes_per_position)).any(-1).view(like.shape)

    def confidence(self, values: Float[Tensor, "b n"], like: Shaped[Tensor, "b *grid"]) -> Float[Tensor, "b *grid"]:
        """The mean of the values of each position that are not NaN, of the shape of `like`."""
        return values.unflatten(1, (-1, self.codes_per_position)).nanmean(-1).view(like.shape)


def actions_of_tokens(actions: Float[Tensor, "b T a"], factor: int = 1) -> Float[Tensor, "b t fa"]:
    """Concatenate the actions of the `factor` frames of each token. The first token is the first frame alone, so zeros
    take the place of the frames before it."""
    return F.pad(actions, (0, 0, factor - 1, 0)).unflatten(1, (-1, factor)).flatten(2)
