"""Vector quantization: the nearest code of a codebook, and the remedies against unused codes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskgen.tokenizer.quantizers.base import Quantized, entropies, first, last, straight_through
from maskgen.tokenizer.quantizers.seeding import (
    kmeans,
    replaced,
    sample_latents,
    seeds,
    squared_distances,
    totals,
    unit,
)

REVIVED = 1024  # the largest number of codes that are replaced in one step


class VectorQuantizer(nn.Module):
    """The nearest code of a codebook (van den Oord et al. 2017, arXiv:1711.00937, eq. 3).

    loss = ||sg[z] - e||^2 + commitment * ||z - sg[e]||^2 + entropy * (E[H] - H[E]), with straight-through gradients.
    The first term is present only where the codebook is learned by gradient. ``embedding.weight`` (K, dim) is the
    codebook, `usage` (K,) is a moving average of how often each code is chosen (1 under uniform use), and `sums`
    (K, dim) is one of the sums of its latents.

    Args:
        codebook_size: number of codes K.
        dim: dimension of a code vector.
        commitment: the paper's beta, the weight of the term that moves the *encoder*.
        learned: whether the codebook is learned by gradient; if not, it follows its latents by moving averages.
        decay: decay of the moving averages, including that of the use of the codes.
        average: ``sums`` averages sums of latents and counts (van den Oord et al., appendix A.1). ``directions``
            averages the normalised mean of each chosen code over the batch (BEiT v2's quantizer) and needs `l2_norm`.
        l2_norm: whether latents and codes are normalised, so that the distance is that of the cosine (ViT-VQGAN,
            arXiv:2110.04627).
        init: the codebook starts ``random``, or the first training batch sets it to some of its latents (``data``) or
            to their k-means centroids (``kmeans``).
        revive_below: a code whose `usage` is lower is replaced by a latent of the batch that is far from all codes. 0
            replaces none.
        entropy: weight of the entropy term; MaskGIT's VQGAN has 0.1.
        entropy_temperature: temperature of the assignments in that term.

    Raises:
        ValueError: an option contradicts another.
    """

    NEWBORN = 0.2  # the usage of a new code: enough for some steps, little enough for it to move at once
    codes_per_position = 1
    usage: Tensor
    initialised: Tensor
    sums: Tensor

    def __init__(
        self,
        codebook_size: int = 1024,
        dim: int = 16,
        commitment: float = 0.25,
        decay: float = 0.95,
        learned: bool = False,
        average: Literal["sums", "directions"] = "sums",
        l2_norm: bool = False,
        init: Literal["random", "data", "kmeans"] = "data",
        revive_below: float = 0.05,
        entropy: float = 0.0,
        entropy_temperature: float = 0.01,
    ):
        super().__init__()
        if average == "directions" and (learned or not l2_norm):
            raise ValueError("average: directions needs l2_norm: true and learned: false")
        if not learned and entropy:
            raise ValueError("the entropy term moves the codes by gradient; set learned: true, or entropy: 0")
        self.codebook_size, self.dim = codebook_size, dim
        self.commitment, self.decay, self.learned, self.average = commitment, decay, learned, average
        self.l2_norm, self.init, self.revive_below = l2_norm, init, revive_below
        self.entropy, self.entropy_temperature = entropy, entropy_temperature
        self.embedding = nn.Embedding.from_pretrained(torch.randn(codebook_size, dim) * dim**-0.5, freeze=not learned)
        self.register_buffer("usage", torch.ones(codebook_size))
        self.register_buffer("sums", self.codebook.detach().clone())
        self.register_buffer("initialised", torch.tensor(False))

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The code vectors, before any normalisation."""
        return self.embedding.weight

    def forward(self, latents: Float[Tensor, "b d *grid"]) -> Quantized:
        z = self._on_sphere(last(latents).flatten(0, -2))
        if self.training and self.init != "random" and not self.initialised:
            self.fit(z.detach(), 10 if self.init == "kmeans" else 0)
        spread = self.training and self.entropy > 0
        codebook = self.codebook.clone() if spread else self.codebook  # revival writes before backward reads
        distances = squared_distances(z, self._on_sphere(codebook))
        codes = distances.argmin(-1)
        if self.training:
            self._follow(z.detach(), codes)
        e = self._on_sphere(F.embedding(codes, self.codebook))
        terms = {"commitment": F.mse_loss(z, e.detach())}
        loss = self.commitment * terms["commitment"]
        if self.learned:
            loss = loss + F.mse_loss(e, z.detach())
        if spread:
            distances = distances + z.square().sum(-1, keepdim=True)
            terms["sample_entropy"], terms["mean_entropy"] = entropies(-distances, self.entropy_temperature)
            loss = loss + self.entropy * (terms["sample_entropy"] - terms["mean_entropy"])
        shape = (len(latents), *latents.shape[2:])
        return Quantized(first(straight_through(z, e).view(*shape, -1)), codes.view(shape), loss, terms)

    def embed(self, codes: Int[Tensor, "b *grid"]) -> Float[Tensor, "b d *grid"]:
        """The code vectors, channels first."""
        return first(self._on_sphere(F.embedding(codes, self.codebook)))

    def _on_sphere(self, x: Tensor) -> Tensor:
        return unit(x) if self.l2_norm else x

    @torch.no_grad()
    def _follow(self, z: Float[Tensor, "n d"], codes: Int[Tensor, "n"]) -> None:
        """Update the moving averages and, unless it is learned, the codebook; replace unused codes."""
        counts, sums = totals(z, codes, self.codebook_size)
        scale = self.codebook_size / counts.sum()
        self.usage.lerp_(counts * scale, 1 - self.decay)  # 1 under uniform use
        if self.average == "directions":
            chosen = torch.where(counts[:, None] > 0, unit(sums / counts.clamp(min=1)[:, None]), self.codebook)
            self.codebook.copy_(unit(torch.lerp(self.codebook, chosen, 1 - self.decay)))
        else:
            self.sums.lerp_(sums * scale, 1 - self.decay)
            if not self.learned:
                self.codebook.copy_(self._on_sphere(self.sums / self.usage.clamp(min=1e-4)[:, None]))
        if self.revive_below > 0:
            self._revive(z)

    @torch.no_grad()
    def fit(self, z: Float[Tensor, "n d"], iterations: int) -> Float[Tensor, ""]:
        """Set the codebook to some of the latents and improve it by `iterations` of k-means.

        Where there are fewer latents than codes, latents repeat with noise.

        Returns:
            The mean squared error before the last iteration.
        """
        z = self._on_sphere(z)
        rows = seeds(z, self.codebook_size)
        short = self.codebook_size - len(rows)
        if short > 0:
            again = rows[torch.arange(short, device=z.device) % len(rows)]
            rows = torch.cat([rows, again + 1e-3 * rows.std() * self.codebook[:short]])
        self.codebook.copy_(self._on_sphere(rows))
        return self.refine(z, iterations)

    @torch.no_grad()
    def refine(self, z: Float[Tensor, "n d"], iterations: int) -> Float[Tensor, ""]:
        """Improve the codebook by `iterations` of k-means; return the mean squared error before the last one."""
        rows, error = kmeans(self._on_sphere(z), self._on_sphere(self.codebook), iterations)
        self.codebook.copy_(self._on_sphere(rows))
        self.sums.copy_(self.codebook * self.usage[:, None])
        self.initialised.fill_(True)
        return error

    @torch.no_grad()
    def _revive(self, z: Float[Tensor, "n d"]) -> None:
        """Replace unused codes by latents of the batch, without branches, so that the host never waits for the device.

        The probability of a latent is proportional to its squared distance from the codebook (the seeding of k-means++,
        Arthur and Vassilvitskii 2007): under equal probabilities most would repeat the commonest patch.
        """
        distance = squared_distances(z, self._on_sphere(self.codebook)).amin(-1) + z.square().sum(-1)
        rows = sample_latents(z, distance.nan_to_num(0, 1, 0), min(self.codebook_size, REVIVED))
        dead = self.usage < self.revive_below
        dead = dead & (dead.cumsum(0) <= len(rows))
        self.codebook.copy_(replaced(self.codebook, dead, rows))
        self.sums.copy_(replaced(self.sums, dead, rows * self.NEWBORN))
        self.usage.masked_fill_(dead, self.NEWBORN)
