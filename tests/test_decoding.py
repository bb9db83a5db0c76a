"""The decode loop on models with known answers."""

import inspect
import itertools
import math
from functools import partial

import pytest
import torch

from decoders import CODES, canvas_and_mask, noise, options_of, oracle, score_by_code
from maskgen.decoding.loop import decode
from maskgen.decoding.noise import gumbel, inverse_cdf
from maskgen.decoding.orders import ORDERS
from maskgen.decoding.schedules import hidden_after
from maskgen.decoding.token_samplers import categorical
from maskgen.mim.ratios import SCHEDULES


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
    """A finite stand-in for +inf would mask them again in half precision."""
    canvas, mask = canvas_and_mask()
    seen = []
    decode(
        noise(dtype), canvas, mask, steps=8, choice_temperature=temperature,
        callback=lambda i, tokens, hidden: seen.append((tokens, hidden)),
    )  # fmt: skip
    for tokens, hidden in seen:
        assert tokens[~mask].equal(canvas[~mask])
        assert not (hidden & ~mask).any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counts_follow_the_schedule_row_by_row(schedule):
    canvas, mask = canvas_and_mask()
    counts = []
    decode(noise(), canvas, mask, steps=6, schedule=schedule, callback=lambda i, t, h: counts.append(h.sum(1).tolist()))
    expected = [hidden_after(schedule, int(c), 6) for c in mask.sum(1)]
    assert counts == [list(step) for step in zip(*expected)]


def test_nothing_hidden_stays_so():
    """And the model is not asked."""
    assert hidden_after("cosine", 0, 5) == [0] * 5
    canvas = torch.randint(CODES, (2, 6))

    def never(step):
        raise AssertionError("the model was called")

    assert decode(never, canvas, torch.zeros(2, 6, dtype=torch.bool)).equal(canvas)


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
    decode(predict, torch.zeros(1, n, dtype=torch.long), torch.ones(1, n, dtype=torch.bool), steps=2,
           choice_temperature=0.0,
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


def test_noise_of_the_order_fades_linearly():
    """All codes have p = 1, so the order is the noise's alone. With temperature tau against a head start g on half of
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
        choice_temperature=tau, schedule="linear", generator=torch.Generator().manual_seed(0),
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


def test_canvas_and_mask_must_have_one_shape():
    canvas, mask = canvas_and_mask()
    with pytest.raises(ValueError, match=r"canvas \(4, 24\) and mask \(4, 23\) must have one shape"):
        inspect.unwrap(decode)(noise(), canvas, mask[:, 1:])  # past beartype, as in production


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

# -------------------------------------------------------------------------------------------------------- every variant

DIALECT_B = {
    "sample_tokens": partial(categorical, confidence="logit"),
    "temperature": 9.5,
    "temperature_anneal": "linear",
}
VARIANTS = {
    **{order: options_of(order) for order in ORDERS},
    "rolled": {**options_of("halton"), "roll": True},
    "logit": {**DIALECT_B, "choice_temperature": 9.5},
    **{f"remask {name}": {"remask": name, "remask_eta": 0.5} for name in ("cap", "rescale", "confidence")},
    "random remask": {**options_of("random"), "remask": "rescale"},
    "raster remask": {**options_of("raster"), "remask": "cap", "remask_eta": 0.3},
    "top": {"sample_tokens": partial(categorical, top_k=5, top_p=0.8)},
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
        ({"steps": 0}, "steps must be at least 1"),
        ({"choice_temperature": -1.0}, "temperature at least 0"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"generator": [torch.Generator()]}, "1 generators for 4 rows"),
        ({"order": "haltn"}, "did you mean 'halton'"),
        ({"order": "halton"}, r"needs the grid of the tokens; give grid=\(h, w\)"),
        ({"order": "halton", "grid": (5, 5)}, r"24 tokens .* the grid"),
        ({"order": "raster", "roll": True}, "roll .* order 'halton'"),
        ({"order": "critic"}, "a critic go together"),
        ({"critic": score_by_code}, "a critic go together"),
        ({"order": "critic", "critic": score_by_code, "remask": "cap"}, "set remask .none."),
        ({"counting": "halto"}, "did you mean 'halton'"),
        ({"choice_anneal": "liner"}, "did you mean 'linear'"),
        ({"choice_anneal": "reciprocal"}, "a pair of temperatures above 0"),
        ({"temperature": -0.1}, "temperature at least 0"),
        ({"choice_temperature": (1.0, float("nan"))}, "temperature at least 0"),
        ({"remask": "confidenc"}, "did you mean 'confidence'"),
        ({"remask": "cap", "remask_eta": 1.5}, r"remask_eta must lie in \[0, 1\]"),
        ({"sample_tokens": partial(categorical, top_p=0.0)}, r"top_p must lie in \(0, 1\]"),
        ({"sample_tokens": partial(categorical, top_p=1.1)}, r"top_p must lie in \(0, 1\]"),
        ({"sample_tokens": partial(categorical, top_k=-1)}, "top_k must be at least 0"),
        ({"guidance_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"guidance_power": 0.0}, "guidance_power must be above 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        decode(noise(), *canvas_and_mask(), **options)
