"""Numbers known before a decode: how many tokens stay hidden, guidance, temperatures."""

import itertools
import math

import pytest
import torch

from maskgen.decoding.guidance import from_extra, guidance_scales, to_extra
from maskgen.decoding.schedules import ANNEALS, COUNTS, annealed, hidden_after
from maskgen.mim.ratios import SCHEDULES


def test_counts_are_maskgits():
    expected = [math.floor(256 * math.cos(math.pi / 2 * (i + 1) / 8)) for i in range(7)] + [0]
    assert hidden_after("cosine", 256, 8) == expected


def test_more_steps_than_tokens_keeps_at_least_one_hidden_until_the_end():
    assert hidden_after("cosine", 3, 6) == [2, 1, 1, 1, 1, 0]


def test_guidance_is_constant_or_rises_in_a_line():
    assert guidance_scales(4.0, "constant", 3) == [4.0, 4.0, 4.0]
    assert guidance_scales(4.0, "linear", 4) == [1.0, 2.0, 3.0, 4.0]
    assert guidance_scales(0.0, "constant", 2) == [1, 1]
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        guidance_scales(2.0, "liner", 4)
    with pytest.raises(ValueError, match="negative"):
        guidance_scales(-1.0, "constant", 4)


@pytest.mark.parametrize("counting", COUNTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("count", "steps"), [(256, 8), (3, 6), (1, 1), (5, 5), (1024, 64), (0, 3)])
def test_counts_fall_to_zero(counting, schedule, count, steps):
    plan = hidden_after(schedule, count, steps, counting)
    assert len(plan) == steps
    assert plan[-1] == 0
    assert all(a > b or (a, b) in ((1, 1), (0, 0)) for a, b in itertools.pairwise([count, *plan]))
    assert all(left > 0 for left in plan[:-1]) or count == 0


def test_temperatures_fall_as_their_annealing_says():
    assert annealed(4.5, "linear", 3) == pytest.approx([3.0, 1.5, 0.0])
    assert annealed((2.0, 0.5), "linear", 3) == pytest.approx([1.5, 1.0, 0.5])
    assert annealed(2.0, "linspace", 3) == pytest.approx([2.0, 1.0, 0.0])
    assert annealed(2.0, "constant", 2) == [2.0, 2.0]
    assert annealed([1.0, 0.5], "reciprocal", 3) == pytest.approx([1.0, 1 / 1.5, 0.5])
    for name in ANNEALS:
        assert len(annealed((1.0, 1.0), name, 1)) == 1


def test_guidance_rises_by_a_power_or_along_a_cosine():
    assert guidance_scales(5.0, "power", 4) == [1.0, 2.0, 3.0, 4.0]
    assert guidance_scales(5.0, "power", 2, 2.0) == [1.0, 2.0]
    assert guidance_scales(3.0, "cosine", 4) == pytest.approx([1, 1 + 1 - math.cos(math.pi / 4), 2, 2 + 0.5**0.5])
    power = guidance_scales(8.1, "cosine", 64, 3.0)
    assert power == pytest.approx([1 + 7.1 * (1 - math.cos((i / 64) ** 3 * math.pi)) / 2 for i in range(64)])


def test_guidance_beside_the_conditional_pass_is_one_less():
    c, u = torch.randn(2, 5)
    ours = u + from_extra(2.5) * (c - u)
    torch.testing.assert_close(ours, c + 2.5 * (c - u))
    torch.testing.assert_close(ours, (1 + 2.5) * c - 2.5 * u)
    assert to_extra(from_extra(2.5)) == 2.5
