"""Masks of pixels to masks of tokens, filling, pasting and windows: the pure parts of the tasks."""

import math
from itertools import pairwise

import pytest
import torch

from maskgen import Tokenizer
from maskgen.tasks.images import filled, pasted, resized, spread
from maskgen.tasks.masks import box_mask, ranks, receptive_radius, share_mask, token_mask
from maskgen.tasks.windows import complete_by_windows, windows


def hole(size, *boxes):
    mask = torch.zeros(1, *size, dtype=torch.bool)
    for top, left, bottom, right in boxes:
        mask[:, top:bottom, left:right] = True
    return mask


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("size", "grid"), [((16, 16), (4, 4)), ((15, 22), (4, 5)), ((3, 2), (4, 4)), ((64, 8), (8, 2))]
)
def test_a_token_is_hidden_if_any_of_its_pixels_is(size, grid):
    """Against the rule written out: also where sides are no multiples, and where the mask is coarser than the grid."""
    for seed in range(5):
        hidden = torch.rand(1, *size, generator=torch.Generator().manual_seed(seed)) > 0.93
        found = token_mask(hidden, grid)
        for i in range(grid[0]):
            for j in range(grid[1]):
                rows = slice(i * size[0] // grid[0], -(-(i + 1) * size[0] // grid[0]))
                columns = slice(j * size[1] // grid[1], -(-(j + 1) * size[1] // grid[1]))
                assert found[0, i, j] == hidden[0, rows, columns].any()


def test_one_pixel_hides_its_token_alone_and_dilation_those_around():
    hidden = hole((16, 16), (5, 6, 6, 7))
    assert token_mask(hidden, (4, 4)).nonzero().tolist() == [[0, 1, 1]]
    assert token_mask(hidden, (4, 4), 1)[0].sum() == 9
    assert token_mask(hidden, (4, 4), 2).all()
    with pytest.raises(ValueError, match="dilation is -1"):
        token_mask(hidden, (4, 4), -1)


def test_a_box_is_left_top_right_bottom_within_the_image():
    mask = box_mask((6, 8), (2, 1, 5, 3))
    assert mask.nonzero().tolist() == [[1, 2], [1, 3], [1, 4], [2, 2], [2, 3], [2, 4]]
    assert box_mask((6, 8), (0, 0, 8, 6)).all()
    for wrong in ((2, 1, 9, 3), (-1, 1, 5, 3), (5, 1, 5, 3), (5, 3, 2, 1)):
        with pytest.raises(
            ValueError, match="must lie in the image, 0 <= left < right <= 8 and 0 <= top < bottom <= 6"
        ):
            box_mask((6, 8), wrong)
    with pytest.raises(ValueError, match="has 3 numbers"):
        box_mask((6, 8), (1, 2, 3))


def test_a_share_is_exact_and_grows():
    def drawn(share, generators=None):
        return share_mask(3, (4, 5), share, generators or torch.Generator().manual_seed(1))

    masks = {share: drawn(share) for share in (0.0, 0.01, 0.35, 0.7, 1.0)}
    for share, mask in masks.items():
        assert mask.shape == (3, 4, 5)
        assert (mask.flatten(1).sum(1) == math.ceil(round(20 * share, 6))).all()
    assert not (masks[0.35] & ~masks[0.7]).any()
    assert not masks[0.35][0].equal(masks[0.35][1])
    lists = [torch.Generator().manual_seed(s) for s in (4, 5, 6)]
    alone = share_mask(1, (4, 5), 0.4, torch.Generator().manual_seed(5))
    assert share_mask(3, (4, 5), 0.4, lists)[1].equal(alone[0])
    with pytest.raises(ValueError, match=r"strength 1.5 must lie between 0 .* and 1"):
        drawn(1.5)
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        ranks(2, 4, [torch.Generator()])


def test_the_receptive_radius_is_that_of_the_convolutions():
    """Patches see themselves; a network of convolutions sees further, and more of it at a larger share."""
    patches = {"type": "patch", "patch": 4}
    quantizer = {"codebook_size": 8, "dim": 48}
    plain = Tokenizer(encoder=patches, quantizer=quantizer, decoder=patches).eval()
    assert receptive_radius(plain, (32, 32), 1.0) == 0
    small = {"width": 8, "multipliers": [1, 2], "blocks": 1, "norm_groups": 4}
    conv = Tokenizer(encoder=small, quantizer={"codebook_size": 8, "dim": 4}, decoder=small).eval()
    near, far = receptive_radius(conv, (32, 32), 0.3), receptive_radius(conv, (32, 32), 0.99)
    assert 0 <= near < far <= 8
    assert all(p.grad is None for p in conv.parameters())


# ---------------------------------------------------------------------------------------------------- filling, pasting


@pytest.mark.parametrize("fill", ["smooth", "mean", "grey"])
@pytest.mark.parametrize("size", [None, (8, 8), (24, 20)])
def test_what_is_filled_holds_nothing_of_the_hidden_pixels(fill, size):
    pixels, hidden = torch.rand(2, 3, 16, 16) * 2 - 1, hole((16, 16), (3, 4, 9, 16)).expand(2, -1, -1)
    other = torch.where(hidden[:, None], torch.tensor(float("nan")), pixels)
    made = filled(pixels, hidden, size, fill)
    assert made.equal(filled(other, hidden, size, fill))
    assert made.isfinite().all()
    assert made.abs().max() <= 1
    if size is None:
        assert made.movedim(1, -1)[~hidden].equal(pixels.movedim(1, -1)[~hidden])


def test_each_fill_gives_hidden_pixels_its_own_colour():
    pixels = torch.zeros(1, 1, 4, 4)
    pixels[..., :2] = 0.5
    hidden = hole((4, 4), (0, 2, 4, 4))
    assert (filled(pixels, hidden, fill="mean") == 0.5).all()
    assert filled(pixels, hidden, fill="grey").equal(pixels)
    assert (filled(pixels, hidden, fill="smooth") == 0.5).all()
    assert (filled(pixels, torch.ones_like(hidden), fill="smooth") == 0).all()


def test_values_are_carried_ring_by_ring():
    known = hole((1, 5), (0, 0, 1, 1))
    values, distance = spread(torch.tensor([[[[3.0, 9, 9, 9, 9]]]]), known, 3)
    assert values.flatten().tolist() == pytest.approx([3, 3, 3, 3, 0])
    assert distance.flatten().tolist() == [0, 1, 2, 3, -1]


def test_known_pixels_come_back_bit_for_bit_and_no_edge_shows():
    """A made image that is too bright by 0.4: at the hole's edge it is as dark as the known, in its middle itself."""
    pixels = torch.rand(1, 3, 32, 32) * 0.2
    hidden, made = hole((32, 32), (8, 8, 24, 24)), pixels + 0.4
    result = pasted(pixels, hidden, made, 5)
    assert result[:, :, ~hidden[0]].equal(pixels[:, :, ~hidden[0]])
    assert result[0, :, 16, 16].equal(made[0, :, 16, 16])
    steps = (result - pixels)[0, 0, 16, 7:16]
    torch.testing.assert_close(steps, torch.tensor([0, 1, 2, 3, 4, 5, 6, 6, 6]) * 0.4 / 6, atol=1e-5, rtol=0)
    hard = pasted(pixels, hidden, made, 0)
    assert hard[:, :, hidden[0]].equal(made[:, :, hidden[0]])
    with pytest.raises(ValueError, match="feather is -1"):
        pasted(pixels, hidden, made, -1)


def test_a_paste_knows_nothing_of_what_was_hidden():
    pixels, hidden = torch.rand(1, 3, 16, 16), hole((16, 16), (4, 4, 12, 16))
    made, other = torch.rand(1, 3, 16, 16), torch.where(hidden[:, None], 7.0, pixels)
    assert pasted(pixels, hidden, made, 3).equal(pasted(other, hidden, made, 3))


def test_resizing_to_the_same_size_is_nothing():
    pixels = torch.rand(1, 3, 8, 8)
    assert resized(pixels, (8, 8)) is pixels
    assert resized(pixels * 2 - 1, (19, 5)).abs().max() <= 1


# ------------------------------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize(("grid", "overlap"), [((4, 4), 2), ((4, 9), 2), ((11, 5), 3), ((7, 13), 0)])
def test_windows_cover_and_overlap(grid, overlap):
    covered = torch.zeros(grid, dtype=torch.long)
    for place in windows(grid, (4, 4), overlap):
        assert covered[place].shape == (4, 4)
        covered[place] += 1
    assert (covered > 0).all()
    starts = sorted({place[1].start for place in windows(grid, (4, 4), overlap)})
    assert all(b - a <= 4 - overlap for a, b in pairwise(starts))


def test_windows_grow_from_what_is_known():
    """Each is asked with the fewest hidden tokens of those left, sees what the former ones made, and changes nothing
    that was known."""
    canvas, mask, asked = torch.full((2, 4, 12), 7), torch.zeros(2, 4, 12, dtype=torch.bool), []
    mask[:, :, :4] = mask[:, :, 8:] = True

    def complete(tokens, hidden, place):
        asked.append((place[1].start, int(hidden.sum()), tokens[~hidden].unique().tolist()))
        return torch.where(hidden, len(asked), tokens)

    made = complete_by_windows(complete, canvas, mask, (4, 4), 2)
    assert made[~mask].unique().tolist() == [7]
    assert (made[mask] != 7).all()
    assert asked == [(2, 16, [7]), (0, 16, [1]), (6, 16, [7]), (8, 16, [3])]
    assert canvas.unique().tolist() == [7]


def test_nothing_hidden_asks_nothing():
    canvas = torch.zeros(1, 4, 8, dtype=torch.long)

    def complete(tokens, hidden, place):
        raise AssertionError("asked")

    assert complete_by_windows(complete, canvas, canvas > 0, (4, 4), 2).equal(canvas)


@pytest.mark.parametrize(
    ("grid", "overlap", "message"),
    [
        ((4, 3), 1, "smaller than the trained grid"),
        ((4, 8), 4, "overlap 4 must be"),
        ((4, 8), -1, "overlap -1 must be"),
    ],
)
def test_windows_that_cannot_be_are_refused(grid, overlap, message):
    with pytest.raises(ValueError, match=message):
        windows(grid, (4, 4), overlap)
