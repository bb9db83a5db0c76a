"""The losses that train a tokenizer, and the frozen networks that they look through."""

import math
from typing import Annotated, Any

import pytest
import torch
from torch import nn
from torchvision import models

from maskgen.config import ConfigError, check
from maskgen.frozen import imagenet_input
from maskgen.mim.teachers import TEACHERS
from maskgen.registry import build
from maskgen.tokenizer.discriminator import PatchDiscriminator
from maskgen.tokenizer.losses import (
    adaptive_weight,
    discriminator_loss,
    feature_loss,
    generator_loss,
    lecam_loss,
    r1_penalty,
)
from maskgen.tokenizer.perceptual import Both, Logits, Lpips
from maskgen.training.offline import PERCEPTUAL, TEACHER


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
    return str(path)


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    """A ResNet-50 with random weights, as a downloaded file has them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("resnet") / "resnet50.pth"
    torch.save(models.resnet50(weights=None).state_dict(), path)
    return str(path)


# ------------------------------------------------------------------------------------------------------ perceptual


def assert_a_distance(loss):
    """0 for an image and itself, larger the further apart; its gradient reaches the reconstruction alone."""
    a = torch.rand(2, 3, 32, 32) * 2 - 1
    near, far = a + 0.02 * torch.randn_like(a), torch.rand(2, 3, 32, 32) * 2 - 1
    assert loss(a, a).item() == pytest.approx(0, abs=1e-6)
    assert 0 < loss(near.clamp(-1, 1), a) < loss(far, a)
    made = near.clamp(-1, 1).requires_grad_()
    loss.train()(made, a).backward()
    assert made.grad.abs().sum() > 0
    assert not any(module.training for module in loss.modules() if not isinstance(module, Both))
    assert not any(p.requires_grad for p in loss.parameters())


def test_lpips_from_a_local_file(vgg_file):
    loss = build(PERCEPTUAL, {"type": "lpips", "weights": vgg_file})
    assert isinstance(loss, Lpips)
    assert_a_distance(loss)
    assert loss.lpips.net.state_dict()["slice1.0.weight"].equal(torch.load(vgg_file)["features.0.weight"])


def test_a_classifiers_logits_from_a_local_file(resnet_file):
    loss = build(PERCEPTUAL, {"type": "logits", "model": "resnet50", "weights": resnet_file, "size": 32})
    assert_a_distance(loss)
    a, b = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    net = models.resnet50(weights=None)
    net.load_state_dict(torch.load(resnet_file))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    logits = [net.eval()((x / 2 + 0.5 - mean[:, None, None]) / std[:, None, None]) for x in (a, b)]
    torch.testing.assert_close(loss(a, b), (logits[0] - logits[1]).square().mean())


def test_the_small_classifiers_distance_needs_no_download(classifier_folder):
    assert_a_distance(build(PERCEPTUAL, {"type": "classifier", "path": classifier_folder}))


def test_both_is_a_weighted_sum(vgg_file, resnet_file):
    loss = Both(
        {"type": "lpips", "weights": vgg_file},
        {"type": "logits", "model": "resnet50", "weights": resnet_file, "size": 32},
        0.25,
    )
    a, b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(loss(a, b), loss.first(a, b) + 0.25 * loss.second(a, b))
    assert_a_distance(loss)


def test_grey_images_are_seen_as_colour(vgg_file):
    loss = Lpips(vgg_file)
    a, b = torch.rand(2, 1, 1, 32, 32)
    torch.testing.assert_close(loss(a, b), loss(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)))
    assert imagenet_input(a, 24).shape == (1, 3, 24, 24)


def test_weights_that_are_not_to_be_had_are_told_both_ways(tmp_path, monkeypatch, vgg_file, resnet_file):
    with pytest.raises(ValueError, match=r"let torchvision download.*vgg16-397923af\.pth as weights=PATH"):
        Lpips(str(tmp_path / "missing.pth"))

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"convnext_small-0c510722\.pth as weights=PATH.*classifier.*no route to host"):
        Logits()
    wrong = tmp_path / "wrong.pth"
    torch.save({"a": torch.zeros(1)}, wrong)
    with pytest.raises(ValueError, match=r"not VGG-16's: features\.0\.weight"):
        Lpips(str(wrong))
    with pytest.raises(ValueError, match="do not fit resnet50"):
        Logits("resnet50", str(wrong))
    for text in ("<html>", "hello"):  # the second is a KeyError of the unpickler's
        wrong.write_text(text)
        with pytest.raises(ValueError, match="weights=PATH"):
            Lpips(str(wrong))


# -------------------------------------------------------------------------------------------------------- teachers


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("vit_b_32", 768), ("mobilenet_v3_small", 576)])
def test_torchvisions_features_on_the_grid_asked_for(tmp_path, name, features):
    path = tmp_path / "weights.pth"
    torch.save(models.get_model(name, weights=None).state_dict(), path)
    teacher = build(TEACHERS, {"type": "torchvision", "model": name, "weights": str(path)})
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    found = teacher.train()(pixels, (5, 4))
    assert found.shape == (2, features, 5, 4)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    own = teacher(pixels, (7, 7))
    torch.testing.assert_close(own, teacher.features(pixels))
    torch.testing.assert_close(own[1:], teacher(pixels[1:], (7, 7)), atol=1e-4, rtol=1e-4)  # each image on its own
    assert not teacher.training


def test_a_torchscript_teacher_gives_a_grid_of_features(tmp_path):
    path = str(tmp_path / "teacher.pt")
    torch.jit.script(nn.Conv2d(3, 6, 4, stride=4)).save(path)
    teacher = build(TEACHERS, {"type": "torchscript", "path": path})
    assert teacher(torch.randn(2, 3, 16, 16), (4, 4)).shape == (2, 6, 4, 4)
    assert teacher(torch.randn(2, 3, 16, 16), (2, 2)).shape == (2, 6, 2, 2)
    torch.jit.script(nn.Flatten()).save(path)
    with pytest.raises(ValueError, match=r"returned \(2, 768\); it must return features \(b, d, h, w\)"):
        build(TEACHERS, {"type": "torchscript", "path": path})(torch.randn(2, 3, 16, 16), (4, 4))
    with pytest.raises(ValueError, match="is not a TorchScript file"):
        build(TEACHERS, {"type": "torchscript", "path": str(tmp_path / "none.pt")})


def test_the_small_classifier_is_a_teacher(classifier_folder):
    teacher = build(TEACHER, {"type": "classifier", "path": classifier_folder})
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    assert teacher(pixels, (8, 8)).shape == (2, 24, 8, 8)
    torch.testing.assert_close(teacher(pixels, (4, 4)).mean((2, 3)), teacher.network.features(pixels))


def test_an_unknown_model_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'resnet5'.*did you mean 'resnet5"):
        build(TEACHERS, {"type": "torchvision", "model": "resnet5"})


def test_parts_inside_parts_are_checked():
    def stage(perceptual_network: Annotated[Any, PERCEPTUAL]):
        pass

    good = check(
        stage, {"perceptual_network": {"type": "both", "second": {"type": "logits", "model": "resnet50"}}}, "x"
    )
    assert good["perceptual_network"]["second"] == {"type": "logits", "model": "resnet50"}
    with pytest.raises(ConfigError, match=r"perceptual_network.second.modle: unknown key; did you mean 'model'"):
        check(stage, {"perceptual_network": {"type": "both", "second": {"type": "logits", "modle": "a"}}}, "x")


# ------------------------------------------------------------------------------------------------------ adversarial


def test_discriminator_losses_are_their_formulas():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5 * (0.25 + 0.75))
    assert generator_loss(fake, "hinge").item() == pytest.approx(0.75)
    soft = torch.nn.functional.softplus
    expected = 0.5 * (soft(-real).mean() + soft(fake).mean())
    assert discriminator_loss(real, fake, "non_saturating").item() == pytest.approx(expected.item())
    assert generator_loss(fake, "non_saturating").item() == pytest.approx(soft(-fake).mean().item())


def test_lecam_holds_each_side_to_the_others_anchor():
    real, fake = torch.tensor([2.0, -3.0]), torch.tensor([-1.0, 4.0])
    anchor_real, anchor_fake = torch.tensor(1.0), torch.tensor(-0.5)
    # real 2 is 2.5 above fake's anchor, -3 is on the wrong side; fake -1 is 2 below real's anchor, 4 on the wrong side
    assert lecam_loss(real, fake, anchor_real, anchor_fake).item() == pytest.approx(2.5**2 / 2 + 2**2 / 2)


def test_lecams_anchors_are_moving_averages_and_saved():
    model = PatchDiscriminator(3, 4, 1)
    for _ in range(3):
        model.follow(torch.full((2, 1, 3, 3), 2.0), torch.full((2, 1, 3, 3), -4.0), 0.5)
    assert model.anchor_real.item() == pytest.approx(2 * (1 - 0.5**3))
    assert model.anchor_fake.item() == pytest.approx(-4 * (1 - 0.5**3))
    assert {"anchor_real", "anchor_fake"} <= set(model.state_dict())


def test_r1_is_the_squared_slope_at_real_images_and_can_be_differentiated():
    weight = torch.tensor([3.0, -1.0, 2.0], requires_grad=True)
    pixels = torch.randn(4, 3, 5, 5, requires_grad=True)
    logits = (weight[:, None, None] * pixels).sum(1, keepdim=True)
    penalty = r1_penalty(logits, pixels)
    assert penalty.item() == pytest.approx(14 / 25)  # each logit's weight is 1 / 25, and there are 25 of slope w / 25
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach() / 25)


def test_discriminator_is_local_and_takes_any_size():
    model = PatchDiscriminator(3, 8, 2)
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 1, 6, 10)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_discriminator_too_deep_for_its_images_is_refused(layers):
    model, least = PatchDiscriminator(3, 4, layers), 3 * 2**layers
    model.check_size((least, least))
    assert model(torch.randn(1, 3, least, least)).shape == (1, 1, 1, 1)
    advice = f"give layers={layers - 1}" if layers > 1 else "no discriminator"
    with pytest.raises(ValueError, match=f"layers={layers} needs images of at least {least}x{least}.*{advice}"):
        model.check_size((least - 1, least))
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 3, least - 1, least))


def test_widths_that_group_norm_cannot_take_are_refused():
    with pytest.raises(ValueError, match=r"width must be a multiple of 4.*got 6"):
        PatchDiscriminator(3, 6, 2)
    with pytest.raises(ValueError, match="at least 1 layer, got 0"):
        PatchDiscriminator(3, 8, 0)


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_adaptive_weight_is_the_ratio_of_the_last_layers_gradients(scale):
    last = torch.nn.Conv2d(4, 3, 3, padding=1)
    made = last(torch.randn(2, 4, 8, 8))
    target = torch.randn_like(made)
    fit, other = scale * (made - target).abs().mean(), made.square().mean()
    expected = [torch.autograd.grad(x, last.weight, retain_graph=True)[0].norm() for x in (fit, other)]
    at = [torch.autograd.grad(x, made, retain_graph=True)[0] for x in (fit, other)]
    weight = adaptive_weight(made, last.weight, *at)
    torch.testing.assert_close(weight, expected[0] / (expected[1] + 1e-4))


def test_the_adaptive_weight_is_clipped():
    last = torch.ones(1, requires_grad=True)
    made = last * torch.ones(3)
    assert adaptive_weight(made, last, torch.ones(3), torch.zeros(3)) == 1e4
    assert adaptive_weight(made, last, torch.zeros(3), torch.ones(3)) == 0


def test_feature_loss_is_one_less_the_mean_cosine():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])[:, :, None, None]
    b = torch.tensor([[3.0, 0.0], [1.0, 1.0]])[:, :, None, None]
    assert feature_loss(a, b).item() == pytest.approx(1 - (1 + math.sqrt(0.5)) / 2)
