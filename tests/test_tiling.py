"""Large images a tile at a time."""

from itertools import pairwise

import pytest
import torch

from maskgen.tokenizer.model import Tokenizer
from maskgen.tokenizer.tiling import _kept, _sample, _spans, shared_norms, tiled_decode, tiled_encode

CODER = {"width": 8, "multipliers": [1, 2], "blocks": 1}
QUANTIZERS = [
    {"codebook_size": 32, "dim": 4},
    {"type": "multichannel", "chunks": 2, "quantizer": {"codebook_size": 32, "dim": 2}},
    {"type": "none", "dim": 4},
]


def a_tokenizer(quantizer=QUANTIZERS[0]):
    torch.manual_seed(0)
    return Tokenizer(CODER, quantizer, CODER).eval()


@pytest.mark.parametrize("length", [8, 9, 15, 16, 40, 41, 100])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 2), (15, 7)])
def test_tiles_cover_all_overlap_enough_and_keep_each_token_once(length, tile, overlap):
    spans = _spans(length, tile, overlap)
    assert {i for span in spans for i in span} == set(range(length))
    assert all(len(span) == min(tile, length) for span in spans)
    assert all(a.stop - b.start >= overlap for a, b in pairwise(spans))
    kept = [i for span, part in _kept(spans) for i in span[part]]
    assert kept == list(range(length))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_one_tile_is_the_whole(quantizer):
    tokenizer, pixels = a_tokenizer(quantizer), torch.rand(2, 3, 24, 36) * 2 - 1
    with torch.no_grad():
        codes = tokenizer.encode(pixels)
        torch.testing.assert_close(tiled_encode(tokenizer, pixels, 64, 8), codes)
        torch.testing.assert_close(tiled_decode(tokenizer, codes, 32, 4), tokenizer.decode(codes))


def test_without_norms_over_the_image_tiles_are_the_whole():
    """Patches have no receptive field beyond themselves, so any tiling is exact."""
    tokenizer = Tokenizer({"type": "patch"}, {"codebook_size": 64, "dim": 48}, {"type": "patch"}).eval()
    pixels = torch.rand(1, 3, 52, 76) * 2 - 1
    codes = tiled_encode(tokenizer, pixels, 20, 8)
    assert torch.equal(codes, tokenizer.encode(pixels))
    torch.testing.assert_close(tiled_decode(tokenizer, codes, 5, 2), tokenizer.decode(codes))


def test_blending_is_smooth_over_the_overlap():
    """A tokenizer whose tiles differ in level only: the level goes over linearly, without a step."""

    levels = iter([1.0, 2.0])

    class Levels(Tokenizer):
        def decode(self, codes):
            level = next(levels) if len(codes) == 1 else 0.0  # several: the sample for the norms
            return torch.full((len(codes), 1, codes.shape[1] * 4, codes.shape[2] * 4), level)

    made = tiled_decode(Levels(CODER, QUANTIZERS[0], CODER), torch.zeros(1, 8, 14, dtype=torch.int64), 8, 2)
    assert made.shape == (1, 1, 32, 56)
    steps = made[0, 0, 0].diff()
    assert made.min() == 1
    assert made.max() == 2
    torch.testing.assert_close(steps.max(), torch.tensor(1 / 8))


def test_what_tiles_cannot_do_is_said():
    one = {"type": "vit", "size": 16, "patch": 4, "tokens": 4, "transformer": {"width": 16, "depth": 1, "heads": 2}}
    tokenizer = Tokenizer(one, QUANTIZERS[0], one)
    with pytest.raises(ValueError, match="1-D tokens have no position"):
        tiled_encode(tokenizer, torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="1-D tokens have no position"):
        tiled_decode(tokenizer, torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="below half the tile of 8"):
        tiled_decode(a_tokenizer(), torch.zeros(1, 16, 16, dtype=torch.int64), 8, 4)
    with pytest.raises(ValueError, match="multiple of 2"):
        tiled_encode(a_tokenizer(), torch.zeros(1, 3, 15, 16))


def test_norms_share_the_statistics_of_a_batch_and_then_keep_them():
    norm = torch.nn.GroupNorm(2, 6).requires_grad_(False)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    whole = torch.randn(1, 6, 8, 12) * torch.linspace(1, 5, 12)
    parts = torch.cat(whole.split(4, 3))
    expected = norm(whole)
    with shared_norms(norm) as measure:
        torch.testing.assert_close(norm(whole), expected)  # nothing measured yet
        measure(norm, parts)
        torch.testing.assert_close(torch.cat(norm(parts).split(1), 3), expected)
        torch.testing.assert_close(norm(whole[..., :3]), expected[..., :3])
        assert norm(whole[..., :3].bfloat16().float()).dtype == torch.float32
    assert not torch.allclose(norm(whole[..., :3]), expected[..., :3], atol=0.1)  # on its own again


def test_the_sample_is_spread_over_the_image():
    crops = _sample((40, 10), 16)
    assert len(crops) == 16
    assert {len(y) for y, _ in crops} == {16}
    assert {len(x) for _, x in crops} == {10}
    assert (crops[0][0].start, crops[-1][0].stop) == (0, 40)


def test_tiles_with_shared_statistics_are_near_the_whole():
    """An image dark on one side and bright on the other, a network with little besides its norms."""
    tokenizer = a_tokenizer({"type": "none", "dim": 4})
    pixels = (torch.linspace(-1, 1, 128) + 0.1 * torch.randn(1, 3, 128, 128)).clamp(-1, 1)
    with torch.no_grad():
        tokens = tokenizer.encode(pixels)
        whole = tokenizer.decode(tokens)
        tiled = tiled_decode(tokenizer, tokens, 32, 8)
        alone = torch.cat([tokenizer.decode(part) for part in tokens.split(16, 2)], 3)
        coded = torch.cat([tokenizer.encode(part) for part in pixels.split(64, 3)], 2)
    assert _error(tiled, whole) < 0.2 * _error(alone, whole)
    assert _error(tiled_encode(tokenizer, pixels, 64, 16), tokens) < 0.5 * _error(coded, tokens)


def _error(a, b):
    return float((a - b).square().mean())
