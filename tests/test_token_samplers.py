"""Draws: codes and vectors follow their distributions, whatever is cut off."""

import math
from functools import partial

import pytest
import torch

from decoders import CODES, canvas_and_mask
from maskgen.decoding.loop import decode
from maskgen.decoding.noise import Noise, gumbel, inverse_cdf
from maskgen.decoding.schedules import hidden_after
from maskgen.decoding.token_samplers import categorical, gaussian_mixture, truncated
from maskgen.mim.objective import GaussianMixture


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
        sample_tokens=partial(gaussian_mixture, split=objective.split),
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


def test_a_draw_of_vectors_does_not_fit_a_canvas_of_codes():
    table, objective = mixture(4, 24)
    canvas, mask = canvas_and_mask()
    with pytest.raises(ValueError, match="do not fit the canvas"):
        decode(
            lambda step: table[torch.arange(4)[:, None], step.positions], canvas, mask,
            sample_tokens=partial(gaussian_mixture, split=objective.split),
        )  # fmt: skip
