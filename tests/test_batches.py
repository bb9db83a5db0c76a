"""Which images a step sees, and what is done to them: functions of the seed and the step alone."""

from collections import Counter

import numpy as np
import pytest
import torch

from maskgen.data.augment import Augmentation
from maskgen.training.batches import BatchPlan, loader
from runs import Images


def flat(plan):
    return [draw for batch in plan for draw in batch]


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (10, 5), (3, 8)])
def test_every_epoch_is_a_permutation(n, batch_size):
    plan = BatchPlan(range(n), batch_size, 0, 30, seed=1)
    draws = flat(plan)
    assert len(list(plan)) == len(plan) == 30
    epochs = [[index for index, _ in draws[i : i + n]] for i in range(0, len(draws) - n + 1, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert max(Counter(seed for _, seed in draws).values()) == 1  # no two draws share their augmentation
    assert flat(BatchPlan(range(n), batch_size, 0, 30, seed=2)) != draws


@pytest.mark.parametrize(("accumulation", "processes"), [(1, 2), (2, 1), (3, 2), (2, 3)])
def test_the_global_batch_does_not_depend_on_who_shares_it(accumulation, processes):
    whole = [sorted(batch) for batch in BatchPlan(range(10), 12, 0, 7, seed=0)]
    ranks = [list(BatchPlan(range(10), 12, 0, 7, 0, accumulation, rank, processes)) for rank in range(processes)]
    shared = [
        sorted(draw for batches in ranks for a in range(accumulation) for draw in batches[step * accumulation + a])
        for step in range(7)
    ]
    assert shared == whole
    assert {len(batch) for batches in ranks for batch in batches} == {12 // (accumulation * processes)}


@pytest.mark.parametrize("start", [0, 1, 5, 7])
def test_a_plan_from_step_k_is_the_rest_of_the_whole_plan(start):
    whole = list(BatchPlan(range(10), 4, 0, 7, seed=0, accumulation=2))
    rest = BatchPlan(range(10), 4, start, 7, seed=0, accumulation=2)
    assert list(rest) == whole[start * 2 :]
    assert len(rest) == (7 - start) * 2


def test_batches_do_not_depend_on_the_number_of_workers():
    plan = BatchPlan(range(48), 4, 0, 5, seed=0)
    one, two = (list(loader(Images(), Augmentation(0.5, 0.5), plan, workers, False)) for workers in (0, 2))
    assert all(torch.equal(a["pixels"], b["pixels"]) and torch.equal(a["label"], b["label"]) for a, b in zip(one, two))
    assert not torch.equal(one[0]["pixels"], next(iter(loader(Images(), Augmentation(), plan, 0, False)))["pixels"])


# ----------------------------------------------------------------------------------------------------- augmentation


def test_augmentation_flips_crops_and_leaves_alone():
    x = torch.rand(3, 8, 6)
    assert torch.equal(Augmentation()(x, torch.Generator()), x)
    assert torch.equal(Augmentation(flip=1.0)(x, torch.Generator()), x.flip(-1))
    seeds = [torch.Generator().manual_seed(i) for i in range(200)]
    flipped = [torch.equal(Augmentation(flip=0.3)(x, g), x.flip(-1)) for g in seeds]
    assert 0.2 < np.mean(flipped) < 0.4

    ramp = torch.linspace(-1, 1, 64).expand(1, 64, 64).contiguous()  # a crop shows what share of the ramp it kept
    crops = [Augmentation(crop=0.3)(ramp, torch.Generator().manual_seed(i)) for i in range(100)]
    assert all(c.shape == ramp.shape and c.min() >= -1 and c.max() <= 1 for c in crops)
    kept = torch.tensor([(c.amax() - c.amin()) / 2 for c in crops])
    assert kept.min() > 0.3**0.5 * 0.75**0.5 - 0.06  # least area, narrowest aspect
    assert kept.min() < 0.6
    assert kept.max() > 0.9


def test_augmentation_is_a_function_of_its_seed():
    image = torch.rand(3, 16, 16) * 2 - 1
    change = Augmentation(flip=0.5, crop=0.5)
    a, b, c = (change(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert a.equal(b)
    assert not a.equal(c)
    assert a.shape == image.shape


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"flip": -0.1}, {"crop": 0.0}, {"crop": 1.1}])
def test_augmentation_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=r"flip lies in \[0, 1\] and crop in \(0, 1\]"):
        Augmentation(**wrong)
