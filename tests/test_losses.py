"""The losses that train a tokenizer."""

import pytest
import torch

from maskgen.tokenizer.losses import (
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Random weights under VGG-16's names."""
    torch.manual_seed(0)
    channels = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
    channels |= {17: (256, 512)} | dict.fromkeys((19, 21, 24, 26, 28), (512, 512))
    state = {f"features.{i}.weight": torch.randn(o, c, 3, 3) * (2 / (9 * c)) ** 0.5 for i, (c, o) in channels.items()}
    state |= {f"features.{i}.bias": torch.zeros(o) for i, (_, o) in channels.items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


def test_perceptual_loss_from_a_local_file(vgg_file):
    loss = PerceptualLoss(str(vgg_file))
    a = torch.rand(2, 3, 32, 32) * 2 - 1
    near, far = a + 0.02 * torch.randn_like(a), torch.rand(2, 3, 32, 32) * 2 - 1
    assert loss(a, a).item() == pytest.approx(0, abs=1e-6)
    assert 0 < loss(near.clamp(-1, 1), a) < loss(far, a)
    made = near.clamp(-1, 1).requires_grad_()
    loss.train()(made, a).backward()
    assert made.grad.abs().sum() > 0
    assert not loss.training
    first = torch.load(vgg_file)["features.0.weight"]
    assert loss.lpips.net.state_dict()["slice1.0.weight"].equal(first)


def test_perceptual_loss_says_how_to_get_its_weights(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="perceptual_weights=PATH"):
        PerceptualLoss(str(tmp_path / "missing.pth"))
    wrong = tmp_path / "wrong.pth"
    torch.save({"a": torch.zeros(1)}, wrong)
    with pytest.raises(RuntimeError, match=r"no fitting features\.0\.weight"):
        PerceptualLoss(str(wrong))


def test_discriminator_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5 * (0.25 + 0.75))
    assert generator_loss(fake, "hinge").item() == pytest.approx(0.75)
    soft = torch.nn.functional.softplus
    expected = 0.5 * (soft(-real).mean() + soft(fake).mean())
    assert discriminator_loss(real, fake, "non_saturating").item() == pytest.approx(expected.item())
    assert generator_loss(fake, "non_saturating").item() == pytest.approx(soft(-fake).mean().item())


def test_discriminator_is_local_and_takes_any_size():
    model = PatchDiscriminator(3, 8, 2)
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 1, 6, 10)


def test_adaptive_weight_is_the_ratio_of_the_last_layers_gradients():
    last = torch.nn.Conv2d(4, 3, 3, padding=1)
    made = last(torch.randn(2, 4, 8, 8))
    target = torch.randn_like(made)
    fit, other = (made - target).abs().mean(), made.square().mean()
    expected = [torch.autograd.grad(x, last.weight, retain_graph=True)[0].norm() for x in (fit, other)]
    at = [torch.autograd.grad(x, made, retain_graph=True)[0] for x in (fit, other)]
    weight = adaptive_weight(made, last.weight, *at)
    torch.testing.assert_close(weight, expected[0] / (expected[1] + 1e-4))
