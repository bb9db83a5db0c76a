"""Quantizers without a codebook: each channel is rounded on its own (FSQ), or becomes its sign (LFQ)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskgen.tokenizer.quantizers.base import Quantized, entropies, first, last, straight_through


class FiniteScalarQuantizer(nn.Module):
    """FSQ (Mentzer et al. 2023, arXiv:2309.15505): channel i is squashed and rounded to one of ``levels[i]`` values.

    It has no weights and no loss, and its codebook cannot collapse. Code vectors lie in [-1, 1].

    Args:
        levels: number of values of each channel, at least 2. The paper's table 1 has [8, 6, 5] for 240 codes,
            [8, 5, 5, 5] for 1,000 and [7, 5, 5, 5, 5] for 4,375.

    Raises:
        ValueError: a channel has fewer than 2 values, or there is no channel.
    """

    codes_per_position = 1
    bases: Tensor
    counts: Tensor

    def __init__(self, levels: list[int] = [8, 5, 5, 5]):  # noqa: B006
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels {levels}: every channel needs at least 2 values")
        self.dim, self.codebook_size = len(levels), math.prod(levels)
        self.register_buffer("counts", torch.tensor(levels), persistent=False)
        bases = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("bases", torch.tensor(bases), persistent=False)

    def forward(self, latents: Float[Tensor, "b d *grid"]) -> Quantized:
        z = self._squash(last(latents))
        rounded = straight_through(z, z.round())
        codes = ((rounded.detach() + self.counts // 2).long() * self.bases).sum(-1)
        return Quantized(first(rounded / (self.counts // 2)), codes, latents.new_zeros(()))

    def embed(self, codes: Int[Tensor, "b *grid"]) -> Float[Tensor, "b d *grid"]:
        """The code vectors, channels first."""
        digits = codes[..., None] // self.bases % self.counts
        return first((digits - self.counts // 2) / (self.counts // 2))

    def _squash(self, z: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Squash into (-n/2, n/2), shifted by half a step where n is even so that 0 stays 0 (the paper's `bound`)."""
        half = (self.counts - 1) * (1 + 1e-3) / 2
        offset = 0.5 * (self.counts % 2 == 0)
        return (z + (offset / half).atanh()).tanh() * half - offset


class LookupFreeQuantizer(nn.Module):
    """LFQ: each channel becomes its sign, so a code is a word of bits (MAGVIT-v2, arXiv:2310.05737; MaskBit).

    loss = commitment * ||z - sg[sign z]||^2 + entropy * (E[H] - gamma H[E]) (MAGVIT-v2, eq. 5). Bit i of a code,
    counted from the lowest, is 1 where channel i is positive.

    Args:
        bits: number of bits of a code, 1 to 62; the codebook has 2^bits codes.
        commitment, entropy, gamma: weights of the terms; the defaults are MaskBit's.
        temperature: temperature of the assignments in the entropies.
        group_bits: the entropy of the mean assignment needs a table over all codes, with 2^bits entries per latent.
            With more bits than this, the bits are cut into groups whose entropies are summed, as if the groups were
            independent. The entropy of single assignments is exact at any size, since the bits of one latent *are*
            independent.
        annealing_steps: training batches over which the entropy weight falls from three times its value to its value;
            MaskBit has 2000, and 0 turns this off.

    Raises:
        ValueError: `bits` is out of range.
    """

    codes_per_position = 1
    weights: Tensor
    seen: Tensor

    def __init__(
        self,
        bits: int = 10,
        commitment: float = 0.25,
        entropy: float = 0.02,
        gamma: float = 1.0,
        temperature: float = 0.01,
        group_bits: int = 14,
        annealing_steps: int = 0,
    ):
        super().__init__()
        if not 1 <= bits <= 62:
            raise ValueError(f"bits {bits}: a code must fit into an int64; give 1 to 62")
        self.dim, self.codebook_size = bits, 2**bits
        self.commitment, self.entropy, self.gamma, self.temperature = commitment, entropy, gamma, temperature
        self.group_bits, self.annealing_steps = group_bits, annealing_steps
        self.register_buffer("weights", 2 ** torch.arange(bits), persistent=False)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, latents: Float[Tensor, "b d *grid"]) -> Quantized:
        z = last(latents)
        signs = torch.where(z > 0, 1.0, -1.0)
        terms = {"commitment": F.mse_loss(z, signs)}
        loss = self.commitment * terms["commitment"]
        if self.training and self.entropy:
            terms["sample_entropy"], terms["mean_entropy"] = self._entropies(z.flatten(0, -2))
            extra = 2 * (1 - self.seen / self.annealing_steps).clamp(min=0) if self.annealing_steps else 0
            difference = terms["sample_entropy"] - self.gamma * terms["mean_entropy"]
            loss = loss + self.entropy * (1 + extra) * difference
            self.seen += 1
        codes = ((z > 0) * self.weights).sum(-1)
        return Quantized(first(straight_through(z, signs)), codes, loss, terms)

    def embed(self, codes: Int[Tensor, "b *grid"]) -> Float[Tensor, "b d *grid"]:
        """The bits as -1 and 1, channels first."""
        return first(self.bits(codes) * 2.0 - 1)

    def bits(self, codes: Int[Tensor, "b *grid"]) -> Int[Tensor, "b *grid d"]:
        """The bits as 0 and 1, channels last, the lowest bit first."""
        return codes[..., None] // self.weights % 2

    def _entropies(self, z: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
        """The entropies of ``softmax(2 z . code / temperature)``, whose bits are independent given z."""
        groups = -(-self.dim // self.group_bits)
        pairs = [entropies(2 * part @ _words(part).T, self.temperature, True) for part in z.tensor_split(groups, -1)]
        sample, mean = (torch.stack(x).sum() for x in zip(*pairs))
        return sample, mean


def _words(like: Float[Tensor, "n d"]) -> Float[Tensor, "words d"]:
    """All words of d bits, as -1 and 1, the lowest bit first."""
    bits = like.shape[1]
    numbers = torch.arange(2**bits, device=like.device)
    return (numbers[:, None] // 2 ** torch.arange(bits, device=like.device) % 2 * 2 - 1).to(like.dtype)
