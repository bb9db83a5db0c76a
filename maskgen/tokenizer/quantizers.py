"""Quantizers: latents -> discrete codes and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass
class Quantized:
    """What a quantizer makes of latents.

    latents: float32 (b, d, h, w), the code vectors, with gradients passed straight through to the encoder.
    codes: int64 (b, h, w).
    loss: scalar, the quantizer's own terms, weighted.
    """

    latents: Tensor
    codes: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Nearest code of a learned codebook, straight-through (van den Oord et al. 2017, arXiv:1711.00937, eq. 3).

    loss = ||sg[z] - e||^2 + commitment * ||z - sg[e]||^2, the first term only where the codebook is learned by
    gradient. Works in float32 whatever autocast says: bfloat16 distances pick wrong codes.

    Args:
        codebook_size: number of codes K.
        dim: of a code vector.
        commitment: beta of the paper.
        decay: of the moving averages by which the codebook follows its latents (van den Oord, appendix A.1) and the
            statistics of use follow the batches.
        learned: learn the codebook by gradient instead; the statistics are still kept, for revival.
        l2_norm: latents and codes lie on the unit sphere, distance is cosine (ViT-VQGAN, arXiv:2110.04627).
        revive_below: a code chosen less often than this, as an average over training steps of its count divided by
            the count under uniform use, is replaced by a latent of the batch. 0 turns it off. The first training
            batch sets all codes so.
    """

    NEWBORN = 0.2  # use credited to a new code: enough to be tried for some steps, little enough to move at once
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
        l2_norm: bool = False,
        revive_below: float = 0.05,
    ):
        super().__init__()
        self.codebook_size, self.dim = codebook_size, dim
        self.commitment, self.decay, self.learned = commitment, decay, learned
        self.l2_norm, self.revive_below = l2_norm, revive_below
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim) * dim**-0.5, requires_grad=learned)
        self.register_buffer("usage", torch.ones(codebook_size))
        self.register_buffer("sums", self.codebook.detach().clone())
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, latents: Float[Tensor, "b d h w"]) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            z = self._place(rearrange(latents.float(), "b d h w -> (b h w) d"))
            if self.training and self.revive_below > 0 and not self.initialised:
                self._replace(torch.ones_like(self.usage, dtype=torch.bool), z)
                self.initialised.fill_(True)
            codes = self._nearest(z)
            if self.training:
                self._follow(z.detach(), codes)
            e = self._place(F.embedding(codes, self.codebook))
            loss = self.commitment * F.mse_loss(z, e.detach())
            if self.learned:
                loss = loss + F.mse_loss(e, z.detach())
            e = z + (e - z).detach()
        b, _, h, _ = latents.shape
        return Quantized(
            rearrange(e, "(b h w) d -> b d h w", b=b, h=h), rearrange(codes, "(b h w) -> b h w", b=b, h=h), loss
        )

    def embed(self, codes: Int[Tensor, "b *grid"]) -> Float[Tensor, "b d *grid"]:
        """Code vectors, channels first."""
        return self._place(F.embedding(codes, self.codebook)).movedim(-1, 1)

    def _place(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.l2_norm else x

    def _nearest(self, z: Float[Tensor, "n d"]) -> Int[Tensor, "n"]:
        e = self._place(self.codebook)
        return torch.addmm(e.square().sum(-1), z, e.T, alpha=-2).argmin(-1)  # |z|^2 is the same for every code

    @torch.no_grad()
    def _follow(self, z: Float[Tensor, "n d"], codes: Int[Tensor, "n"]) -> None:
        """Move the statistics of use, and under `decay` the codebook; revive codes out of use."""
        counts = torch.zeros_like(self.usage).index_add_(0, codes, torch.ones_like(codes, dtype=self.usage.dtype))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, z)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        relative = counts * self.codebook_size / counts.sum()  # 1 under uniform use
        self.usage.lerp_(relative, 1 - self.decay)
        self.sums.lerp_(sums * self.codebook_size / counts.sum(), 1 - self.decay)
        if not self.learned:
            self.codebook.copy_(self._place(self.sums / self.usage.clamp(min=1e-4)[:, None]))
        if self.revive_below > 0:
            self._replace(self.usage < self.revive_below, z)

    @torch.no_grad()
    def _replace(self, dead: Tensor, z: Float[Tensor, "n d"]) -> None:
        """Put latents of the batch (of process 0) in the places of `dead` codes; branch-free, so no synchronisation.

        A latent is drawn with probability proportional to its squared distance from the codebook (the seeding of
        k-means++, Arthur and Vassilvitskii 2007): drawn evenly, most would repeat the commonest patch.
        """
        e = self._place(self.codebook)
        distance = torch.addmm(e.square().sum(-1), z, e.T, alpha=-2).amin(-1) + z.square().sum(-1)
        distance = distance.nan_to_num(0, 1, 0).clamp(min=1e-8)  # the loop reports a NaN better than multinomial
        rows = z[torch.multinomial(distance, self.codebook_size, replacement=True)]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(rows, 0)
        self.codebook.copy_(torch.where(dead[:, None], rows, self.codebook))
        self.sums.copy_(torch.where(dead[:, None], rows * self.NEWBORN, self.sums))
        self.usage.masked_fill_(dead, self.NEWBORN)


QUANTIZERS = {"vq": VectorQuantizer}
