"""Several codes per position: residual quantization (RQ-VAE), and channels in chunks (MoVQ)."""

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
    """Residual quantization (RQ-VAE, Lee et al. 2022, arXiv:2203.01941, eq. 4).

    Each quantizer encodes the residual of the quantizers before it. The commitment and codebook terms are means over
    the quantizers; each compares a *partial sum* with the latents (their eq. 8), which is the same as comparing a code
    vector with its residual. Codes have a last axis of `num_quantizers`.

    Args:
        num_quantizers: codes per position; the paper calls it the depth.
        quantizer: the options of one quantizer.
        shared: whether all quantizers share one codebook, as in the paper.

    Raises:
        ValueError: `num_quantizers` is below 1, or the quantizer normalises its latents.
    """

    def __init__(
        self,
        num_quantizers: int = 4,
        quantizer: Annotated[Any, VECTOR] = {},  # noqa: B006
        shared: bool = False,
    ):
        super().__init__()
        if num_quantizers < 1:
            raise ValueError(f"num_quantizers {num_quantizers} must be at least 1")
        self.codes_per_position = num_quantizers
        self.quantizers = nn.ModuleList(build(VECTOR, quantizer) for _ in range(1 if shared else num_quantizers))
        self.dim, self.codebook_size = self.quantizers[0].dim, self.quantizers[0].codebook_size
        if self.quantizers[0].l2_norm:
            raise ValueError("residuals differ in length and cannot be normalised; set quantizer.l2_norm: false")

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

    def embed(self, codes: Int[Tensor, "b *grid q"]) -> Float[Tensor, "b d *grid"]:
        """The sums of the quantizers' code vectors, channels first."""
        parts = [quantizer.embed(codes[..., i]) for i, quantizer in enumerate(self._each())]
        return torch.stack(parts).sum(0)

    def _each(self) -> list[VectorQuantizer]:
        each: list[Any] = list(self.quantizers)
        return each if len(each) == self.codes_per_position else each * self.codes_per_position


class MultichannelQuantizer(nn.Module):
    """The channels in chunks, each quantized on its own with one shared codebook (MoVQ, arXiv:2209.09002, section 3.2).

    Codes have a last axis of `chunks`.

    Args:
        chunks: codes per position; MoVQ has 4.
        quantizer: the options of the quantizer of a chunk. Its `dim` is that of a chunk (MoVQ: 64); the latents have
            ``chunks * dim`` channels.

    Raises:
        ValueError: `chunks` is below 1.
    """

    def __init__(self, chunks: int = 4, quantizer: Annotated[Any, VECTOR] = {}):  # noqa: B006
        super().__init__()
        if chunks < 1:
            raise ValueError(f"chunks {chunks} must be at least 1")
        self.codes_per_position, self.quantizer = chunks, build(VECTOR, quantizer)
        self.dim, self.codebook_size = chunks * self.quantizer.dim, self.quantizer.codebook_size

    def forward(self, latents: Float[Tensor, "b d *grid"]) -> Quantized:
        q = self.codes_per_position
        found = self.quantizer(rearrange(latents, "b (q d) ... -> (b q) d ...", q=q))
        return Quantized(
            rearrange(found.latents, "(b q) d ... -> b (q d) ...", q=q),
            rearrange(found.codes, "(b q) ... -> b ... q", q=q),
            found.loss,
            found.terms,
        )

    def embed(self, codes: Int[Tensor, "b *grid q"]) -> Float[Tensor, "b d *grid"]:
        """The code vectors of the chunks, concatenated, channels first."""
        flat = self.quantizer.embed(rearrange(codes, "b ... q -> (b q) ..."))
        return rearrange(flat, "(b q) d ... -> b (q d) ...", q=self.codes_per_position)
