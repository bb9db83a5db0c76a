"""Probes: against loops, formulas and torch's own optimizers; on features with and without classes."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskgen.evaluation.probes import heads as H
from maskgen.evaluation.probes import knn, linear, lowshot, sweep
from maskgen.evaluation.probes.features import Features
from maskgen.evaluation.probes.few_labels import centred, few_labels, logistic
from maskgen.evaluation.probes.neighbours import vote
from maskgen.evaluation.probes.result import hits, score


def clusters(n, classes=4, d=12, spread=0.3, seed=0, shuffle=False):
    """Points around a centre a class; the centres are the same for every seed."""
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99)) * 2
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    values = centres[labels] + spread * torch.randn(n, d, generator=generator)
    if shuffle:
        labels = labels[torch.randperm(n, generator=generator)]
    return Features(values, labels, {"pool": "none"}, [f"class {i}" for i in range(classes)])


quiet = {"progress": False}
quick_sweep = partial(sweep, steps=150, batch_size=64, learning_rates=(1e-3, 1e-1), weight_decays=(1e-3,), **quiet)
quick_linear = partial(linear, epochs=20, warmup_epochs=2, batch_size=64, blr=100, **quiet)
PROBES = {
    "linear": quick_linear,
    "sweep": quick_sweep,
    "knn": partial(knn, ks=(10, 20), **quiet),
    "lowshot": partial(lowshot, share=0.1, **quiet),
    "lowshot by sweep": partial(
        lowshot, share=0.1, method="sweep", steps=150, learning_rates=(1e-2, 1e-1), weight_decays=(0,), **quiet
    ),
}

# ----------------------------------------------------------------------------------------------------- all protocols


@pytest.mark.parametrize("name", PROBES)
def test_probes_find_classes_that_are_there_and_none_that_are_not(name):
    train, test = clusters(400, seed=1), clusters(200, seed=2)
    result = PROBES[name](train, test)
    assert result.accuracy["top1"] > 0.99
    assert result.protocol == name.split()[0]
    assert result.chance == 0.25
    assert result.counts["train"] == (40 if "lowshot" in name else 400)
    shuffled = PROBES[name](clusters(400, seed=1, shuffle=True), clusters(2000, seed=2, shuffle=True))
    assert abs(shuffled.accuracy["top1"] - 0.25) < 0.06  # 6 standard deviations of 2,000 guesses


@pytest.mark.parametrize("name", PROBES)
def test_probes_repeat_themselves_and_are_fit_for_json(name):
    train, test = clusters(200, seed=1, spread=4), clusters(100, seed=2, spread=4)
    first, torch_state = PROBES[name](train, test), torch.get_rng_state()
    second = PROBES[name](train, test)
    assert first == second
    assert torch.equal(torch.get_rng_state(), torch_state)  # nothing was drawn from the global generator
    facts = json.loads(first.to_json())
    assert facts["settings"]["features"] == {"pool": "none"}
    assert facts["accuracy"]["top1"] == first.accuracy["top1"]
    assert f"top1 {first.accuracy['top1']:.1%}" in str(first)


@pytest.mark.parametrize("name", PROBES)
def test_probes_refuse_sets_that_do_not_belong_together(name):
    probe, train = PROBES[name], clusters(100)
    with pytest.raises(ValueError, match=r"12.*13; extract both with the same"):
        probe(train, clusters(100, d=13))
    with pytest.raises(ValueError, match=r"different class names \(4: class 0, class 1, class 2, \.\.\.; 5: "):
        probe(train, clusters(100, classes=5))
    one = Features(train.values, torch.zeros(100, dtype=torch.int64), {}, train.class_names)
    with pytest.raises(ValueError, match=r"at least 2 classes, but all 100 are of one"):
        probe(one, train)


def test_numbers_that_differ_from_the_paper_are_noted():
    train, test = clusters(100), clusters(50, seed=3)
    assert any("epochs 20 (published 90)" in note for note in quick_linear(train, test).notes)
    assert any("ks (10, 20) (published (10, 20, 100, 200))" in note for note in PROBES["knn"](train, test).notes)
    assert any("steps 150 (published 12500)" in note for note in quick_sweep(train, test).notes)
    assert any("end of the grid" in note for note in quick_sweep(train, test).notes)


def test_the_linear_probe_says_where_its_optimizer_cannot_reach():
    train = clusters(100)
    short = linear(train, train, epochs=3, warmup_epochs=1, **quiet)
    assert any("move by only" in note for note in short.notes)
    assert not any("move by only" in note for note in quick_linear(clusters(400), train).notes)
    # ImageNet: 78 steps an epoch at rate 6.4
    rates = [6.4 * H.warmup_cosine(i / 78, 90, 10) for i in range(90 * 78)]
    assert sum(rates) * 1e-3 / 0.1 == pytest.approx(225, rel=0.01)


def test_classes_without_training_images_are_noted():
    train, test = clusters(40), clusters(40, seed=1)
    part = train.select((train.labels != 3).nonzero()[:, 0])
    result = knn(part, test, ks=(5,), **quiet)
    assert result.accuracy["top1"] == 0.75
    assert "10 test images have classes without a training image, and count as misses" in result.notes


def test_ties_and_nan_are_misses():
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [math.nan, math.nan, math.nan]])
    labels = torch.tensor([0, 1, 0])
    assert hits(scores, labels, 1).tolist() == [False, True, False]
    assert hits(scores, labels, 2).tolist() == [True, True, False]
    assert score(torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)).keys() == {"top1"}  # of 5 the 5 best say nothing
    random = torch.randn(50, 8)
    numbers = torch.randint(8, (50,))
    expected = (random.topk(5).indices == numbers[:, None]).any(1).double().mean()
    assert score(random, numbers)["top5"] == pytest.approx(float(expected))


# -------------------------------------------------------------------------------------------------- linear and sweep


def test_lars_takes_the_step_of_its_formula():
    w, b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    lars = H.LARS([w, b], lr=0.5, weight_decay=0.1)
    expected_w, expected_b = w.detach().clone(), b.detach().clone()
    v, u = torch.zeros(3, 4), torch.zeros(3)
    for _ in range(3):
        w.grad, b.grad = torch.randn(3, 4), torch.randn(3)
        g = w.grad + 0.1 * expected_w
        v = 0.9 * v + 1e-3 * expected_w.square().sum().sqrt() / g.square().sum().sqrt() * g
        u = 0.9 * u + b.grad
        expected_w, expected_b = expected_w - 0.5 * v, expected_b - 0.5 * u
        lars.step()
        assert torch.allclose(w, expected_w, atol=1e-7)
        assert torch.allclose(b, expected_b, atol=1e-6)


def test_lars_does_not_scale_where_a_norm_is_zero():
    w = nn.Parameter(torch.zeros(2, 2))
    lars = H.LARS([w], lr=0.1)
    w.grad = torch.ones(2, 2)
    lars.step()
    assert torch.allclose(w, torch.full((2, 2), -0.1))
    still = nn.Parameter(torch.ones(2, 2))
    lars = H.LARS([still], lr=0.1)
    still.grad = torch.zeros(2, 2)
    lars.step()
    assert torch.equal(still, torch.ones(2, 2))


def test_the_rate_warms_up_in_a_line_and_falls_along_a_cosine():
    at = partial(H.warmup_cosine, total=90, warmup=10)
    assert [at(0), at(5), at(10)] == [0, 0.5, 1]
    assert at(50) == pytest.approx(0.5)
    assert at(90) == pytest.approx(0)
    assert H.warmup_cosine(90, 90, 10, floor=0.1) == pytest.approx(0.1)
    assert H.warmup_cosine(0, 5, 0) == 1


def test_each_pass_shows_every_image_once():
    batches = list(H.shuffled(10, 3, 7, torch.Generator().manual_seed(0)))
    assert [len(b) for b in batches] == [3] * 7
    for start in (0, 3):
        assert len(torch.cat(batches[start : start + 3]).unique()) == 9  # one of ten is dropped a pass
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:6]))


def test_parallel_heads_are_separate_heads():
    data = clusters(60, spread=3)
    grid = [(1e-3, 0.0), (1e-2, 0.5), (1e-1, 0.05)]
    steps, warmup = 30, 3
    weight, bias = H.train_heads(
        data.values,
        data.labels,
        4,
        grid,
        batch_size=16,
        steps=steps,
        warmup=warmup,
        generator=torch.Generator().manual_seed(5),
        progress=False,
    )
    shares = np.concatenate([np.linspace(0, 1, warmup), (np.cos(np.linspace(0, np.pi, steps - warmup)) + 1) / 2])
    for i, (rate, decay) in enumerate(grid):
        generator = torch.Generator().manual_seed(5)
        w = nn.Parameter(nn.init.trunc_normal_(torch.empty(12, 4), std=0.02, generator=generator))
        b = nn.Parameter(torch.zeros(4))
        adam = torch.optim.AdamW(
            [{"params": [w], "weight_decay": decay}, {"params": [b], "weight_decay": 0}], lr=0.0, betas=(0.9, 0.95)
        )
        for share, index in zip(shares, H.shuffled(60, 16, steps, generator)):
            for group in adam.param_groups:
                group["lr"] = rate * share
            adam.zero_grad()
            F.cross_entropy(data.values[index] @ w + b, data.labels[index]).backward()
            adam.step()
        assert torch.allclose(weight[i], w, atol=1e-4)
        assert torch.allclose(bias[i, 0], b, atol=1e-4)


def test_the_sweep_chooses_on_training_images_and_tests_that_head():
    train, test = clusters(300, spread=3, seed=1), clusters(300, spread=3, seed=2)
    options = {"steps": 60, "batch_size": 64, "learning_rates": (1e-9, 4e-1), "weight_decays": (0.0, 0.1), **quiet}
    result = sweep(train, test, **options)
    table = {(lr, decay): top1 for lr, decay, top1 in result.chosen["heads"]}
    assert len(table) == result.counts["heads"] == 4
    assert result.chosen["learning_rate"] == 4e-1
    assert table[4e-1, result.chosen["weight_decay"]] == max(table.values())
    assert result.counts["trained_on"] + result.counts["held_out"] == 300
    chosen = {"learning_rates": (4e-1,), "weight_decays": (result.chosen["weight_decay"],)}
    assert sweep(train, test, **{**options, **chosen}).accuracy == result.accuracy
    others = Features(test.values, test.labels.flip(0), test.facts, test.class_names)
    assert sweep(train, others, **options).chosen == result.chosen  # no choice follows the test labels


def test_standardising_makes_scale_and_offset_of_features_irrelevant():
    train, test = clusters(200, spread=4, seed=1), clusters(200, spread=4, seed=2)
    far = [Features(f.values * 1000 + 5000, f.labels, f.facts, f.class_names) for f in (train, test)]
    for probe in (quick_linear, partial(quick_sweep, standardise=True)):  # linear by its batch norm
        near = probe(train, test).accuracy["top1"]
        assert near > 0.4
        assert probe(*far).accuracy["top1"] == pytest.approx(near, abs=0.02)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (partial(linear, epochs=0), r"epochs must be above 0, got 0"),
        (partial(linear, batch_size=1), r"batch_size must be above 1, got 1"),
        (partial(linear, epochs=5, warmup_epochs=5), r"from 0 to below epochs=5, got 5"),
        (partial(sweep, learning_rates=()), r"a sweep needs learning rates above 0"),
        (partial(sweep, steps=0), r"steps must be above 0"),
        (partial(sweep, holdout=0.6), r"holdout must be above 0 and at most 0.5"),
        (partial(knn, temperature=0), r"temperature must be above 0"),
        (partial(lowshot, share=0), r"share must be above 0 and at most 1 \(0.01 is 1%\), got 0"),
        (partial(lowshot, steps=5), r"steps.*method='sweep'.*'logistic'"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(probe, message):
    with pytest.raises(ValueError, match=message):
        probe(clusters(40), clusters(40))


# -------------------------------------------------------------------------------------------------------------- k-NN


def test_knn_is_the_brute_force_loop(monkeypatch):
    monkeypatch.setattr("maskgen.evaluation.probes.neighbours.CHUNK", 150)  # several chunks
    train, test = clusters(60, classes=7, spread=4, seed=1), clusters(40, classes=7, spread=4, seed=2)
    ks = (1, 5, 20)
    result = knn(train, test, ks=ks, **quiet)

    def votes(query, points, labels, k):
        cosine = [float(query @ p / (query.norm() * p.norm())) for p in points]
        scores = np.zeros(7)
        for i in sorted(range(len(points)), key=lambda i: -cosine[i])[:k]:
            scores[int(labels[i])] += math.exp(cosine[i] / 0.07)
        return scores

    left_out = {}
    for k in ks:
        tested = [votes(q, train.values, train.labels, k) for q in test.values]
        top1 = np.mean([s.argmax() == y for s, y in zip(tested, test.labels.tolist())])
        assert result.accuracy[f"top1@{k}"] == pytest.approx(top1)
        others = [[j for j in range(60) if j != i] for i in range(60)]
        own = [votes(train.values[i], train.values[o], train.labels[o], k) for i, o in enumerate(others)]
        left_out[k] = np.mean([s.argmax() == y for s, y in zip(own, train.labels.tolist())])
        if k == result.chosen["k"] and k >= 5:
            top5 = np.mean([s[y] > 0 and (s > s[y]).sum() < 5 for s, y in zip(tested, test.labels.tolist())])
            assert result.accuracy["top5"] == pytest.approx(top5)
    assert left_out[result.chosen["k"]] == max(left_out.values())
    assert result.chosen["left_out_top1"] == pytest.approx(max(left_out.values()))


def test_votes_are_sums_of_weights():
    similarity = torch.tensor([[0.9, 0.8, 0.7, -1.0]])
    scores = vote(similarity, torch.tensor([0, 1, 1, 2]), 3, (1, 3), 0.5)
    e = [math.exp(s / 0.5) for s in (0.9, 0.8, 0.7)]
    assert torch.allclose(scores, torch.tensor([[[e[0], 0, 0]], [[e[0], e[1] + e[2], 0]]]))


def test_knn_needs_more_images_than_neighbours():
    with pytest.raises(ValueError, match=r"at most 49 neighbours; give smaller ks"):
        knn(clusters(50), clusters(50), **quiet)
    with pytest.raises(ValueError, match=r"ks are \[0\]"):
        knn(clusters(50), clusters(50), ks=(0,), **quiet)
    assert knn(clusters(50), clusters(50), ks=(50,), **quiet).chosen == {"k": 50, "by": "it is the only one given"}


def test_a_collapsed_network_gets_nothing_of_ties():
    train, test = clusters(40), clusters(40)
    flat = [Features(torch.ones_like(f.values), f.labels, {}, f.class_names) for f in (train, test)]
    assert knn(*flat, ks=(40,), **quiet).accuracy["top1"] == 0


# ---------------------------------------------------------------------------------------------------------- low-shot


def test_few_labels_are_balanced_nested_and_repeatable():
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate((500, 300, 195, 5))])
    ten = few_labels(labels, 0.1)  # 100 of 1,000: 25 a class, of which the last has only 5
    assert labels[ten].bincount().tolist() == [25, 25, 25, 5]
    one = few_labels(labels, 0.01)
    assert labels[one].bincount().tolist() == [2, 2, 2, 2]
    assert set(one.tolist()) <= set(ten.tolist())
    assert len(ten.unique()) == len(ten)
    assert torch.equal(ten, few_labels(labels, 0.1))
    assert not torch.equal(ten, few_labels(labels, 0.1, seed=1))
    assert labels[few_labels(labels, 1e-6)].bincount().tolist() == [1, 1, 1, 1]  # at least one a class
    assert few_labels(torch.tensor([4, 4, 2, 2]), 0.5).numel() == 2  # only classes that occur


def test_lowshot_counts_are_in_the_result():
    result = lowshot(clusters(400), clusters(100, seed=1), 0.01, **quiet)
    counts = {"train": 4, "test": 100, "classes": 4, "features": 12, "of": 400, "least_a_class": 1, "most_a_class": 1}
    assert result.counts == counts
    assert result.accuracy["top1"] > 0.9


def test_lowshot_by_sweep_needs_images_to_hold_out():
    with pytest.raises(ValueError, match=r"holdout.*give at least 10"):
        lowshot(clusters(400), clusters(100), 0.01, "sweep", **quiet)
    with pytest.raises(ValueError, match=r"method is 'ridge'; give one of logistic, sweep"):
        lowshot(clusters(40), clusters(40), 0.1, "ridge")


def test_logistic_regression_is_at_its_minimum():
    data = clusters(80, spread=4)
    x, penalty = centred(data.values), 1e-3
    assert torch.allclose(x.norm(dim=1), torch.ones(80))
    assert torch.allclose(x.mean(dim=1), torch.zeros(80), atol=1e-6)
    w = logistic(x, data.labels, 4, penalty).double()
    residual = (x.double() @ w).softmax(1) - F.one_hot(data.labels, 4)
    gradient = x.double().T @ residual / 80 + penalty * w
    assert gradient.abs().max() < 1e-5
    assert w.abs().max() > 1
