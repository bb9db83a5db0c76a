"""Predictions that are made and sampled for a few positions at a time: memory is bounded at any vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from maskgen.decoding.noise import Noise
from maskgen.decoding.token_samplers import TokenSampler

MOST = 2**25  # logits that exist at once: 128 MiB in float32


@dataclass(frozen=True)
class SlicedPredictions:
    """Predictions (b, k, e) that are never whole.

    Args:
        part: a slice of the k positions -> predictions (b, slice, e).
        positions: k.
        width: positions per slice.
    """

    part: Callable[[slice], Tensor]
    positions: int
    width: int

    def sample(
        self, sample_tokens: TokenSampler, temperature: float, noise: Noise, positions: Int[Tensor, "b k"]
    ) -> tuple[Shaped[Tensor, "b k *d"], Float[Tensor, "b k"]]:
        """Tokens and confidence as `sample_tokens` gives them for all positions, with the same random numbers."""
        held, made = Held(noise), []
        for start in range(0, self.positions, self.width):
            some = slice(start, start + self.width)
            made.append(sample_tokens(self.part(some), temperature, held, positions[:, some]))
        tokens, confidence = zip(*made)
        return torch.cat(tokens, 1), torch.cat(confidence, 1)


class Held(Noise):
    """The random numbers of one call of `noise` for all tokens, from which the calls for slices take theirs.

    Args:
        noise: the source; it generates the numbers of each kind once.
    """

    def __init__(self, noise: Noise):
        super().__init__(noise.generator, noise.rows, noise.tokens, noise.device)
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def _generate(self, rand: Callable[..., Tensor], each: tuple[int, ...]) -> Float[Tensor, "b n *d"]:
        key = (rand, each)
        if key not in self._kept:
            self._kept[key] = super()._generate(rand, each)
        return self._kept[key]
