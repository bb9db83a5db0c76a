"""Several codes a place: residuals of residuals (RQ-VAE), and channels in chunks (MoVQ)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskgen.registry import Part, build
from maskgen.tokenizer.quantizers.base import Quantized
from maskgen.tokenizer.quantizers.vector import VectorQuantizer

VECTOR = Part({"vq": VectorQuantizer}, default="vq")


class ResidualQuantizer(nn.Module):
    """Each level quantizes what the levels before left over (RQ-VAE, Lee et al. 2022, arXiv:2203.01941, eq. 4).

    The commitment and codebook terms are means over the levels, each of the *partial sums* against the latents (their
    eq. 8): that is what a level's own residual is. Codes have a last axis of `levels`.

    Args:
        levels: codes a place, called depth in the paper.
        quantizer: of one level.
        shared: one codebook for all levels, as in the paper; else each has its own.
    """

    def __init__(
        self,
        levels: int = 4,
        quantizer: Annotated[Any, VECTOR] = {},  # noqa: B006
        shared: bool = False,
    ):
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels {levels} must be at least 1")
        self.levels = levels
        self.quantizers = nn.ModuleList(build(VECTOR, quantizer) for _ in range(1 if shared else levels))
        self.dim, self.codebook_size = self.quantizers[0].dim, self.quantizers[0].codebook_size
        if self.quantizers[0].l2_norm:
            raise ValueError("residuals have no common length; set quantizer.l2_norm: false")

    def forward(self, latents: Float[Tensor, "b d *grid"]) -> Quantized:
        residual = latents
        found: list[Quantized] = []
        for quantizer in self._each():
            found.append(quantizer(residual))
            residual = residual - found[-1].latents.detach()
        total = (latents - residual).detach()
        terms = {f"{name}_{i}": term for i, one in enumerate(found) for name, term in one.terms.items()}
        codes = torch.stack([one.codes for one in found], -1)
        loss = torch.stack([one.loss for one in found]).mean()
        return Quantized(latents + (total - latents).detach(), codes, loss, terms)

    def embed(self, codes: Int[Tensor, "b *grid levels"]) -> Float[Tensor, "b d *grid"]:
        """Sums of the levels' code vectors, channels first."""
        parts = [quantizer.embed(codes[..., i]) for i, quantizer in enumerate(self._each())]
        return torch.stack(parts).sum(0)

    def _each(self) -> list[VectorQuantizer]:
        each: list[Any] = list(self.quantizers)
        return each if len(each) == self.levels else each * self.levels


class MultichannelQuantizer(nn.Module):
    """Channels in chunks, each quantized on its own by one shared codebook (MoVQ, arXiv:2209.09002, section 3.2).

    Codes have a last axis of `chunks`.

    Args:
        chunks: codes a place; MoVQ has 4.
        quantizer: of a chunk; its `dim` is a chunk's (MoVQ 64), the latents have ``chunks * dim`` channels.
    """

    def __init__(self, chunks: int = 4, quantizer: Annotated[Any, VECTOR] = {}):  # noqa: B006
        super().__init__()
        if chunks < 1:
            raise ValueError(f"chunks {chunks} must be at least 1")
        self.levels, self.quantizer = chunks, build(VECTOR, quantizer)
        self.dim, self.codebook_size = chunks * self.quantizer.dim, self.quantizer.codebook_size

    def forward(self, latents: Float[Tensor, "b d *grid"]) -> Quantized:
        found = self.quantizer(rearrange(latents, "b (levels d) ... -> (b levels) d ...", levels=self.levels))
        return Quantized(
            rearrange(found.latents, "(b levels) d ... -> b (levels d) ...", levels=self.levels),
            rearrange(found.codes, "(b levels) ... -> b ... levels", levels=self.levels),
            found.loss,
            found.terms,
        )

    def embed(self, codes: Int[Tensor, "b *grid levels"]) -> Float[Tensor, "b d *grid"]:
        """The chunks' code vectors joined, channels first."""
        flat = self.quantizer.embed(rearrange(codes, "b ... levels -> (b levels) ..."))
        return rearrange(flat, "(b levels) d ... -> b (levels d) ...", levels=self.levels)
