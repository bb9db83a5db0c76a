"""The decode loop on models with known answers."""

import itertools
import json
import math
from collections import Counter
from functools import partial

import pytest
import torch

from maskgen.decoding.draws import categorical, gaussian_mixture, truncated
from maskgen.decoding.guidance import from_extra, guidance_scales, to_extra
from maskgen.decoding.loop import decode
from maskgen.decoding.noise import Noise, gumbel, inverse_cdf
from maskgen.decoding.orders import ORDERS, halton_order
from maskgen.decoding.presets import PRESETS
from maskgen.decoding.remasking import remasked
from maskgen.decoding.scheduler import MaskScheduler
from maskgen.decoding.schedules import ANNEALS, COUNTS, annealed, hidden_after
from maskgen.mim.objective import GaussianMixture
from maskgen.mim.ratios import SCHEDULES

CODES = 17


def oracle(answer, dtype=torch.float32):
    """A model that is certain of `answer` (b, n)."""

    def predict(step):
        logits = torch.full((*step.positions.shape, CODES), -40.0)
        return logits.scatter(2, answer.gather(1, step.positions)[..., None], 40.0).to(dtype)

    return predict


def noise(dtype=torch.float32):
    """A model that knows nothing, the same at each call."""

    def predict(step):
        generator = torch.Generator().manual_seed(step.number)
        table = torch.randn(step.tokens.shape[1], CODES, generator=generator)
        return table[step.positions].to(dtype)

    return predict


def canvas_and_mask(b=4, n=24):
    canvas = torch.randint(CODES, (b, n))
    mask = torch.zeros(b, n, dtype=torch.bool)
    for row, count in enumerate([0, 1, 9, n][:b]):
        mask[row, torch.randperm(n)[:count]] = True
    return canvas, mask


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_oracle_is_reproduced_exactly(schedule, steps):
    canvas, mask = canvas_and_mask()
    answer = torch.randint(CODES, canvas.shape)
    result = decode(oracle(answer), canvas, mask, steps=steps, schedule=schedule)
    assert result.equal(torch.where(mask, answer, canvas))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 4.5, 1e4])
def test_known_tokens_never_change(dtype, temperature):
    """Fault 3 of public code: a finite stand-in for +inf re-masks known tokens in half precision."""
    canvas, mask = canvas_and_mask()
    seen = []
    decode(
        noise(dtype), canvas, mask, steps=8, temperature=temperature,
        callback=lambda i, tokens, hidden: seen.append((tokens, hidden)),
    )  # fmt: skip
    for tokens, hidden in seen:
        assert tokens[~mask].equal(canvas[~mask])
        assert not (hidden & ~mask).any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counts_follow_the_schedule_row_by_row(schedule):
    """Fault 4: the count taken from the batch's mean or its first row."""
    canvas, mask = canvas_and_mask()
    counts = []
    decode(noise(), canvas, mask, steps=6, schedule=schedule, callback=lambda i, t, h: counts.append(h.sum(1).tolist()))
    expected = [hidden_after(schedule, int(c), 6) for c in mask.sum(1)]
    assert counts == [list(step) for step in zip(*expected)]


def test_counts_are_maskgits():
    expected = [math.floor(256 * math.cos(math.pi / 2 * (i + 1) / 8)) for i in range(7)] + [0]
    assert hidden_after("cosine", 256, 8) == expected


def test_nothing_hidden_stays_so():
    """Fault 7: a step that still hides one token when nothing is masked."""
    assert hidden_after("cosine", 0, 5) == [0] * 5
    canvas = torch.randint(CODES, (2, 6))

    def never(step):
        raise AssertionError("the model was called")

    assert decode(never, canvas, torch.zeros(2, 6, dtype=torch.bool)).equal(canvas)


def test_more_steps_than_tokens_keeps_at_least_one_hidden_until_the_end():
    assert hidden_after("cosine", 3, 6) == [2, 1, 1, 1, 1, 0]


def test_a_kept_token_is_not_sampled_again():
    canvas, mask = canvas_and_mask()
    states = []
    decode(noise(), canvas, mask, steps=8, callback=lambda i, t, h: states.append((t, h)))
    for (before, hidden), (after, _) in itertools.pairwise(states):
        assert after[~hidden].equal(before[~hidden])


def test_the_most_confident_tokens_are_kept():
    """With temperature 0 the kept tokens are those with the highest probability of their sample."""
    n = 16
    sure = torch.linspace(0.1, 12, n)[torch.randperm(n)]

    def predict(step):
        return torch.stack([sure[step.positions], torch.zeros(step.positions.shape)], -1)

    hidden = []
    decode(predict, torch.zeros(1, n, dtype=torch.long), torch.ones(1, n, dtype=torch.bool), steps=2, temperature=0.0,
           generator=torch.Generator().manual_seed(0), callback=lambda i, t, h: hidden.append((t, h)))  # fmt: skip
    tokens, mask = hidden[0]
    p = torch.where(tokens[0] == 0, sure.sigmoid(), 1 - sure.sigmoid())
    assert p[mask[0]].max() <= p[~mask[0]].min()


def test_the_same_seed_gives_the_same_tokens_whatever_the_batch():
    canvas, mask = canvas_and_mask()

    def run(rows):
        generators = [torch.Generator().manual_seed(10 + r) for r in rows]
        return decode(noise(), canvas[rows], mask[rows], steps=5, generator=generators)

    together = run([0, 1, 2, 3])
    assert together.equal(run([0, 1, 2, 3]))
    assert together[[2, 3]].equal(run([2, 3]))
    other = decode(noise(), canvas, mask, steps=5, generator=torch.Generator().manual_seed(1))
    assert not other.equal(together)


def test_sampling_follows_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(1, 100_000, 4)
    codes = inverse_cdf(logits.softmax(-1), torch.rand(1, 100_000))
    torch.testing.assert_close(torch.bincount(codes[0]) / 100_000, logits[0, 0].softmax(-1), rtol=0, atol=0.006)


def test_impossible_codes_are_never_sampled():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(1, 4, 5)
    u = torch.tensor([[0.0, 0.4999999, 0.5, 1 - 2**-24]])
    codes = inverse_cdf(logits.softmax(-1), u)
    assert codes.tolist() == [[1, 1, 3, 3]]


def test_gumbel_noise_is_finite_and_standard():
    assert gumbel(torch.tensor([[0.0, 1 - 2**-24, 0.5]])).isfinite().all()
    draws = gumbel(torch.rand(1, 200_000, generator=torch.Generator().manual_seed(0)))
    assert draws.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert draws.std().item() == pytest.approx(math.pi / 6**0.5, abs=0.02)


def test_noise_of_the_order_fades_linearly():
    """Fault 2: an annealed temperature overwritten each step, so that annealing compounds.

    All codes have p = 1, so the order is the noise's alone. With temperature tau against a head start g on half of
    the tokens (their samples are certain, the others' have p = e^-g), the share of head starts among the kept tokens
    at step i is that of a Gumbel race at tau (1 - (i + 1) / T).
    """
    n, total, tau, g = 4000, 4, 2.0, 1.0
    spread = torch.zeros(1, n, 100)
    spread[:, n // 2 :, 1:] = -math.log(99 / (math.exp(g) - 1))  # code 0 has p = e^-g; the others share the rest
    spread[:, : n // 2, 1:] = -200.0

    def predict(step):
        return spread[:, step.positions[0]]

    states = []
    decode(
        predict, torch.zeros(1, n, dtype=torch.long), torch.ones(1, n, dtype=torch.bool), steps=total,
        temperature=tau, schedule="linear", generator=torch.Generator().manual_seed(0),
        callback=lambda i, t, h: states.append(h[0]),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    hidden = torch.ones(n, dtype=torch.bool)
    for i in range(total - 1):
        p = spread.softmax(-1)
        log_p = p.gather(-1, inverse_cdf(p, torch.rand(1, n, generator=generator))[..., None])[..., 0].log()
        confidence = log_p[0] + tau * (1 - (i + 1) / total) * gumbel(torch.rand(1, n, generator=generator))[0]
        confidence[~hidden] = torch.inf
        hidden = torch.zeros(n, dtype=torch.bool)
        hidden[confidence.argsort()[: int(states[i].sum())]] = True
        assert states[i][: n // 2].sum().item() == pytest.approx(hidden[: n // 2].sum().item(), abs=0.03 * n)


def test_guidance_schedules():
    assert guidance_scales(4.0, "constant", 3) == [4.0, 4.0, 4.0]
    assert guidance_scales(4.0, "linear", 4) == [1.0, 2.0, 3.0, 4.0]
    assert guidance_scales(0.0, "constant", 2) == [1, 1]
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        guidance_scales(2.0, "liner", 4)
    with pytest.raises(ValueError, match="negative"):
        guidance_scales(-1.0, "constant", 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"temperature": -1.0}, "temperature at least 0"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"generator": [torch.Generator()]}, "1 generators for 4 rows"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        decode(noise(), *canvas_and_mask(), **options)


def test_scheduler_is_the_loop_with_saved_settings(tmp_path):
    canvas, mask = canvas_and_mask()
    scheduler = MaskScheduler("square", temperature=2.0, num_inference_steps=5)
    scheduler.save_pretrained(tmp_path)
    loaded = MaskScheduler.from_pretrained(tmp_path)
    expected = decode(
        noise(), canvas, mask, steps=5, schedule="square", temperature=2.0, generator=torch.Generator().manual_seed(3)
    )
    assert loaded.decode(noise(), canvas, mask, generator=torch.Generator().manual_seed(3)).equal(expected)
    swapped = MaskScheduler.from_config(loaded.config, mask_schedule="linear")
    assert (swapped.config.mask_schedule, swapped.config.temperature) == ("linear", 2.0)


def test_canvas_and_mask_must_have_one_shape():
    canvas, mask = canvas_and_mask()
    with pytest.raises((ValueError, TypeError), match=r"one shape|mask"):
        decode(noise(), canvas, mask[:, 1:])


# ------------------------------------------------------------------------------------------- the defaults do not change


def test_the_defaults_give_what_they_gave():
    """Recorded with the loop as it was before it had options."""
    generator = torch.Generator().manual_seed(5)
    canvas = torch.randint(CODES, (4, 24), generator=generator)
    mask = torch.rand(4, 24, generator=generator) < torch.tensor([0, 0.3, 0.7, 1.0])[:, None]
    assert decode(noise(), canvas, mask, steps=6, generator=torch.Generator().manual_seed(7)).tolist() == EXPECTED


EXPECTED = [
    [13, 1, 7, 7, 10, 1, 0, 12, 1, 5, 9, 9, 13, 11, 7, 14, 6, 4, 9, 14, 13, 5, 13, 4],
    [8, 8, 2, 6, 13, 3, 0, 6, 6, 3, 13, 2, 12, 13, 8, 4, 5, 12, 15, 9, 0, 10, 2, 12],
    [9, 1, 2, 7, 2, 13, 1, 11, 3, 3, 13, 2, 4, 15, 6, 15, 15, 4, 6, 7, 15, 8, 13, 12],
    [13, 10, 0, 16, 5, 0, 7, 7, 7, 4, 10, 0, 11, 5, 3, 1, 16, 15, 1, 9, 9, 13, 9, 3],
]


# ------------------------------------------------------------------------------------ orders, counts, dialects, remasks


def score_by_code(tokens, drawn):
    return tokens.float()


def options_of(order):
    return {"critic": score_by_code if order == "critic" else None, "grid": (4, 6), "order": order}


DIALECT_B = {"draw": partial(categorical, confidence="logit"), "draw_temperature": 9.5, "draw_anneal": "linear"}
VARIANTS = {
    **{order: options_of(order) for order in ORDERS},
    "rolled": {**options_of("halton"), "roll": True},
    "logit": {**DIALECT_B, "temperature": 9.5},
    **{f"remask {name}": {"remask": name, "remask_eta": 0.5} for name in ("cap", "rescale", "confidence")},
    "random remask": {**options_of("random"), "remask": "rescale"},
    "raster remask": {**options_of("raster"), "remask": "cap", "remask_eta": 0.3},
    "top": {"draw": partial(categorical, top_k=5, top_p=0.8)},
}
each_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


@each_variant
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_every_variant_reproduces_the_oracle(options, steps):
    canvas, mask = canvas_and_mask()
    answer = torch.randint(CODES, canvas.shape)
    assert decode(oracle(answer), canvas, mask, steps=steps, **options).equal(torch.where(mask, answer, canvas))


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_variant_keeps_counts_and_known_tokens(options, dtype):
    canvas, mask = canvas_and_mask()
    states = []
    decode(noise(dtype), canvas, mask, steps=6, callback=lambda i, t, h: states.append((t, h)), **options)
    plan = zip(*[hidden_after("cosine", int(count), 6) for count in mask.sum(1)])
    for (tokens, hidden), counts in itertools.zip_longest(states, plan):
        assert hidden.sum(1).tolist() == list(counts)
        assert not (hidden & ~mask).any()
        assert tokens[~mask].equal(canvas[~mask])


@each_variant
def test_without_remasking_every_hidden_token_is_decided_once(options):
    again = options.get("order") == "critic" or "remask" in options
    canvas, mask = canvas_and_mask()
    states = [(canvas, mask)]
    decode(noise(), canvas, mask, steps=6, callback=lambda i, t, h: states.append((t, h)), **options)
    back = sum(int((after & ~before).sum()) for (_, before), (_, after) in itertools.pairwise(states))
    assert (back > 0) == again
    if not again:
        for (before, hidden), (after, _) in itertools.pairwise(states):
            assert after[~hidden].equal(before[~hidden])


@each_variant
def test_every_variant_is_independent_of_its_batch(options):
    canvas, mask = canvas_and_mask()

    def run(rows):
        generators = [torch.Generator().manual_seed(10 + r) for r in rows]
        return decode(noise(), canvas[rows], mask[rows], steps=5, generator=generators, **options)

    together = run([0, 1, 2, 3])
    for row in range(4):
        assert together[row : row + 1].equal(run([row]))


@each_variant
def test_all_known_is_returned_without_a_call(options):
    canvas = torch.randint(CODES, (2, 24))

    def never(step):
        raise AssertionError("the model was called")

    assert decode(never, canvas, torch.zeros(2, 24, dtype=torch.bool), **options).equal(canvas)


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
    decode(noise(), canvas, mask, steps=4, temperature=0.0, trace=traces.append, order="critic", critic=score_by_code)
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


@pytest.mark.parametrize("counting", COUNTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("count", "steps"), [(256, 8), (3, 6), (1, 1), (5, 5), (1024, 64), (0, 3)])
def test_counts_fall_to_zero(counting, schedule, count, steps):
    plan = hidden_after(schedule, count, steps, counting)
    assert len(plan) == steps
    assert plan[-1] == 0
    assert all(a > b or (a, b) in ((1, 1), (0, 0)) for a, b in itertools.pairwise([count, *plan]))
    assert all(left > 0 for left in plan[:-1]) or count == 0


# ------------------------------------------------------------------------------------------------------------ remasking


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


# --------------------------------------------------------------------------------------------------- draws, temperature


def drawn(logits, temperature, **options):
    source = Noise(torch.Generator().manual_seed(0), *logits.shape[:2], logits.device)
    return categorical(logits, temperature, source, torch.arange(logits.shape[1]).expand(logits.shape[:2]), **options)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_follow_the_cut_distribution(options, temperature):
    logits = torch.tensor([1.0, 2.0, 0.0, -1.0, 1.5])
    codes, log_p = drawn(logits.expand(1, 60_000, 5), temperature, **options)
    p = (logits / temperature).softmax(0)
    kept = p.argsort(descending=True).tolist()[: options.get("top_k") or 5]
    share, total, nucleus = 0.0, p[kept].sum().item(), []
    for code in kept:
        if share < options.get("top_p", 1.0) - 1e-9:
            nucleus.append(code)
        share += p[code].item() / total
    expected = torch.zeros(5)
    expected[nucleus] = p[nucleus] / p[nucleus].sum()
    torch.testing.assert_close(torch.bincount(codes[0], minlength=5) / 60_000, expected, rtol=0, atol=0.01)
    torch.testing.assert_close(log_p[0], expected.log()[codes[0]])


def test_temperature_zero_takes_the_likeliest():
    logits = torch.randn(2, 7, CODES)
    codes, log_p = drawn(logits, 0.0)
    assert codes.equal(logits.argmax(-1))
    torch.testing.assert_close(log_p, logits.log_softmax(-1).max(-1).values)


def test_logit_confidence_is_the_networks_number():
    logits = torch.randn(2, 7, CODES, dtype=torch.bfloat16)
    codes, confidence = drawn(logits, 3.0, confidence="logit", top_k=4)
    assert confidence.equal(logits.gather(-1, codes[..., None])[..., 0].float())


def test_equal_logits_are_cut_to_k_all_the_same():
    assert truncated(torch.zeros(1, 6), 2, 1.0).isfinite().sum() == 2
    assert truncated(torch.zeros(1, 6), 0, 1e-9).isfinite().sum() == 1


def test_annealing():
    assert annealed(4.5, "linear", 3) == pytest.approx([3.0, 1.5, 0.0])
    assert annealed((2.0, 0.5), "linear", 3) == pytest.approx([1.5, 1.0, 0.5])
    assert annealed(2.0, "linspace", 3) == pytest.approx([2.0, 1.0, 0.0])
    assert annealed(2.0, "constant", 2) == [2.0, 2.0]
    assert annealed([1.0, 0.5], "reciprocal", 3) == pytest.approx([1.0, 1 / 1.5, 0.5])
    for name in ANNEALS:
        assert len(annealed((1.0, 1.0), name, 1)) == 1


def test_more_guidance_schedules():
    assert guidance_scales(5.0, "power", 4) == [1.0, 2.0, 3.0, 4.0]
    assert guidance_scales(5.0, "power", 2, 2.0) == [1.0, 2.0]
    assert guidance_scales(3.0, "cosine", 4) == pytest.approx([1, 1 + 1 - math.cos(math.pi / 4), 2, 2 + 0.5**0.5])
    power = guidance_scales(8.1, "cosine", 64, 3.0)
    assert power == pytest.approx([1 + 7.1 * (1 - math.cos((i / 64) ** 3 * math.pi)) / 2 for i in range(64)])
    c, u = torch.randn(2, 5)
    ours = u + from_extra(2.5) * (c - u)
    torch.testing.assert_close(ours, c + 2.5 * (c - u))
    torch.testing.assert_close(ours, (1 + 2.5) * c - 2.5 * u)
    assert to_extra(from_extra(2.5)) == 2.5


# ---------------------------------------------------------------------------------------------------- continuous tokens


def mixture(b, n, k=3, d=2):
    """Predictions (b, n, k (1 + 2 d)) of every place, and their parts."""
    table = torch.randn(b, n, k * (1 + 2 * d), generator=torch.Generator().manual_seed(4))
    return table, GaussianMixture(components=k)


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_continuous_tokens_go_through_the_same_loop(order, dtype):
    table, objective = mixture(4, 24)
    canvas, (_, mask) = torch.randn(4, 24, 2).to(dtype), canvas_and_mask()
    traces = []

    def predict(step):
        rows = torch.arange(4)[:, None]
        return table[rows, step.positions]

    result = decode(
        predict, canvas, mask, steps=5, order=order, grid=(4, 6), trace=traces.append,
        draw=partial(gaussian_mixture, split=objective.split),
    )  # fmt: skip
    assert result.dtype == dtype
    assert result[~mask].equal(canvas[~mask])
    assert (result[mask] != canvas[mask]).any(-1).float().mean() > 0.9
    assert [int(t.hidden[3].sum()) for t in traces] == hidden_after("cosine", 24, 5)
    if dtype == torch.float32:  # the confidence is the objective's own log-likelihood
        where = ~traces[0].confidence.isnan()
        nll = objective.per_token(table, traces[0].tokens)
        torch.testing.assert_close(traces[0].confidence[where], -nll[where], rtol=1e-4, atol=1e-4)


def test_mixture_draws_have_the_mixtures_moments():
    split = GaussianMixture(components=2).split
    weights, means = torch.tensor([0.25, 0.75]).log(), torch.tensor([[-3.0], [1.0]])
    predictions = torch.cat([weights, torch.stack([means, torch.full((2, 1), 0.5)], 1).flatten()])
    predictions = predictions.expand(1, 100_000, -1)
    positions = torch.arange(100_000)[None]
    scale = math.log1p(math.exp(0.5))
    for temperature in (0.0, 1.0, 0.5):
        source = Noise(torch.Generator().manual_seed(0), 1, 100_000, positions.device)
        tokens, _ = gaussian_mixture(predictions, temperature, source, positions, split=split)
        assert tokens.mean().item() == pytest.approx(0.0, abs=0.03)
        assert tokens.var().item() == pytest.approx(3 + (temperature * scale) ** 2, abs=0.05)


# -------------------------------------------------------------------------------------------------- trace, bad settings


def test_the_trace_tells_what_was_computed():
    canvas, mask = canvas_and_mask()
    traces, calls = [], []
    decode(
        noise(), canvas, mask, steps=4, trace=traces.append, callback=lambda *step: calls.append(step),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    before = mask
    for trace, (i, tokens, hidden) in zip(traces, calls, strict=True):
        assert trace.step == i
        assert trace.tokens.equal(tokens)
        assert trace.hidden.equal(hidden)
        assert trace.confidence.isnan().equal(~before)
        assert (trace.confidence[before] <= 0).all()
        before = hidden


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "haltn"}, "did you mean 'halton'"),
        ({"order": "halton"}, r"needs the grid of the tokens; give grid=\(h, w\)"),
        ({"order": "halton", "grid": (5, 5)}, "24 tokens a row do not fill the grid"),
        ({"order": "raster", "roll": True}, "roll goes with order 'halton'"),
        ({"order": "critic"}, "a critic go together"),
        ({"critic": score_by_code}, "a critic go together"),
        ({"order": "critic", "critic": score_by_code, "remask": "cap"}, "hides decided tokens again by itself"),
        ({"counting": "halto"}, "did you mean 'halton'"),
        ({"anneal": "liner"}, "did you mean 'linear'"),
        ({"anneal": "reciprocal"}, "a pair of temperatures above 0"),
        ({"draw_temperature": -0.1}, "temperature at least 0"),
        ({"temperature": (1.0, float("nan"))}, "temperature at least 0"),
        ({"remask": "confidenc"}, "did you mean 'confidence'"),
        ({"remask": "cap", "remask_eta": 1.5}, r"remask_eta must lie in \[0, 1\]"),
        ({"draw": partial(categorical, top_p=0.0)}, r"top_p must lie in \(0, 1\]"),
        ({"draw": partial(categorical, top_p=1.1)}, r"top_p must lie in \(0, 1\]"),
        ({"draw": partial(categorical, top_k=-1)}, "top_k must be at least 0"),
        ({"guidance_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"guidance_power": 0.0}, "guidance_power must be above 0"),
    ],
)
def test_more_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        decode(noise(), *canvas_and_mask(), **options)


def test_a_draw_of_vectors_does_not_fit_a_canvas_of_codes():
    table, objective = mixture(4, 24)
    canvas, mask = canvas_and_mask()
    with pytest.raises(ValueError, match="which is no canvas"):
        decode(
            lambda step: table[torch.arange(4)[:, None], step.positions], canvas, mask,
            draw=partial(gaussian_mixture, split=objective.split),
        )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- MaskScheduler


@pytest.mark.parametrize("name", PRESETS)
def test_presets_save_load_and_decode(name, tmp_path):
    scheduler = MaskScheduler.preset(name, num_inference_steps=3)
    scheduler.save_pretrained(tmp_path)
    loaded = MaskScheduler.from_pretrained(tmp_path)
    canvas, mask = canvas_and_mask()
    answer = torch.randint(CODES, canvas.shape)
    assert loaded.decode(oracle(answer), canvas, mask, grid=(4, 6)).equal(torch.where(mask, answer, canvas))
    assert {k: loaded.config[k] for k in scheduler.config if k[0] != "_"} == {
        k: v for k, v in scheduler.config.items() if k[0] != "_"
    }
    with pytest.raises(ValueError, match="did you mean 'mage'"):
        MaskScheduler.preset("magee")


def test_a_configuration_from_before_the_options_still_loads(tmp_path):
    old = {
        "_class_name": "MaskScheduler", "guidance_scale": 1.5, "guidance_schedule": "linear", "mask_schedule": "cosine",
        "num_inference_steps": 16, "temperature": 1.0,
    }  # fmt: skip
    (tmp_path / "scheduler_config.json").write_text(json.dumps(old))
    config = MaskScheduler.from_pretrained(tmp_path).config
    assert (config.temperature, config.order, config.counting, config.top_p) == (1.0, "confidence", "maskgit", 1.0)


def test_the_scheduler_hands_every_setting_on():
    canvas, mask = canvas_and_mask()
    scheduler = MaskScheduler(
        "arccos", (2.0, 0.5), "power", 4, 3.0, 2.0, "halton", "confidence", False, "logit", "linspace", (3.0, 1.0),
        "linear", 6, 0.9, "rescale", 0.7,
    )  # fmt: skip
    seen = []

    def predict(step):
        seen.append(step.guidance_scale)
        return noise()(step)

    ours = scheduler.decode(predict, canvas, mask, generator=torch.Generator().manual_seed(3))
    assert seen == guidance_scales(3.0, "power", 4, 2.0)
    expected = decode(
        noise(), canvas, mask, steps=4, schedule="arccos", counting="halton", temperature=(2.0, 0.5),
        anneal="linspace", draw=partial(categorical, top_k=6, top_p=0.9, confidence="logit"),
        draw_temperature=(3.0, 1.0), draw_anneal="linear", remask="rescale", remask_eta=0.7,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert ours.equal(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature at least 0"),
        ({"draw_temperature": -1.0}, "temperature at least 0"),
        ({"top_p": 2.0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"remask_eta": -0.5}, "remask_eta"),
        ({"guidance_power": -1.0}, "guidance_power"),
        ({"guidance_scale": -1.0}, "negative"),
    ],
)
def test_the_scheduler_refuses_bad_settings_when_made(options, message):
    with pytest.raises(ValueError, match=message):
        MaskScheduler(**options)
