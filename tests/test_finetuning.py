"""Fine-tuning: mixed targets, erased boxes, a rate a layer, and the run itself."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from given import coloured
from maskgen.evaluation.probes import finetune
from maskgen.evaluation.probes.finetuning import parameter_groups
from maskgen.evaluation.probes.mixing import erase, mix, soft_targets


def test_mixed_targets_sum_to_one_and_go_by_exact_areas():
    labels = torch.tensor([0, 1, 2, 3])
    pixels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 32, 40).contiguous()
    shares = []
    for _ in range(200):
        mixed, targets = mix(pixels, labels, 5, mixup=0, cutmix=1.0, smoothing=0.0)
        assert torch.allclose(targets.sum(1), torch.ones(4))
        own = (mixed == pixels).float().mean(dim=(1, 2, 3))
        assert torch.allclose(own, targets[torch.arange(4), labels])
        shares.append(float(own[0]))
    assert min(shares) < 0.5  # boxes of many sizes
    assert max(shares) > 0.9
    for _ in range(20):
        mixed, targets = mix(pixels, labels, 5, mixup=0.8, cutmix=0, smoothing=0.1)
        assert torch.allclose(targets.sum(1), torch.ones(4))
        share = (float(targets[0, 0]) - 0.02) / 0.9
        assert torch.allclose(mixed[0], share * pixels[0] + (1 - share) * pixels[3], atol=1e-5)
    same, targets = mix(pixels, labels, 5, mixup=0, cutmix=0)
    assert torch.equal(same, pixels)
    assert torch.equal(targets, soft_targets(labels, 5, 0.1))


def test_half_of_the_batches_are_cut():
    pixels = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 1, 16, 16)
    labels = torch.tensor([0, 1])
    cut = [bool((mix(pixels, labels, 2)[0].abs() == 1).all()) for _ in range(200)]
    assert 70 < sum(cut) < 130  # 4 standard deviations


def test_smoothing_is_spread_over_all_classes():
    targets = soft_targets(torch.tensor([2]), 5, 0.1)
    assert torch.allclose(targets, torch.tensor([[0.02, 0.02, 0.92, 0.02, 0.02]]))


def test_erasing_makes_noise_of_a_box_in_a_share_of_images():
    pixels = torch.full((400, 3, 16, 16), 0.3)
    made = erase(pixels, 0.25)
    erased = (made != pixels).any(dim=1)
    assert 65 < int(erased.flatten(1).any(1).sum()) < 135  # of 400, 4 standard deviations
    for mask in erased[erased.flatten(1).any(1)]:
        high, wide = int(mask.any(1).sum()), int(mask.any(0).sum())
        assert int(mask.sum()) == high * wide  # a box
        assert 0.01 < high * wide / 256 < 0.42
    noise = made[made != pixels]
    assert noise.abs().max() == 1
    assert 0.45 < float(noise.std()) < 0.5  # 0.5 before it is clipped
    assert pixels.eq(0.3).all()
    assert torch.equal(erase(pixels, 0.0), pixels)


class Tiny(nn.Module):
    """Convolution, a token, one hidden layer, a head."""

    def __init__(self, classes, channels=3):
        super().__init__()
        self.embed = nn.Conv2d(channels, 16, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 16))
        self.block = nn.Linear(16, 16)
        self.head = nn.Linear(16, classes)
        nn.init.zeros_(self.head.weight)

    def layers(self):
        modules = (self.embed, self.block, self.head)
        embed, block, head = (list(module.parameters()) for module in modules)
        return [[*embed, self.cls_token], block, head]

    def forward(self, pixels):
        tokens = self.embed(pixels).flatten(2).mean(2) + self.cls_token
        return self.head(torch.relu(self.block(torch.relu(tokens))))


def test_rates_fall_from_layer_to_layer_and_biases_and_tokens_do_not_decay():
    model = Tiny(3)
    groups = parameter_groups(model, model.layers(), 0.65, 0.05)
    scale = {id(p): (group["scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert scale[id(model.head.weight)] == (1, 0.05)
    assert scale[id(model.head.bias)] == (1, 0)
    assert scale[id(model.block.weight)] == (0.65, 0.05)
    assert scale[id(model.embed.weight)] == (0.65**2, 0.05)
    assert scale[id(model.cls_token)] == (0.65**2, 0)  # by its name: it has two dimensions
    assert len(scale) == 7


def test_layers_must_list_every_parameter_once():
    model = Tiny(3)
    with pytest.raises(ValueError, match=r"missing: head.weight, head.bias; listed twice: 0; not in the model: 0"):
        parameter_groups(model, model.layers()[:2], 0.65, 0.05)
    with pytest.raises(ValueError, match=r"listed twice: 2"):
        parameter_groups(model, [*model.layers(), list(model.head.parameters())], 0.65, 0.05)
    with pytest.raises(ValueError, match=r"not in the model: 1"):
        parameter_groups(model, [*model.layers(), [nn.Parameter(torch.zeros(1))]], 0.65, 0.05)
    model.block.requires_grad_(False)
    assert len(parameter_groups(model, model.layers(), 0.65, 0.05)) == 4  # frozen ones have no group


def test_finetuning_learns_and_repeats_itself():
    def run():
        torch.manual_seed(3)
        model = Tiny(3)
        result = finetune(
            model, model.layers(), coloured(60), coloured(30, seed=1), epochs=12, batch_size=20, blr=0.2, progress=False
        )
        return model, result

    (first, result), (second, again) = run(), run()
    assert result.accuracy == {"top1": 1.0}
    assert result == again
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert result.counts == {
        "train": 60,
        "test": 30,
        "classes": 3,
        "parameters": sum(p.numel() for p in first.parameters()),
    }
    assert any("epochs 12 (published 100)" in note for note in result.notes)
    assert json.loads(result.to_json())["settings"]["steps"] == 36


def test_finetuning_says_what_is_wrong():
    model, wide, broken, data = Tiny(3), Tiny(4), Tiny(3), coloured(12)
    nn.init.constant_(broken.head.bias, math.nan)
    tune = partial(finetune, epochs=6, progress=False)
    with pytest.raises(ValueError, match=r"need logits \(12, 3\); give it a head"):
        tune(wide, wide.layers(), data, data)
    with pytest.raises(ValueError, match=r"different class names \(3 and 4"):
        tune(model, model.layers(), data, coloured(12, classes=4))
    with pytest.raises(ValueError, match=r"got erasing=1.5, warmup_epochs=5"):
        tune(model, model.layers(), data, data, erasing=1.5)
    with pytest.raises(ValueError, match=r"the loss is nan at step 1 of 6; lower blr"):
        tune(broken, broken.layers(), data, data)
    one = coloured(12)
    one.labels = np.zeros(12, np.int64)
    with pytest.raises(ValueError, match=r"at least 2 classes"):
        tune(model, model.layers(), one, data)
    one.labels = np.full(12, 3)
    with pytest.raises(ValueError, match=r"training set has 12 images with labels 3 to 3; .* labels 0 to 2"):
        tune(model, model.layers(), one, data)
