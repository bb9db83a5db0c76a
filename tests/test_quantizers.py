"""Quantizers: codes, losses, gradients and codebooks, by themselves and beside those of installed libraries."""

import math

import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer as PeerQuantizer

from maskgen.registry import build
from maskgen.tokenizer.model import QUANTIZER
from maskgen.tokenizer.quantizers import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    MultichannelQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from maskgen.tokenizer.quantizers.base import entropies
from maskgen.tokenizer.quantizers.seeding import sample_latents


def test_fsq_numbers_each_combination_once_and_rounds_to_the_nearest():
    quantizer = FiniteScalarQuantizer([4, 3, 2])
    codes = torch.arange(24)[None]
    vectors = quantizer.embed(codes)
    assert len(vectors[0].T.unique(dim=0)) == 24
    assert vectors.min() == -1
    assert vectors.max() <= 1
    half = torch.tensor([2.0, 1.0, 1.0])[:, None]
    back = quantizer(_unsquash(quantizer, vectors[0] * half)[None])
    assert torch.equal(back.codes, codes)
    assert quantizer(torch.zeros(1, 3, 1)).latents.abs().max() == 0


def _unsquash(quantizer, rounded):
    """A latent that FSQ's bound maps onto `rounded`."""
    counts = quantizer.counts[:, None]
    half, offset = (counts - 1) * (1 + 1e-3) / 2, 0.5 * (counts % 2 == 0)
    return ((rounded + offset) / half).atanh() - (offset / half).atanh()


def test_fsq_passes_gradients_through_the_rounding():
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    FiniteScalarQuantizer([8, 5, 5, 5])(z).latents.sum().backward()
    assert (z.grad > 0).all()


def test_lfq_words_are_signs_lowest_bit_first():
    quantizer = LookupFreeQuantizer(3)
    z = torch.tensor([[1.0, -2.0, 3.0], [-1.0, 1.0, -0.1]]).T[None]
    found = quantizer(z)
    assert found.codes.tolist() == [[0b101, 0b010]]
    assert torch.equal(found.latents.detach(), z.sign())
    assert torch.equal(quantizer.embed(found.codes), z.sign())
    assert quantizer.bits(found.codes).tolist() == [[[1, 0, 1], [0, 1, 0]]]


@pytest.mark.parametrize("bits", [4, 7])
def test_lfq_entropies_in_groups_equal_the_whole_where_groups_are_independent(bits):
    """E[H] is exact in groups; H[E] too when the groups' bits do not depend on each other over the batch."""
    whole, grouped = (
        LookupFreeQuantizer(bits, temperature=1.0),
        LookupFreeQuantizer(bits, temperature=1.0, group_bits=3),
    )
    z = torch.randn(512, bits) * 0.3
    exact, parts = whole._entropies(z), grouped._entropies(z)
    torch.testing.assert_close(parts[0], exact[0], atol=1e-4, rtol=1e-4)
    assert parts[1] >= exact[1] - 1e-3
    constant = z[:1].expand(512, -1)
    torch.testing.assert_close(grouped._entropies(constant)[1], whole._entropies(constant)[1], atol=2e-3, rtol=1e-3)


def test_lfq_entropy_weight_falls_to_its_own():
    quantizer = LookupFreeQuantizer(4, commitment=0.0, annealing_steps=4)
    z = torch.randn(2, 4, 3, 3)
    losses = [float(quantizer(z).loss) for _ in range(6)]
    assert [loss / losses[-1] for loss in losses] == pytest.approx([3, 2.5, 2, 1.5, 1, 1])


def test_entropies_of_sure_and_even_assignments():
    sure = torch.eye(8) * 100
    assert entropies(sure, 1.0)[0] == pytest.approx(0, abs=1e-3)
    assert entropies(sure, 1.0)[1] == pytest.approx(math.log(8), abs=1e-3)
    even = torch.zeros(5, 8)
    assert entropies(even, 1.0)[0] == pytest.approx(math.log(8), abs=1e-3)


def test_the_entropy_term_spreads_the_codes_and_moves_both_sides():
    quantizer = VectorQuantizer(
        8, 4, learned=True, revive_below=0.0, init="random", entropy=1.0, entropy_temperature=1.0
    )
    z = torch.randn(2, 4, 4, 4, requires_grad=True)
    found = quantizer(z)
    found.loss.backward()
    assert z.grad.any()
    assert quantizer.codebook.grad.any()
    assert found.terms["mean_entropy"] <= math.log(8) + 1e-3
    assert "mean_entropy" not in quantizer.eval()(z).terms


def test_residual_levels_halve_the_error_and_sum_to_the_latents():
    spec = {"codebook_size": 32, "dim": 4, "decay": 0.8, "revive_below": 0.0}
    quantizer, z = ResidualQuantizer(4, spec), torch.randn(8, 4, 8, 8)
    for _ in range(60):
        quantizer(z)
    quantizer.eval()
    found = quantizer(z)
    torch.testing.assert_close(quantizer.embed(found.codes), found.latents)
    first = quantizer.quantizers[0].embed(found.codes[..., 0])
    errors = [(z - first).square().mean(), (z - found.latents).square().mean()]
    assert errors[1] < 0.25 * errors[0]
    with pytest.raises(ValueError, match=r"set quantizer\.l2_norm: false"):
        ResidualQuantizer(2, {"l2_norm": True})


def test_chunks_share_one_codebook():
    quantizer = MultichannelQuantizer(4, {"codebook_size": 16, "dim": 2}).eval()
    z = torch.randn(2, 8, 3, 5)
    found = quantizer(z)
    assert found.codes.shape == (2, 3, 5, 4)
    for i in range(4):
        alone = quantizer.quantizer(z[:, 2 * i : 2 * i + 2])
        assert torch.equal(alone.codes, found.codes[..., i])
        torch.testing.assert_close(alone.latents, found.latents[:, 2 * i : 2 * i + 2])


@pytest.mark.parametrize("l2_norm", [False, True])
def test_the_first_batch_sets_the_codebook(l2_norm):
    """To latents that lie apart; k-means then comes closer to the latents, and all codes are used."""
    z = torch.randn(1, 6, 2048)
    errors = {}
    for init in ("random", "data", "kmeans"):
        torch.manual_seed(1)
        quantizer = VectorQuantizer(64, 6, init=init, l2_norm=l2_norm, revive_below=0.0, decay=1.0)
        first = quantizer(z)
        assert bool(quantizer.initialised) == (init != "random")
        errors[init] = float(first.terms["commitment"])
        if init != "random":
            assert len(first.codes.unique()) == 64
    assert errors["kmeans"] < 0.8 * errors["data"] < 0.8 * errors["random"]


def test_kmeans_goes_downhill_and_fills_empty_centroids():
    quantizer, z = VectorQuantizer(16, 3), torch.randn(1000, 3)
    with torch.no_grad():
        quantizer.codebook[8:] = 100.0  # nothing is near these
    errors = [float(quantizer.refine(z, 1)) for _ in range(8)]
    assert errors == sorted(errors, reverse=True)
    assert len(quantizer.eval()(z.T[None]).codes.unique()) == 16


def test_fewer_latents_than_codes_repeat_with_noise():
    quantizer = VectorQuantizer(64, 4, revive_below=0.0)
    quantizer(torch.randn(1, 4, 3, 3))
    assert len(quantizer.codebook.unique(dim=0)) == 64
    assert quantizer.codebook.isfinite().all()


def test_latents_are_drawn_by_their_weights_without_replacement():
    z, weights = torch.arange(6.0)[:, None], torch.tensor([0.0, 1.0, 1.0, 2.0, 4.0, 0.0])
    drawn = torch.stack([sample_latents(z, weights, 1)[0, 0] for _ in range(4000)]).long()
    shares = torch.bincount(drawn, minlength=6) / 4000
    torch.testing.assert_close(shares, weights / 8, atol=0.03, rtol=0)
    assert sorted(sample_latents(z, weights, 6)[:, 0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_a_codebook_that_follows_has_no_gradient_and_goes_to_its_latents_mean():
    quantizer = VectorQuantizer(2, 2, decay=0.5, revive_below=0.0)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        quantizer.sums.copy_(quantizer.codebook)
    z = torch.tensor([[-3.0, 1.0], [-2.0, 0.0], [4.0, 2.0]]).T[None, :, :, None].requires_grad_()
    for _ in range(60):
        loss = quantizer(z).loss
    assert not quantizer.codebook.requires_grad
    torch.testing.assert_close(quantizer.codebook.data, torch.tensor([[-2.5, 0.5], [4.0, 2.0]]))
    torch.testing.assert_close(quantizer.usage, torch.tensor([4 / 3, 2 / 3]))  # 1 under uniform use
    loss.backward()
    torch.testing.assert_close(loss.detach(), 0.25 * torch.tensor([0.25, 0.25, 0.25, 0.25, 0, 0]).mean())


def test_dead_codes_come_back_to_life_and_living_ones_stay():
    quantizer = VectorQuantizer(4, 2, learned=True, revive_below=0.05)
    quantizer.initialised.fill_(True)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0], [-50.0, 0.0]]))
        quantizer.usage.copy_(torch.tensor([1.0, 1.0, 0.02, 0.5]))
    z = torch.rand(1, 2, 8, 8)
    quantizer(z)
    assert torch.equal(quantizer.codebook[[0, 1, 3]], torch.tensor([[0.0, 0.0], [1.0, 1.0], [-50.0, 0.0]]))
    born = quantizer.codebook[2]
    assert (born == z[0].flatten(1).T).all(1).any()  # one of the batch's latents
    before = quantizer.codebook.clone()
    quantizer.eval()(z)
    assert torch.equal(quantizer.codebook, before)


# ------------------------------------------------------------------------------------------------- installed libraries


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
