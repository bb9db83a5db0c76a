"""Mask samplers: exact properties of the masks, and the peers' own masks (tests/golden)."""

import itertools
import math
import random

import pytest
import torch

from given import seeded
from maskgen.config import check
from maskgen.mim.core import MaskedModeling
from maskgen.mim.ratios import Mixture
from maskgen.mim.samplers import SAMPLERS, RandomSampler, hidden_counts
from maskgen.mim.samplers.blocks import BlockSampler, UnitSampler, block_mask
from maskgen.mim.samplers.guided import AttentionSampler, LossSampler
from maskgen.mim.samplers.noise import COLORS, NoiseSampler, colored_noise
from maskgen.mim.samplers.video import CellSampler, FrameSampler, TubeSampler
from recorded import Fixture, folders

GRIDS = {"block": (6, 8), "tube": (3, 4, 6), "cells": (3, 4, 6), "frames": (3, 4, 6)}


def ratios(value, rows=8):
    return torch.full((rows,), value)


def count(mask):
    return mask.flatten(1).sum(1).tolist()


# ------------------------------------------------------------------------------------------------------------ counts


@pytest.mark.parametrize(
    ("ratio", "n", "rounding", "hidden"),
    [
        (0.75, 196, "ceil", 147),  # MAE keeps int(196 * 0.25)
        (0.6, 36, "ceil", 22),  # SimMIM, 192 pixels in units of 32
        (0.6, 25, "ceil", 15),  # float32 makes the product 15.000001
        (0.6, 49, "round", 29),  # SparK keeps round(49 * 0.4) = 20
        (0.9, 196, "floor", 176),  # VideoMAE
        (75 / 196, 196, "floor", 75),  # BEiT
        (0.6, 9, "ceil", 6),  # Hiera keeps int(9 * 0.4)
    ],
)
def test_counts_are_the_peers(ratio, n, rounding, hidden):
    assert hidden_counts(ratios(ratio, 1), n, rounding).tolist() == [hidden]


def test_every_tenth_of_every_size_is_exact():
    for n, k in itertools.product(range(10, 400, 10), range(1, 10)):
        for rounding in ("ceil", "floor", "round"):
            assert hidden_counts(ratios(k / 10, 1), n, rounding).item() == n // 10 * k


def test_least_says_whether_a_row_may_hide_nothing():
    zero = ratios(0.0, 2)
    assert hidden_counts(zero, 9).tolist() == [1, 1]
    for name in ("random", "block", "units", "attention"):
        mask = SAMPLERS[name](least=0)(zero, (4, 4), scores=torch.rand(2, 16))
        assert not mask.any(), name


@pytest.mark.parametrize("name", SAMPLERS)
def test_masks_are_reproducible_and_rows_differ(name):
    grid = GRIDS.get(name, (6, 8))
    scores = torch.rand(1, math.prod(grid)).expand(64, -1)
    sampler = SAMPLERS[name](sample=True) if name == "attention" else SAMPLERS[name]()
    masks = [sampler(ratios(0.5, 64), grid, scores, seeded(seed)) for seed in (1, 1, 2)]
    assert masks[0].shape == (64, *grid)
    assert masks[0].dtype == torch.bool
    assert masks[0].equal(masks[1])
    assert not masks[0].equal(masks[2])
    assert len(masks[0].flatten(1).unique(dim=0)) >= (4 if name == "cells" else 60)


@pytest.mark.parametrize("name", ["random", "noise", "attention", "loss"])
@pytest.mark.parametrize("grid", [(24,), (4, 6), (2, 3, 4)])
def test_ranking_samplers_take_any_grid_and_hide_exact_counts(name, grid):
    ratio = torch.linspace(0.05, 1, 20)
    mask = SAMPLERS[name](rounding="ceil")(ratio, grid, scores=torch.rand(20, 24), generator=seeded(), progress=0.7)
    assert count(mask) == hidden_counts(ratio, 24).tolist()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("random", {}),
        ("units", {}),
        ("tube", {}),
        ("cells", {}),
        ("noise", {}),
        ("loss", {}),
        ("attention", {"sample": True}),
    ],
)
def test_every_place_is_hidden_alike(name, options):
    """With equal scores no place is preferred; 4000 masks, five standard errors."""
    grid = (2, 4, 4)
    mask = SAMPLERS[name](**options)(ratios(0.5, 4000), grid, scores=torch.ones(4000, 32), generator=seeded())
    share = mask.float().mean(0)
    assert (share - 0.5).abs().max() < 5 * 0.5 / math.sqrt(4000)


def test_pairs_of_places_are_hidden_independently():
    mask = RandomSampler()(ratios(0.5, 4000), (4, 4), generator=seeded()).flatten(1).double()
    pairs = mask.T @ mask / 4000
    off = pairs[~torch.eye(16, dtype=torch.bool)]
    assert (off - 8 * 7 / (16 * 15)).abs().max() < 5 * 0.5 / math.sqrt(4000)


# ------------------------------------------------------------------------------------------------------ blocks, units


@pytest.mark.parametrize("fixture", ["beit_mim", "beit2_mim"])
def test_blocks_are_beits_own(fixture):
    """From the same random state the algorithm makes the very masks of the peer."""
    for f in map(Fixture, folders([f"beit/{fixture}"]).values()):
        masks, rng = f.inputs["mask"].bool(), random.Random(f.spec["seed"])
        height, width = masks.shape[1:]
        ours = [torch.from_numpy(block_mask(7, height, width, rng, 4, 0.3)) for _ in masks]
        assert torch.stack(ours).equal(masks)


def test_blocks_never_exceed_the_count_and_undershoot_little():
    mask = BlockSampler()(ratios(75 / 196, 300), (14, 14), generator=seeded())
    counts = torch.tensor(count(mask))
    assert counts.max() == 75
    assert counts.min() > 60
    assert len(counts.unique()) > 1  # ragged
    exact = BlockSampler(exact=True)(ratios(75 / 196, 300), (14, 14), generator=seeded())
    assert set(count(exact)) == {75}


def test_blocks_are_rectangles_of_bounded_aspect_and_area():
    """The first block alone: what a count hides at once."""
    rng, found = random.Random(0), 0
    for _ in range(200):
        mask = block_mask(40, 14, 14, rng, 30, 0.3)
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        if mask.sum() == rows * columns:  # one rectangle; else several
            found += 1
            assert 0.3 * 0.7 < rows / columns < 1 / (0.3 * 0.7)  # sides are rounded to tokens
            assert max(rows, columns) < 14
    assert found > 20


def test_blocks_clump_more_than_random_tokens():
    def neighbours(sampler):
        mask = sampler(ratios(0.4, 100), (14, 14), generator=seeded())
        return (mask[:, 1:] & mask[:, :-1]).sum() / mask.sum()

    assert neighbours(BlockSampler()) > 0.7
    assert neighbours(RandomSampler()) < 0.45


def test_small_and_oblong_grids_have_blocks():
    for grid in [(2, 2), (2, 9), (4, 30)]:
        mask = BlockSampler(exact=True)(ratios(0.5), grid, generator=seeded())
        assert set(count(mask)) == {math.prod(grid) // 2}
    assert min(count(BlockSampler(min_block=16)(ratios(0.02, 50), (14, 14), generator=seeded()))) >= 1


@pytest.mark.parametrize(("grid", "unit"), [((12,), 3), ((6, 4), 2), ((6, 8), (3, 2)), ((4, 8, 8), (1, 4, 2))])
def test_units_are_hidden_whole(grid, unit):
    sides = (unit,) * len(grid) if isinstance(unit, int) else unit
    mask = UnitSampler(unit)(ratios(0.6), grid, generator=seeded())
    pieces = mask
    for axis, side in enumerate(sides, start=1):
        pieces = torch.stack(pieces.split(side, dim=axis), dim=axis).movedim(axis + 1, -1)
    inside = pieces.flatten(len(grid) + 1)
    assert inside.all(-1).equal(inside.any(-1))
    units = math.prod(grid) // math.prod(sides)
    assert set(count(inside.all(-1))) == {math.ceil(0.6 * units)}


def test_mixture_is_ibots():
    draws = Mixture()(10_000, seeded())
    some = draws[draws > 0]
    assert len(some) == pytest.approx(5000, abs=250)
    assert some.min() >= 0.1
    assert some.max() <= 0.5
    assert some.mean().item() == pytest.approx(0.3, abs=0.01)
    mask = BlockSampler(least=0)(draws[:50], (14, 14), generator=seeded())
    assert all((hidden > 0) == (ratio > 0) for hidden, ratio in zip(count(mask), draws.tolist()))


# ------------------------------------------------------------------------------------------------------------- video


def test_tubes_are_the_same_in_every_frame():
    mask = TubeSampler()(ratios(0.9, 3), (8, 14, 14), generator=seeded())
    assert (mask == mask[:, :1]).all()
    assert count(mask) == [8 * 176] * 3
    blocks = TubeSampler({"type": "block", "exact": True})(ratios(0.5, 3), (4, 6, 6), generator=seeded())
    assert (blocks == blocks[:, :1]).all()
    assert count(blocks) == [4 * 18] * 3


def test_cells_are_alike_in_a_frame_and_run_on_by_one_place():
    ratio = torch.tensor([0.25, 0.5, 0.5, 0.75, 0.99])
    mask = CellSampler()(ratio, (9, 4, 6), generator=seeded())
    cells = mask.unflatten(2, (2, 2)).unflatten(4, (3, 2))  # b t h 2 w 2
    assert (cells == cells[:, :, :1, :, :1]).all()  # every cell of a frame is alike
    cell = cells[:, :, 0, :, 0].flatten(2)
    assert cell.sum(-1).tolist() == [[k] * 9 for k in (1, 2, 2, 3, 3)]
    assert (cell[:, 1:] == cell[:, :-1].roll(-1, dims=-1)).all()  # on by one place a frame
    assert len(CellSampler()(ratios(0.5, 50), (9, 4, 6), generator=seeded()).flatten(1).unique(dim=0)) == 4


def test_context_frames_stay_visible():
    mask = FrameSampler(context=2)(torch.tensor([0.1, 0.5, 1.0]), (5, 4, 4), generator=seeded())
    assert not mask[:, :2].any()
    assert count(mask) == [5, 24, 48]
    assert mask[2, 2:].all()


# ------------------------------------------------------------------------------------------------------ coloured noise


def radial_power(noise):
    """Mean power of frequencies in eight rings up to half a cycle a token."""
    noise = noise - noise.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(noise).abs().square().mean(0)
    f = torch.fft.fftfreq(noise.shape[1])
    ring = ((f[:, None] ** 2 + f**2).sqrt() * 16).long()
    return torch.stack([power[(ring == k) & (power > 1e-9)].mean() for k in range(8)])


def shape_of(color, power):
    """What each colour's name promises of its spectrum."""
    steps = power.diff()
    middle, ends = power[2:5], torch.stack([power[0], power[7]])
    return {
        "red": bool((steps < 0).all()),
        "blue": bool((steps > 0).all()),
        "green": bool(middle.max() > 2 * ends.max()),
        "purple": bool(middle.min() < ends.min() / 2),
    }[color]


@pytest.mark.parametrize("color", COLORS)
def test_spectra_have_their_colors(color):
    power = radial_power(colored_noise(64, (48, 48), color, generator=seeded()))
    assert {other: shape_of(other, power) for other in COLORS} == {other: other == color for other in COLORS}


@pytest.mark.parametrize("color", COLORS)
def test_masks_keep_the_color(color):
    """Thresholding spreads power, so only the tendency is left."""
    visible = ~NoiseSampler(color)(ratios(0.75, 64), (48, 48), generator=seeded())
    power = radial_power(visible.float())
    low, middle, high = power[:2].mean(), power[2:5].mean(), power[6:].mean()
    assert {
        "red": low > 4 * high,
        "blue": high > 2 * low,
        "green": middle > 1.5 * max(low, high),
        "purple": middle < 0.8 * min(low, high),
    }[color]


def test_the_strongest_noise_is_kept_and_edges_are_like_the_middle():
    mask = NoiseSampler("red")(ratios(0.75, 4), (14, 14), generator=seeded())
    noise = colored_noise(4, (14, 14), "red", generator=seeded())
    for m, x in zip(mask, noise):
        assert x[~m].min() > x[m].max()
    deviation = colored_noise(4000, (8, 8), "green", generator=seeded()).std(0)
    assert (deviation / deviation.mean() - 1).abs().max() < 0.1


# ------------------------------------------------------------------------------------------------------------- guided


def test_attention_hides_the_most_or_the_least_attended():
    attention = torch.rand(8, 20).softmax(-1)
    most = AttentionSampler()(ratios(0.3), (20,), attention)
    assert count(most) == [6] * 8
    least = AttentionSampler(hide="least")(ratios(0.3), (20,), attention)
    for row, high, low in zip(attention, most, least):
        assert row[high].min() > row[~high].max()
        assert row[low].max() < row[~low].min()


def test_hint_reveals_a_share_of_the_most_attended():
    """AttMask: int(0.1 * ratio * n) of the int(0.1 * n) most attended, at random."""
    attention = torch.rand(1, 196).expand(400, -1)
    mask = AttentionSampler(hint=0.1)(ratios(0.4, 400), (14, 14), attention, seeded()).flatten(1)
    full = AttentionSampler()(ratios(0.4, 400), (14, 14), attention).flatten(1)
    revealed = full & ~mask
    assert not (mask & ~full).any()
    assert set(revealed.sum(1).tolist()) == {int(0.1 * 0.4 * 196)}
    ever = revealed.any(0)
    assert ever.sum() == int(0.1 * 196)
    assert attention[0][ever].min() > attention[0][~ever].max()


@pytest.mark.parametrize("hide", ["most", "least"])
def test_sampling_is_without_replacement_in_proportion_to_attention(hide):
    """Of three tokens two are drawn; the chance of each pair is known. MaskAlign draws the visible ones."""
    p = [0.6, 0.3, 0.1]
    ratio = 0.6 if hide == "most" else 0.3
    sampler = AttentionSampler(hide, sample=True, rounding="ceil")
    mask = sampler(ratios(ratio, 20_000), (3,), 7 * torch.tensor(p).expand(20_000, -1), seeded())
    drawn = mask if hide == "most" else ~mask
    assert set(drawn.sum(1).tolist()) == {2}
    for i, j in itertools.combinations(range(3), 2):
        chance = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        assert (drawn[:, i] & drawn[:, j]).float().mean().item() == pytest.approx(chance, abs=0.02)


def test_tokens_without_attention_are_drawn_last():
    attention = torch.tensor([[0.0, 0.5, 0.0, 0.5]]).expand(200, -1)
    visible = ~AttentionSampler("least", sample=True)(ratios(0.5, 200), (4,), attention, seeded())
    assert (visible == torch.tensor([False, True, False, True])).all()


def test_hard_share_grows_with_progress():
    losses = torch.stack([torch.randperm(100).float() for _ in range(200)])
    hardest = losses >= 25  # the 75 hardest
    shares = []
    for progress in torch.linspace(0, 1, 6).tolist():
        mask = LossSampler()(ratios(0.75, 200), (10, 10), losses, seeded(), progress).flatten(1)
        assert set(count(mask)) == {75}
        always = losses >= 100 - int(75 * 0.5 * progress)
        assert mask[always].all()
        shares.append((mask & hardest).sum().item() / mask.sum().item())
    assert shares[0] == pytest.approx(0.75, abs=0.02)
    assert all(a < b for a, b in itertools.pairwise(shares))


@pytest.mark.parametrize("epoch", [50, 100, 199])
def test_guided_masks_are_hpms(epoch):
    """The peer's masks and ours hide the same hardest tokens, as many in all, and the rest at random."""
    for f in map(Fixture, folders(["hpm/hpm"]).values()):
        losses, theirs = f.inputs["gen_loss_pred"], f.outputs[f"guided_mask_epoch{epoch}"].bool()
        n, ratio = losses.shape[1], f.config["mask_ratio"]
        hidden = n - int(n * (1 - ratio))
        hard = int(hidden * 0.5 * (epoch + 1) / 200)
        for row, peer in zip(losses, theirs):
            top = torch.zeros(n, dtype=torch.bool).scatter(0, row.topk(hard).indices, True)
            ours = LossSampler()(ratios(ratio, 2000), (n,), row.expand(2000, -1), seeded(), (epoch + 1) / 200)
            assert peer.sum() == hidden
            assert peer[top].all()
            assert set(ours.sum(1).tolist()) == {hidden}
            share = ours.float().mean(0)
            assert share[top].eq(1).all()
            assert (share[~top] - (hidden - hard) / (n - hard)).abs().max() < 0.06


# -------------------------------------------------------------------------------------------------- use, and bad input


def test_configuration_reaches_samplers_and_their_parts():
    settings = {
        "ratio": "mixture",
        "sampler": {"type": "tube", "frame": {"type": "units", "unit": [2, 1], "rounding": "round"}},
    }
    core = MaskedModeling(**check(MaskedModeling, settings, "test"))
    mask = core.plan(4, (3, 4, 4), seeded()).predict
    assert (mask == mask[:, :1]).all()
    wrong = {"sampler": {"type": "noise", "color": "gren", "sigma": "wide"}}
    with pytest.raises(ValueError, match="did you mean 'green'") as error:
        check(MaskedModeling, wrong, "test")
    assert "sigma" in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockSampler(aspect=2.0), "aspect.*2.0"),
        (lambda: BlockSampler(min_block=0), "min_block"),
        (lambda: UnitSampler(0), "1 token or more"),
        (lambda: NoiseSampler(band=(2.0, 1.0)), "band"),
        (lambda: AttentionSampler(hint=0.1, hide="least"), "hint.*hide: most"),
        (lambda: LossSampler(end=1.5), "1.5"),
        (lambda: FrameSampler(context=-1), "context"),
        (lambda: BlockSampler()(ratios(0.5), (2, 4, 4)), r"\(h, w\), got \(2, 4, 4\)"),
        (lambda: TubeSampler()(ratios(0.5), (4, 4)), r"\(t, h, w\), got \(4, 4\)"),
        (lambda: BlockSampler()(ratios(0.5), (1, 9)), "2 tokens or more"),
        (lambda: UnitSampler(4)(ratios(0.5), (8, 6)), r"\(4, 4\) tokens do not tile the grid \(8, 6\)"),
        (lambda: UnitSampler((2, 2))(ratios(0.5), (2, 4, 4)), "do not tile"),
        (lambda: CellSampler()(ratios(0.5), (2, 3, 4)), "3 x 4.*even"),
        (lambda: CellSampler()(ratios(0.2), (2, 4, 4)), r"\[0\.25, 1\)"),
        (lambda: FrameSampler(2)(ratios(0.5), (2, 4, 4)), "context 2.*2 frames"),
        (lambda: RandomSampler()(ratios(1.5), (4, 4)), r"\[0, 1\]"),
        (lambda: RandomSampler()(ratios(0.5), (4, 4), progress=2.0), "progress"),
        (lambda: LossSampler()(ratios(0.5), (4, 4)), "needs scores.*predicted loss"),
        (lambda: AttentionSampler()(ratios(0.5), (4, 4), torch.rand(8, 17)), "class token"),
        (lambda: AttentionSampler()(ratios(0.5), (4, 4), torch.full((8, 16), torch.nan)), "NaN"),
        (lambda: AttentionSampler(sample=True)(ratios(0.5), (4, 4), -torch.rand(8, 16)), "softmax"),
    ],
)
def test_bad_input_says_how_to_mend_it(make, message):
    with pytest.raises(ValueError, match=message):
        make()
