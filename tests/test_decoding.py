"""The decode loop on models with known answers."""

import itertools
import math

import pytest
import torch

from maskgen.decoding.guidance import guidance_scales
from maskgen.decoding.loop import decode
from maskgen.decoding.noise import gumbel, inverse_cdf
from maskgen.decoding.scheduler import MaskScheduler
from maskgen.decoding.schedules import hidden_after
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
