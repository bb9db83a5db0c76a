"""Every family of tokenizers: shapes, gradients, precision, sizes, errors, and saved copies."""

import json
import math

import pytest
import torch

from maskgen.config import ConfigError, check, configs_folder, load
from maskgen.registry import build
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.stages.tokenizer import TOKENIZER

CONV = {"width": 16, "multipliers": [1, 2], "blocks": 1, "patch": 2}
ATTENDING = {**CONV, "attention": [1], "middle": {"attention": True}, "hidden_dim": 24}
SIZES = {"width": 32, "depth": 2, "heads": 2}
LEARNED = {**SIZES, "positions": "learned", "num_registers": 1}
VIT = {"type": "vit", "size": 16, "patch": 4, "transformer": SIZES}
TOKENS = {**VIT, "tokens": 6, "transformer": {**LEARNED, "pre_norm": True}}
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
    "fsq": (CONV, {"type": "fsq", "levels": [8, 5, 3, 2]}, CONV),
    "lfq": (CONV, {"type": "lfq", "bits": 8}, CONV),
    "residual": (CONV, {"type": "residual", "num_quantizers": 3, "quantizer": VQ}, CONV),
    "residual, shared": (CONV, {"type": "residual", "num_quantizers": 3, "quantizer": VQ, "shared": True}, CONV),
    "titok": (TOKENS, {**VQ, "l2_norm": True}, {**TOKENS, "refine": True}),
    "ta-titok": (TOKENS, VQ, {**TOKENS, "refine": True, "text_dim": 5, "text_length": 7}),
    "vq-kd": (
        {**VIT, "transformer": LEARNED, "head": "tanh"},
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
        assert codes.shape == (4, *grid, *([tokenizer.codes_per_position] if tokenizer.codes_per_position > 1 else []))
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
def test_half_precision_gives_the_same_images_about(name, dtype, tmp_path):
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
        tokenizer.encoder.conv_in.weight.mul_(scale)
        half = tokenizer.half()
        half.quantizer.float()
        assert half(pixels_of().half()).pixels.isfinite().all()


@pytest.mark.parametrize("name", [name for name in FAMILIES if "titok" not in name and name != "vq-kd"])
def test_images_that_are_larger_and_not_square(name):
    tokenizer, pixels = a_tokenizer(name).eval(), pixels_of(2, 24, 40)
    assert tokenizer.grid((24, 40)) == (6, 10)
    with torch.no_grad():
        assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


def test_learned_positions_are_stretched_and_kept_at_the_trained_size():
    encoder = a_tokenizer("vq-kd").encoder
    x = torch.zeros(1)
    assert torch.equal(encoder.positions((4, 4), x), encoder.position_embedding)
    assert encoder.positions((6, 10), x).shape == (60, 32)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_copy_is_the_same(name, tmp_path):
    tokenizer, pixels = a_tokenizer(name).train(), pixels_of()
    tokenizer(pixels, text_of(name, 4))  # codebooks take their first values
    tokenizer.eval().save_pretrained(tmp_path)
    copy = Tokenizer.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(copy.encode(pixels), tokenizer.encode(pixels), rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------- bad input


def test_what_a_tokenizer_cannot_take_is_said():
    tokenizer = a_tokenizer("vqgan").eval()
    with pytest.raises(ValueError, match="pixels have 1 channels; this tokenizer takes 3"):
        tokenizer.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"image size \(18, 16\) .* multiple of 4; resize to \(16, 16\)"):
        tokenizer.encode(torch.zeros(1, 3, 18, 16))
    with pytest.raises(ValueError, match="NaN or infinity"):
        tokenizer.encode(torch.full((1, 3, 16, 16), math.nan))
    with pytest.raises(ValueError, match="codes run from 0 to 64; this codebook has 0 to 63"):
        tokenizer.decode(torch.tensor([[[0, 64]]]))
    with pytest.raises(ValueError, match="codes run from -1"):
        tokenizer.embed(torch.tensor([[[-1, 3]]]))
    with pytest.raises(ValueError, match=r"4 codes per position.* got codes of shape \(1, 4, 5\)"):
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
        ({"type": "fsq", "levels": [8, 1]}, "every channel needs at least 2 values"),
        ({"type": "lfq", "bits": 63}, "a code must fit into an int64"),
        ({"type": "residual", "num_quantizers": 0}, "num_quantizers 0 must be at least 1"),
        ({"type": "multichannel", "chunks": 0}, "chunks 0 must be at least 1"),
        ({"average": "directions"}, "needs l2_norm: true and learned: false"),
        ({"entropy": 0.1}, "set learned: true, or entropy: 0"),
    ],
)
def test_quantizers_refuse_what_makes_no_sense(quantizer, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(CONV, quantizer, CONV)


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        ({"type": "vit", "registers": 1}, "transformer.num_registers"),
        ({"middle_attention": True}, "middle.attention"),
        ({"groups": 0}, "norm_groups"),
    ],
)
def test_an_option_with_a_new_name_is_refused_with_it(encoder, name):
    with pytest.raises(ValueError, match=f"is now called .*{name}; rename it"):
        Tokenizer(encoder)
    with pytest.raises(ConfigError, match=f"is now called encoder.{name}; rename it"):
        check(Tokenizer, {"encoder": encoder}, "x.yaml")


def test_nested_options_are_checked_and_saved_nested(tmp_path):
    config = {"encoder": {**TOKENS, "transformer": {**LEARNED, "depth": "deep", "width": 32}}}
    with pytest.raises(ConfigError, match=r"encoder\.transformer\.depth: 'deep'.*integer"):
        check(Tokenizer, config, "x.yaml")
    config = check(Tokenizer, {"encoder": TOKENS, "quantizer": VQ, "decoder": TOKENS}, "x.yaml")
    tokenizer = Tokenizer(**config)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["encoder"]["transformer"]
    assert saved.items() >= TOKENS["transformer"].items()
    assert Tokenizer.from_pretrained(tmp_path).config.encoder == tokenizer.config.encoder


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
        parts = {"width": 8, "multipliers": [1, 2], "blocks": 1, "norm_groups": groups}
        tokenizer = Tokenizer(parts, {"type": "none", "dim": 4}, parts).eval()
        with torch.no_grad():
            codes = [tokenizer.encode(x) for x in (pixels, changed)]
        differ[groups] = bool((codes[0] != codes[1])[:, 24:, 24:].any())
        assert (codes[0] != codes[1]).any()
    assert differ == {0: False, 4: True}


def test_a_patch_can_be_coded_by_itself():
    parts = {"width": 8, "multipliers": [1], "patch": 8, "norm_groups": 0}
    tokenizer = Tokenizer({**parts, "kernel": 1}, {"type": "none", "dim": 4}, parts).eval()
    pixels = torch.rand(1, 3, 32, 32)
    changed = pixels.clone()
    changed[..., 8:16, 8:16] = 0
    with torch.no_grad():
        differ = (tokenizer.encode(pixels) != tokenizer.encode(changed)).any(-1)[0]
    assert differ.nonzero().tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="kernel 2 must be odd"):
        Tokenizer({**parts, "kernel": 2})
