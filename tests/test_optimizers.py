"""What an optimizer decays, the learning rate's course, and the average of the weights."""

import copy

import pytest
import torch
from torch import nn

from flat import transformer
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.loop import Training, _average, _optimizer
from runs import TOKENIZER


def groups(module):
    """Names of the parameters with and without weight decay."""
    optimizer = _optimizer(module, Training(steps=1, weight_decay=0.1))
    names = {id(p): name for name, p in module.named_parameters()}
    found = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert found.keys() == {0.1, 0.0}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert found[0.1] | found[0.0] == trained
    assert not found[0.1] & found[0.0]
    return found[0.1], found[0.0]


@pytest.mark.parametrize("condition", ["adaln", "in_context"])
def test_embeddings_biases_norms_and_lone_tokens_do_not_decay(condition):
    model = transformer(
        16, (4, 4), 3, width=16, depth=1, heads=2, positions="learned", registers=2, condition=condition, norm="rms"
    )
    decayed, plain = groups(model)
    matrices = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert decayed == matrices
    assert {"embedding.codes.weight", "conditioner.label.embedding.weight", "position_embedding"} <= plain
    assert {"mask_token", "register_tokens", "blocks.0.attn.q_norm.weight", "head.bias"} <= plain


def test_the_codebook_does_not_decay_and_convolutions_do():
    parts = copy.deepcopy(TOKENIZER["stage"]["tokenizer"])
    parts["quantizer"]["learned"] = True
    model = Tokenizer(**parts)
    decayed, plain = groups(model)
    assert decayed == {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert "quantizer.embedding.weight" in plain


def test_learning_rate_warms_up_then_falls_or_stays():
    settings = Training(steps=110, learning_rate=2.0, warmup_steps=10)
    assert [settings.rate(i) for i in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert settings.rate(60) == pytest.approx(1.0)
    assert 0 < settings.rate(109) < 1e-3
    assert all(settings.rate(i) > settings.rate(i + 1) for i in range(10, 109))
    constant = Training(steps=110, learning_rate=2.0, warmup_steps=0, decay="constant")
    assert {constant.rate(i) for i in range(110)} == {2.0}


def test_the_average_follows_the_weights_and_copies_buffers():
    model = nn.BatchNorm1d(1)
    with torch.no_grad():
        model.weight.fill_(0)
    averaged, expected = _average(model, 0.5), 0.0
    for n, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(value)
        averaged.update_parameters(model)
        keep = 0 if n == 0 else min(0.5, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * value
        assert averaged.module.weight.item() == pytest.approx(expected)
        assert averaged.module.running_mean.item() == value
