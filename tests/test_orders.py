"""Which tokens are decided first, and which are hidden again."""

import itertools
import math
from collections import Counter

import pytest
import torch

from decoders import CODES, canvas_and_mask, noise, options_of, oracle, score_by_code
from maskgen.decoding.loop import decode
from maskgen.decoding.orders import halton_order
from maskgen.decoding.remasking import remasked
from maskgen.decoding.schedules import hidden_after


@pytest.mark.parametrize("order", ["halton", "raster", "random"])
def test_orders_by_place_ask_only_for_what_they_decide(order):
    canvas, mask = canvas_and_mask()
    asked, predict = [], noise()

    def count(step):
        asked.append(step.positions.shape[1])
        return predict(step)

    decode(count, canvas, mask, steps=6, **options_of(order))
    plan = [24, *hidden_after("cosine", 24, 6)]
    assert asked == [a - b for a, b in itertools.pairwise(plan)]  # of the row that hides all 24


@pytest.mark.parametrize("order", ["raster", "halton"])
def test_raster_and_halton_go_by_place(order):
    canvas, mask = canvas_and_mask()
    states = [mask]
    decode(noise(), canvas, mask, steps=6, callback=lambda i, t, h: states.append(h), **options_of(order))
    visit = list(range(24)) if order == "raster" else list(halton_order((4, 6)))
    for row in range(4):
        expected = [place for place in visit if mask[row, place]]
        found = []
        for before, after in itertools.pairwise(states):
            decided = set((before[row] & ~after[row]).nonzero()[:, 0].tolist())
            assert decided == set(expected[len(found) : len(found) + len(decided)])
            found += decided
        assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("grid", [(7,), (16, 16), (5, 9), (24, 24), (4, 6, 5)])
def test_halton_visits_every_place_once_and_evenly(grid):
    order = halton_order(grid)
    n = math.prod(grid)
    assert sorted(order) == list(range(n))
    half = Counter(place // (n // grid[0]) < grid[0] // 2 for place in order[: n // 2])
    assert abs(half[True] / (n // 2) - (grid[0] // 2) / grid[0]) < 0.15  # the upper half gets its share


def test_a_rolled_halton_is_halton_from_another_point():
    canvas, mask = torch.zeros(3, 24, dtype=torch.long), torch.ones(3, 24, dtype=torch.bool)
    states = []
    decode(
        noise(), canvas, mask, steps=200, generator=torch.Generator().manual_seed(0),  # one place a step
        callback=lambda i, t, h: states.append(h), **{**options_of("halton"), "roll": True},
    )  # fmt: skip
    visit, firsts = list(halton_order((4, 6))), set()
    for row in range(3):
        decided = [(a[row] & ~b[row]).nonzero() for a, b in itertools.pairwise([mask, *states])]
        found = [int(place) for place in decided if len(place)]
        shift = visit.index(found[0])
        assert found == visit[shift:] + visit[:shift]
        firsts.add(shift)
    assert len(firsts) > 1


def test_random_order_is_even():
    """Each of 6 places is among the first 3 decided equally often."""
    canvas, mask = torch.zeros(4000, 6, dtype=torch.long), torch.ones(4000, 6, dtype=torch.bool)
    states = []
    decode(
        oracle(canvas), canvas, mask, steps=2, schedule="linear", order="random",
        generator=torch.Generator().manual_seed(0), callback=lambda i, t, h: states.append(h),
    )  # fmt: skip
    torch.testing.assert_close(states[0].float().mean(0), torch.full((6,), 0.5), rtol=0, atol=0.03)


def test_the_critic_keeps_what_it_likes_and_may_hide_it_again():
    """The score is the code: with temperature 0 the highest codes stay, whenever they were drawn."""
    canvas, mask = torch.zeros(1, 24, dtype=torch.long), torch.ones(1, 24, dtype=torch.bool)
    traces = []
    decode(
        noise(),
        canvas,
        mask,
        steps=4,
        choice_temperature=0.0,
        trace=traces.append,
        order="critic",
        critic=score_by_code,
    )
    for trace in traces[:-1]:
        assert trace.tokens[trace.hidden].max() <= trace.tokens[~trace.hidden].min()
        assert trace.confidence.equal(trace.tokens.float())


@pytest.mark.parametrize("order", ["raster", "halton"])
def test_all_codes_of_a_place_go_together(order):
    """Two codes a place, some places half known: the schedule counts places."""
    canvas = torch.randint(CODES, (2, 24))
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[1, 3] = mask[1, 8] = mask[1, 9] = False  # half of place 1, all of place 4
    states = []
    decode(noise(), canvas, mask, steps=5, order=order, grid=(3, 4), callback=lambda i, t, h: states.append(h))
    visit = halton_order((3, 4)) if order == "halton" else range(12)
    for row in range(2):
        places = [p for p in visit if mask[row, 2 * p : 2 * p + 2].any()]
        for hidden, left in zip(states, hidden_after("cosine", len(places), 5)):
            wanted = torch.zeros(12, dtype=torch.bool)
            wanted[places[len(places) - left :]] = True
            assert hidden[row].equal(wanted.repeat_interleave(2) & mask[row])


def test_remasking_numbers_follow_the_papers_probabilities():
    """Whole tokens run up to the expected ones: sigma_max = min(1, (1 - alpha_s) / alpha_t)."""
    plan = hidden_after("linear", 100, 20)
    for variant, eta in (("cap", 0.05), ("rescale", 0.5), ("confidence", 1.0)):
        owed, left, numbers = 0.0, 100, remasked(variant, eta, plan, 100)
        for i, after in enumerate(plan):
            alpha_t, alpha_s = 1 - left / 100, 1 - after / 100
            if alpha_t:
                sigma = min(1, (1 - alpha_s) / alpha_t)
                share = {"cap": min(eta, sigma), "rescale": eta * sigma, "confidence": eta * sigma / (100 - left)}
                owed += share[variant] * (100 - left)
            assert abs(sum(numbers[: i + 1]) - owed) < 1
            assert 0 <= numbers[i] <= min(100 - left, after)
            left = after
        assert sum(numbers) > 0
    assert remasked("none", 1.0, plan, 100) == [0] * 20
    assert remasked("rescale", 0.0, plan, 100) == [0] * 20


def test_confidence_remasking_prefers_unlikely_tokens():
    """Half of the tokens are drawn with p = 1 and half with 1/CODES: the shares are as e^-1 to e^-(1/CODES)."""
    b, n = 30, 400
    certain = torch.arange(n) < n // 2
    logits = torch.where(certain[:, None] & (torch.arange(CODES) > 0), -40.0, 0.0)
    canvas, mask = torch.zeros(b, n, dtype=torch.long), torch.ones(b, n, dtype=torch.bool)
    states = [mask]
    decode(
        lambda step: logits[step.positions], canvas, mask, steps=100, schedule="linear", order="random",
        remask="confidence", generator=torch.Generator().manual_seed(0), callback=lambda i, t, h: states.append(h),
    )  # fmt: skip
    again = sum((after & ~before).sum(0) for before, after in itertools.pairwise(states))
    assert again.sum() > 1000
    expected = math.exp(-1) / (math.exp(-1) + math.exp(-1 / CODES))
    assert (again[certain].sum() / again.sum()).item() == pytest.approx(expected, abs=0.05)
