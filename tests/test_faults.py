"""Nine faults of public code, each a test by name (docs/decoding.md lists them); the ninth is with the tasks."""

import inspect
import math

import pytest
import torch

import flat
from maskgen import MaskScheduler
from maskgen.decoding.loop import decode
from maskgen.decoding.noise import Noise
from maskgen.decoding.schedules import hidden_after
from maskgen.mim.ratios import SCHEDULES, Scheduled, gamma
from maskgen.tokenizer.quantizers.vector import VectorQuantizer

CODES = 13


def table(step, dtype=torch.float32):
    """Logits that depend on the step and the place only."""
    made = torch.randn(step.tokens.shape[1], CODES, generator=torch.Generator().manual_seed(step.number))
    return made[step.positions].to(dtype)


def blank(b, n):
    return torch.zeros(b, n, dtype=torch.long), torch.ones(b, n, dtype=torch.bool)


def test_fault_1_class_dropout_drops_with_its_probability():
    """The condition was KEPT with probability p: what the network is given is counted."""
    model = flat.transformer(CODES, (2, 2), num_classes=3, width=16, depth=1, heads=2, class_dropout=0.1).train()
    embedding = model.conditioner["label"].embedding
    torch.nn.init.normal_(embedding.weight)
    labels = torch.randint(3, (20_000,))
    given, none = embedding(labels), embedding.weight[3]
    taken = []
    embedding.register_forward_hook(lambda module, inputs, output: taken.append(output))
    model.conditioner({"label": labels}, len(labels), (2, 2))
    dropped, kept = (taken[0] == none).all(1), (taken[0] == given).all(1)
    assert (dropped | kept).all()
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_fault_2_annealed_temperature_does_not_compound():
    """It was overwritten by its annealed value at each step, tau (1 - 1/T) (1 - 2/T) ... in place of tau (1 - i/T)."""
    n, steps, tau = 400, 5, 3.0
    generator = torch.Generator().manual_seed(0)
    sure, order = torch.randn(1, n, generator=generator), torch.randn(1, n, generator=generator)
    heats = []

    class Fixed(Noise):
        def gumbel(self, positions):
            return order.gather(1, positions)

    def draw(predictions, temperature, noise, positions):
        heats.append(temperature)
        return positions % CODES, sure.gather(1, positions)

    states, (canvas, mask) = [], blank(1, n)
    decode(
        table, canvas, mask, steps=steps, schedule="linear", choice_temperature=tau, sample_tokens=draw,
        temperature=2.0, temperature_anneal="linear", noise=Fixed(None, 1, n, mask.device),
        callback=lambda i, t, hidden: states.append(hidden),
    )  # fmt: skip

    def expected(temperatures):
        hidden, made = mask, []
        for temperature, left in zip(temperatures, hidden_after("linear", n, steps)):
            score = (sure + temperature * order).masked_fill(~hidden, torch.inf)
            hidden = torch.zeros_like(mask).scatter(1, score.argsort(1)[:, :left], True)
            made.append(hidden)
        return made

    right = [tau * (1 - (i + 1) / steps) for i in range(steps)]
    compounded = [tau * math.prod(1 - (k + 1) / steps for k in range(i + 1)) for i in range(steps)]
    assert all(a.equal(b) for a, b in zip(states, expected(right)))
    assert not all(a.equal(b) for a, b in zip(states, expected(compounded)))
    assert heats == pytest.approx([2 * (1 - (i + 1) / steps) for i in range(steps)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"remask": "rescale"}, {"order": "random"}], ids=str)
def test_fault_3_known_tokens_are_neither_sampled_nor_masked_again(dtype, options):
    """In float16 a finite stand-in for +inf, the largest number, loses to noise."""
    canvas, mask = torch.randint(CODES, (3, 20)), torch.rand(3, 20) < 0.6
    states = []
    decode(
        lambda step: 60_000 * table(step).sign().to(dtype), canvas, mask, steps=6, choice_temperature=1e5,
        callback=lambda i, t, hidden: states.append((t, hidden)), **options,
    )  # fmt: skip
    for tokens, hidden in states:
        assert tokens[~mask].equal(canvas[~mask])
        assert not (hidden & ~mask).any()


def test_fault_4_each_row_has_its_own_mask_count():
    """In inpainting it was the batch's mean, or the first row's."""
    counts = [3, 17, 40]
    canvas, mask = torch.zeros(3, 40, dtype=torch.long), torch.arange(40) < torch.tensor(counts)[:, None]
    left = []
    decode(table, canvas, mask, steps=4, callback=lambda i, t, hidden: left.append(hidden.sum(1).tolist()))
    assert left == [list(step) for step in zip(*(hidden_after("cosine", count, 4) for count in counts))]


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_fault_5_beta_weighs_the_encoders_term(beta):
    """The commitment weight stood at the codebook's term; loss = |sg[z] - e|^2 + beta |z - sg[e]|^2."""
    quantizer = VectorQuantizer(8, 4, commitment=beta, learned=True, revive_below=0.0)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = quantizer(z)
    e = quantizer.embed(out.codes).detach()
    out.loss.backward(retain_graph=True)
    torch.testing.assert_close(z.grad, beta * 2 * (z.detach() - e) / z.numel())
    pull = 2 * (e - z.detach()) / z.numel()
    expected = torch.zeros(8, 4).index_add_(0, out.codes.flatten(), pull.movedim(1, -1).reshape(-1, 4))
    torch.testing.assert_close(quantizer.codebook.grad, expected)
    error = (z.detach() - e).square().mean()
    torch.testing.assert_close(out.loss.detach(), (1 + beta) * error)

    weight = torch.randn_like(z)  # straight through: the latents' gradient is the encoder's
    through = torch.autograd.grad((out.latents * weight).sum(), z)[0]
    assert torch.equal(through, weight)
    torch.testing.assert_close(out.latents.detach(), e)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fault_6_training_and_decoding_scale_time_alike(schedule):
    """A timestep was scaled twice, or in one of the two only. Ours is the mask itself: no network is told a time, and
    the share hidden at progress r is the same gamma(r) in training and in decoding."""
    u = torch.rand(50, generator=torch.Generator().manual_seed(0))
    trained = Scheduled(schedule)(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(trained, torch.tensor([gamma(schedule, float(r)) for r in u]))
    decoded = hidden_after(schedule, 256, 8)[2:-1]  # past the first steps, where sqrt hides less than one fewer allows
    assert decoded == [math.floor(256 * gamma(schedule, (i + 1) / 8)) for i in range(2, 7)]


def test_fault_7_nothing_masked_stays_so():
    """`max(1, ...)` masked one token again where none was."""
    assert hidden_after("cosine", 0, 6) == [0] * 6
    canvas = torch.randint(CODES, (2, 9))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[1] = True
    states = []
    done = decode(table, canvas, mask, steps=6, callback=lambda i, t, hidden: states.append(hidden))
    assert done[0].equal(canvas[0])
    assert not torch.stack(states)[:, 0].any()


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("schedule", "cosin", "cosine"),
        ("counting", "maskgt", "maskgit"),
        ("order", "halten", "halton"),
        ("choice_anneal", "linaer", "linear"),
        ("temperature_anneal", "constnt", "constant"),
        ("remask", "rescal", "rescale"),
        ("guidance_schedule", "liner", "linear"),
    ],
)
def test_fault_8_unknown_names_are_refused_with_the_nearest(name, value, nearest):
    """They were taken for a default without a word."""
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        decode(table, *blank(1, 4), **{name: value})


def test_fault_8_the_saved_settings_refuse_them_too():
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        inspect.unwrap(MaskScheduler.__init__)(None, "cosin")  # past beartype, as in production
