"""Quantizers beside those of installed libraries."""

import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer as PeerQuantizer

from maskgen.parts import build
from maskgen.tokenizer.model import QUANTIZER
from maskgen.tokenizer.quantizers import FiniteScalarQuantizer, LookupFreeQuantizer


@pytest.mark.parametrize("steps", [[8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [3], [4, 3, 16, 9]])
def test_fsq_is_that_of_vector_quantize_pytorch(steps):
    from vector_quantize_pytorch import FSQ

    ours, theirs = FiniteScalarQuantizer(steps), FSQ(steps)
    z = (3 * torch.randn(4, len(steps), 32, 32)).requires_grad_()
    found, (vectors, codes) = ours(z), theirs(z)
    assert torch.equal(found.codes, codes.long())
    torch.testing.assert_close(found.latents, vectors, atol=1e-6, rtol=0)
    slope = torch.randn_like(vectors)
    gradients = [torch.autograd.grad((x * slope).sum(), z)[0] for x in (found.latents, vectors)]
    torch.testing.assert_close(*gradients)
    every = torch.arange(ours.codebook_size)[None]
    torch.testing.assert_close(ours.embed(every).movedim(1, -1), theirs.indices_to_codes(every), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", [1, 5, 10])
def test_lfq_is_that_of_vector_quantize_pytorch(bits):
    """That library's first channel is the highest bit, ours (and MaskBit's) the lowest."""
    from vector_quantize_pytorch import LFQ

    ours = LookupFreeQuantizer(bits, commitment=0.25, entropy=0.1, temperature=0.01)
    theirs = LFQ(dim=bits, entropy_loss_weight=0.1, commitment_loss_weight=0.25)
    z = torch.randn(4, bits, 16, 16)
    found = ours(z)
    (vectors, codes, loss), parts = theirs(z.flip(1), return_loss_breakdown=True)
    assert torch.equal(found.codes, codes.long())
    torch.testing.assert_close(found.latents, vectors.flip(1), atol=1e-6, rtol=0)
    assert torch.equal(ours.embed(codes.long()), theirs.indices_to_codes(codes).flip(1))
    torch.testing.assert_close(found.terms["mean_entropy"], parts.batch_entropy)
    torch.testing.assert_close(found.terms["commitment"], parts.commitment)
    # that library cuts the logarithm of single assignments at 1e-5 too
    torch.testing.assert_close(found.terms["sample_entropy"], parts.per_sample_entropy, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.loss, loss, atol=2e-5, rtol=0)


@pytest.mark.parametrize("legacy_loss", [True, False])
def test_commitment_weighs_the_encoder(legacy_loss):
    """A loss's value cannot tell which of its terms beta weighs; gradients can, and do so of taming's two forms."""
    beta, z = 0.25, torch.randn(2, 4, 8, 8, requires_grad=True)
    theirs = PeerQuantizer(16, 4, beta=beta, legacy=legacy_loss)
    options = {"codebook_size": 16, "dim": 4, "learned": True, "commitment": 1 / beta if legacy_loss else beta}
    ours = build(QUANTIZER, {**options, "init": "random", "revive_below": 0.0})
    with torch.no_grad():
        ours.codebook.copy_(theirs.embedding.weight.normal_())
    loss = (beta if legacy_loss else 1) * ours(z).loss
    wanted = theirs(z)[1]
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(loss, [z, ours.codebook]), torch.autograd.grad(wanted, [z, theirs.embedding.weight])
    )
