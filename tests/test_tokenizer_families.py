"""Every family of tokenizers: shapes, gradients, precision, sizes, errors, and saved copies."""

import math

import pytest
import torch

from maskgen.config import configs_folder, load
from maskgen.parts import build
from maskgen.tokenizer.model import Tokenizer
from maskgen.tokenizer.quantizers import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    MultichannelQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from maskgen.tokenizer.quantizers.base import entropies
from maskgen.tokenizer.quantizers.seeding import draw_latents
from maskgen.training.tokenizer_stage import TOKENIZER

CONV = {"width": 16, "multipliers": [1, 2], "blocks": 1, "patch": 2}
ATTENDING = {**CONV, "attention": [1], "middle_attention": True, "hidden_dim": 24}
VIT = {"type": "vit", "size": 16, "patch": 4, "width": 32, "depth": 2, "heads": 2}
TOKENS = {**VIT, "tokens": 6, "positions": "learned", "registers": 1, "pre_norm": True}
VQ = {"codebook_size": 64, "dim": 8}
FAMILIES = {
    "vqgan": (ATTENDING, VQ, ATTENDING),
    "maskgit": (
        {**CONV, "residual": "maskgit", "downsample": "pool"},
        {**VQ, "learned": True, "entropy": 0.1},
        {**CONV, "residual": "maskgit"},
    ),
    "vit-vqgan": (VIT, {**VQ, "l2_norm": True, "learned": True}, {**VIT, "head": "tanh"}),
    "movq": (
        CONV,
        {"type": "multichannel", "chunks": 4, "quantizer": {"codebook_size": 64, "dim": 4}},
        {**ATTENDING, "norm": "spatial"},
    ),
    "fsq": (CONV, {"type": "fsq", "steps": [8, 5, 3, 2]}, CONV),
    "lfq": (CONV, {"type": "lfq", "bits": 8}, CONV),
    "residual": (CONV, {"type": "residual", "levels": 3, "quantizer": VQ}, CONV),
    "residual, shared": (CONV, {"type": "residual", "levels": 3, "quantizer": VQ, "shared": True}, CONV),
    "titok": (TOKENS, {**VQ, "l2_norm": True}, {**TOKENS, "refine": True}),
    "ta-titok": (TOKENS, VQ, {**TOKENS, "refine": True, "text_dim": 5, "text_length": 7}),
    "vq-kd": (
        {**VIT, "positions": "learned", "registers": 1, "head": "tanh"},
        {**VQ, "l2_norm": True, "average": "directions", "init": "kmeans"},
        {**VIT, "size": 4, "patch": 1, "channels": 20, "head": "tanh"},
        "features",
    ),
    "centroids": ({"type": "patch"}, {"codebook_size": 64, "dim": 48, "init": "kmeans"}, {"type": "patch"}),
    "patches": ({"type": "patch"}, {"type": "none", "dim": 48}, {"type": "patch"}),
    "continuous": (CONV, {"type": "none", "dim": 8}, CONV),
}
WITHOUT_WEIGHTS = ("centroids", "patches")


def a_tokenizer(name):
    torch.manual_seed(0)
    return Tokenizer(*FAMILIES[name])


def text_of(name, count):
    return torch.randn(count, 7, 5) if name == "ta-titok" else None


def pixels_of(count=4, height=16, width=16):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", FAMILIES)
def test_encoding_and_decoding_are_the_forward_pass(name):
    tokenizer, pixels, text = a_tokenizer(name).eval(), pixels_of(), text_of(name, 4)
    with torch.no_grad():
        output, codes = tokenizer(pixels, text), tokenizer.encode(pixels)
        made = tokenizer.decode(codes, text)
    grid = tokenizer.grid((16, 16))
    assert grid == ((6,) if "titok" in name else (4, 4))
    torch.testing.assert_close(codes, output.codes)
    torch.testing.assert_close(made, output.pixels, atol=1e-5, rtol=0)
    assert made.shape == ((4, 20, 4, 4) if name == "vq-kd" else pixels.shape)
    if tokenizer.codebook_size:
        assert codes.shape == (4, *grid, *([tokenizer.levels] if tokenizer.levels > 1 else []))
        assert codes.dtype == torch.int64
        assert codes.min() >= 0
        assert codes.max() < tokenizer.codebook_size
    else:
        torch.testing.assert_close(codes.movedim(-1, 1), tokenizer.embed(codes))
    if name == "patches":
        torch.testing.assert_close(made, pixels)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITHOUT_WEIGHTS])
def test_every_weight_gets_a_gradient(name):
    tokenizer = a_tokenizer(name).train()
    output = tokenizer(pixels_of(), text_of(name, 4))
    target = torch.randn(output.pixels.shape, generator=torch.Generator().manual_seed(2))
    ((output.pixels - target).square().mean() + output.loss).backward()
    missing = [n for n, p in tokenizer.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not missing
    assert all(p.grad.isfinite().all() for p in tokenizer.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_gives_the_same_pictures_about(name, dtype, tmp_path):
    tokenizer, pixels, text = a_tokenizer(name).eval(), pixels_of(), text_of(name, 4)
    tokenizer.save_pretrained(tmp_path)
    half = Tokenizer.from_pretrained(tmp_path, torch_dtype=dtype).eval()
    assert half.dtype == (torch.float32 if name in WITHOUT_WEIGHTS else dtype)
    with torch.no_grad():
        codes = tokenizer.encode(pixels)
        exact, made = tokenizer.decode(codes, text), half.decode(codes, text)
        with torch.autocast("cpu", dtype=dtype):
            cast = tokenizer(pixels, text)
    assert (made.float() - exact).abs().max() < 0.05 * max(1.0, float(exact.abs().max()))
    assert cast.pixels.isfinite().all()
    assert cast.loss.isfinite()
    assert half.encode(pixels.to(half.dtype)).shape == codes.shape


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_float16_survives_large_activations(scale):
    """GroupNorm computes in float32, so activations near float16's limit do not become NaN."""
    tokenizer = a_tokenizer("vqgan").eval()
    with torch.no_grad():
        tokenizer.encoder.layers[0].weight.mul_(scale)
        half = tokenizer.half()
        half.quantizer.float()
        assert half(pixels_of().half()).pixels.isfinite().all()


@pytest.mark.parametrize("name", [name for name in FAMILIES if "titok" not in name and name != "vq-kd"])
def test_pictures_that_are_larger_and_not_square(name):
    tokenizer, pixels = a_tokenizer(name).eval(), pixels_of(2, 24, 40)
    assert tokenizer.grid((24, 40)) == (6, 10)
    with torch.no_grad():
        assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


def test_learned_positions_are_stretched_and_kept_at_the_trained_size():
    encoder = a_tokenizer("vq-kd").encoder
    x = torch.zeros(1)
    assert torch.equal(encoder.trunk.positions((4, 4), x), encoder.trunk.position_embedding)
    assert encoder.trunk.positions((6, 10), x).shape == (60, 32)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_copy_is_the_same(name, tmp_path):
    tokenizer, pixels = a_tokenizer(name).train(), pixels_of()
    tokenizer(pixels, text_of(name, 4))  # codebooks take their first values
    tokenizer.eval().save_pretrained(tmp_path)
    copy = Tokenizer.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(copy.encode(pixels), tokenizer.encode(pixels), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------- quantizers


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
    torch.manual_seed(0)
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
    torch.manual_seed(0)
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
    torch.manual_seed(0)
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
    torch.manual_seed(0)
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
    with pytest.raises(ValueError, match="residuals have no common length"):
        ResidualQuantizer(2, {"l2_norm": True})


def test_chunks_share_one_codebook():
    torch.manual_seed(0)
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
    torch.manual_seed(0)
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
    torch.manual_seed(0)
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
    torch.manual_seed(0)
    z, weights = torch.arange(6.0)[:, None], torch.tensor([0.0, 1.0, 1.0, 2.0, 4.0, 0.0])
    drawn = torch.stack([draw_latents(z, weights, 1)[0, 0] for _ in range(4000)]).long()
    shares = torch.bincount(drawn, minlength=6) / 4000
    torch.testing.assert_close(shares, weights / 8, atol=0.03, rtol=0)
    assert sorted(draw_latents(z, weights, 6)[:, 0].tolist()) == [0, 1, 2, 3, 4, 5]


# ---------------------------------------------------------------------------------------------------------- bad input


def test_what_a_tokenizer_cannot_take_is_said():
    tokenizer = a_tokenizer("vqgan").eval()
    with pytest.raises(ValueError, match="pixels have 1 channels; this tokenizer takes 3"):
        tokenizer.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"picture size \(18, 16\) .* multiple of 4; resize to \(16, 16\)"):
        tokenizer.encode(torch.zeros(1, 3, 18, 16))
    with pytest.raises(ValueError, match="NaN or infinity"):
        tokenizer.encode(torch.full((1, 3, 16, 16), math.nan))
    with pytest.raises(ValueError, match="codes run from 0 to 64; this codebook has 0 to 63"):
        tokenizer.decode(torch.tensor([[[0, 64]]]))
    with pytest.raises(ValueError, match="codes run from -1"):
        tokenizer.embed(torch.tensor([[[-1, 3]]]))
    with pytest.raises(ValueError, match=r"4 codes a place, on a last axis; got codes of shape \(1, 4, 5\)"):
        a_tokenizer("movq").decode(torch.zeros(1, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"tokens are float \(b, h, w, 48\)"):
        a_tokenizer("patches").decode(torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"1-D tokens are made for \(16, 16\) alone"):
        a_tokenizer("titok").encode(torch.zeros(1, 3, 32, 32))


def test_text_is_asked_for_and_refused():
    reads, codes = a_tokenizer("ta-titok").eval(), torch.zeros(1, 6, dtype=torch.int64)
    for wrong, given in (
        (None, "none"),
        (torch.zeros(1, 8, 5), r"\(1, 8, 5\)"),
        (torch.zeros(1, 7, 4), r"\(1, 7, 4\)"),
    ):
        with pytest.raises(ValueError, match=r"needs text features \(b, at most 7, 5\), got.* " + given):
            reads.decode(codes, wrong)
    with pytest.raises(ValueError, match="this decoder takes no text"):
        a_tokenizer("titok").eval().decode(codes, torch.zeros(1, 7, 5))
    one, other = (reads.decode(codes, torch.full((1, 3, 5), value)) for value in (0.0, 1.0))
    assert not torch.allclose(one, other)  # the text matters


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        ({"type": "fsq", "steps": [8, 1]}, "every channel needs at least 2 values"),
        ({"type": "lfq", "bits": 63}, "a code must fit into an int64"),
        ({"type": "residual", "levels": 0}, "levels 0 must be at least 1"),
        ({"type": "multichannel", "chunks": 0}, "chunks 0 must be at least 1"),
        ({"average": "directions"}, "needs l2_norm: true and learned: false"),
        ({"entropy": 0.1}, "set learned: true, or entropy: 0"),
    ],
)
def test_quantizers_refuse_what_makes_no_sense(quantizer, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(CONV, quantizer, CONV)


def test_patches_need_the_right_dim():
    with pytest.raises(ValueError, match="has 48 numbers, the quantizer's dim is 16; set it to 48"):
        Tokenizer({"type": "patch"}, {"type": "none"}, {"type": "patch"})


CONFIGS = sorted(path.stem for path in (configs_folder() / "tokenizer").glob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_builds_its_tokenizer(name):
    config = load(f"tokenizer/{name}", [])
    with torch.device("meta"):  # shapes without memory: some have hundreds of millions of weights
        tokenizer = build(TOKENIZER, config["stage"].get("tokenizer", {}))
    size = config["data"].get("size", 32)
    grid = tokenizer.grid((size, size))
    assert all(side > 0 for side in grid)


def test_places_normed_by_themselves_hear_of_their_surroundings_alone():
    """With GroupNorm a change in one corner changes the codes of the other."""
    pixels = torch.zeros(1, 3, 64, 64)
    changed = pixels.clone()
    changed[..., :8, :8] = torch.rand(3, 8, 8)
    differ = {}
    for groups in (0, 4):
        torch.manual_seed(0)
        parts = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": groups}
        tokenizer = Tokenizer(parts, {"type": "none", "dim": 4}, parts).eval()
        with torch.no_grad():
            codes = [tokenizer.encode(x) for x in (pixels, changed)]
        differ[groups] = bool((codes[0] != codes[1])[:, 24:, 24:].any())
        assert (codes[0] != codes[1]).any()
    assert differ == {0: False, 4: True}


def test_a_patch_can_be_coded_by_itself():
    torch.manual_seed(0)
    parts = {"width": 8, "multipliers": [1], "patch": 8, "groups": 0}
    tokenizer = Tokenizer({**parts, "kernel": 1}, {"type": "none", "dim": 4}, parts).eval()
    pixels = torch.rand(1, 3, 32, 32)
    changed = pixels.clone()
    changed[..., 8:16, 8:16] = 0
    with torch.no_grad():
        differ = (tokenizer.encode(pixels) != tokenizer.encode(changed)).any(-1)[0]
    assert differ.nonzero().tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="kernel 2 must be odd"):
        Tokenizer({**parts, "kernel": 2})
