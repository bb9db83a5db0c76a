"""What is to be predicted: pixels, histograms, features, codes, and their normalisers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskgen.config import ConfigError, check
from maskgen.mim.core import MaskedModeling
from maskgen.mim.hog import HOG, hog
from maskgen.mim.targets import (
    Bits,
    CentredSoftmax,
    Codes,
    Features,
    Latents,
    Pixels,
    denormalised,
    guessed,
    normalised,
    patchify,
    statistics,
    unpatchify,
)

IMAGE, VIDEO = (2, 3, 8, 12), (2, 3, 4, 8, 12)


# --- Pixels.


@pytest.mark.parametrize(
    ("shape", "grid", "frames"), [(IMAGE, (2, 3), 1), (VIDEO, (2, 2, 3), 2), (VIDEO, (4, 2, 3), 1)]
)
def test_patches_are_unfolded_and_folded_back(shape, grid, frames):
    pixels = torch.randn(shape)
    patches = patchify(pixels, 4, frames)
    assert patches.shape == (2, math.prod(grid), frames * 4 * 4 * 3)
    assert unpatchify(patches, grid, 4, frames).equal(pixels)


def test_order_in_a_patch_is_rows_columns_channels():
    """As MAE; and tokens run along the rows of the grid."""
    pixels = torch.arange(3 * 4 * 6).view(1, 3, 4, 6).float()
    second = patchify(pixels, 2)[0, 1].view(2, 2, 3)
    assert second.equal(pixels[0, :, :2, 2:4].permute(1, 2, 0))


def test_order_in_a_cube_has_frames_first():
    pixels = torch.arange(3 * 2 * 2 * 4).view(1, 3, 2, 2, 4).float()
    second = patchify(pixels, 2, 2)[0, 1].view(2, 2, 2, 3)
    assert second.equal(pixels[0, :, :, :, 2:].permute(1, 2, 3, 0))


@pytest.mark.parametrize("pixels", [torch.zeros(1, 3, 10, 8), torch.zeros(1, 3, 3, 8, 8)])
def test_pixels_that_are_no_whole_tokens_are_refused(pixels):
    with pytest.raises(ValueError, match="not whole tokens of 2 frames and 4 x 4"):
        Pixels(4, frames=2)(pixels)


def test_one_patch_normalises_all_channels_together():
    """Channels of different mean keep their difference, and the variance is unbiased."""
    target = Pixels(4, normalise="patch")(torch.randn(IMAGE) + torch.tensor([0.0, 5.0, 9.0]).view(3, 1, 1))
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(-1), torch.ones(2, 6), atol=1e-5, rtol=0)
    assert (target.unflatten(-1, (-1, 3)).mean(-2).diff() > 0.5).all()


def test_patch_channel_normalises_each_channel():
    target = Pixels(4, normalise="patch_channel")(torch.randn(IMAGE) + torch.tensor([0.0, 5.0, 9.0]).view(3, 1, 1))
    channels = target.unflatten(-1, (-1, 3))
    torch.testing.assert_close(channels.mean(-2), torch.zeros(2, 6, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(channels.var(-2), torch.ones(2, 6, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("normalise", "scale"), [("patch", 1e-3), ("patch_channel", 1e-6)])
def test_a_flat_patch_is_divided_by_epsilon(normalise, scale):
    """Inside the square root (MAE) or beside it (VideoMAE): a thousand times apart where it matters."""
    by = statistics(torch.full((1, 1, 48), 0.5), normalise)
    assert by.scale.flatten().tolist() == pytest.approx([scale] * by.scale.numel(), rel=1e-5)


def test_half_precision_pixels_are_normalised_in_float32():
    pixels = torch.randn(IMAGE).half()
    assert Pixels(4)(pixels).equal(Pixels(4)(pixels.float()))


@pytest.mark.parametrize("normalise", ["none", "patch", "patch_channel"])
def test_denormalising_by_given_statistics_undoes_normalising(normalise):
    patches = patchify(torch.randn(IMAGE), 4)
    by = statistics(patches, normalise)
    torch.testing.assert_close(denormalised(normalised(patches, by), by), patches, atol=1e-5, rtol=0)


def scene(shape=IMAGE):
    """Pixels, and a mask of tokens with one image half hidden."""
    hidden = torch.zeros(2, math.prod(shape[2:]) // 16 // (1 if len(shape) == 4 else 2), dtype=torch.bool)
    hidden[:, ::2] = True
    return 2 + torch.randn(shape), hidden


@pytest.mark.parametrize("normalise", ["none", "patch", "patch_channel"])
@pytest.mark.parametrize(("shape", "first_frame"), [(IMAGE, False), (VIDEO, False), (VIDEO, True)])
def test_no_hidden_pixel_reaches_a_image(normalise, shape, first_frame):
    """Not even their mean and contrast, which an image of normalised predictions needs from somewhere."""
    pixels, hidden = scene(shape)
    target = Pixels(4, 1 if len(shape) == 4 else 2, normalise, first_frame)
    predictions = target(pixels)
    patches = patchify(pixels, 4, target.frames)
    grid = (2, 3) if len(shape) == 4 else (2, 2, 3)
    for other in (7 * patches - 3, torch.full_like(patches, torch.inf)):
        changed = unpatchify(torch.where(hidden[..., None], other, patches), grid, 4, target.frames)
        assert target.image(predictions, changed, hidden).equal(target.image(predictions, pixels, hidden))


def test_peeking_gives_the_true_image_and_not_peeking_another():
    pixels, hidden = scene()
    target = Pixels(4)
    torch.testing.assert_close(target.image(target(pixels), pixels, hidden, peek=True), pixels, atol=1e-5, rtol=0)
    blind = target.image(target(pixels), pixels, hidden)
    apart = (patchify(blind, 4) - patchify(pixels, 4)).abs().amax(-1)
    assert (apart[hidden] > 0.01).all()
    assert (apart[~hidden] == 0).all()


@pytest.mark.parametrize("normalise", ["none", "patch", "patch_channel"])
def test_the_first_frames_alone_are_images_of_their_own(normalise):
    """Statistics too are the first frame's; what is shown of a hidden cube is that frame, held."""
    pixels, hidden = scene(VIDEO)
    target = Pixels(4, 2, normalise, first_frame=True)
    assert target(pixels).equal(Pixels(4, 1, normalise)(pixels[:, :, ::2]))
    shown = target.image(target(pixels), pixels, hidden, peek=True)
    torch.testing.assert_close(shown[:, :, ::2], pixels[:, :, ::2], atol=1e-5, rtol=0)
    cubes = patchify(shown, 4, 2).unflatten(-1, (2, -1))
    assert cubes[:, :, 0][hidden].equal(cubes[:, :, 1][hidden])
    visible = patchify(pixels, 4, 2).unflatten(-1, (2, -1))[~hidden]
    assert cubes[~hidden].equal(visible)


def test_images_of_raw_pixels_are_the_predictions():
    pixels, hidden = scene()
    predictions = torch.randn(2, 6, 48)
    shown = patchify(Pixels(4, normalise="none").image(predictions, pixels, hidden), 4)
    assert shown.equal(torch.where(hidden[..., None], predictions, patchify(pixels, 4)))


def test_guesses_lie_between_the_visible_and_near_the_nearest():
    hidden = torch.tensor([[False, True, True, True, False], [True] * 5])
    by = statistics(torch.stack([torch.full((5, 48), x) for x in (0.0, 1.0)]), "none")
    by = by._replace(mean=torch.tensor([0.0, 9.0, 9.0, 9.0, 1.0]).expand(2, 5)[..., None])
    found = guessed(by, hidden, (1, 5)).mean[..., 0]
    near = (1 / 9) / (1 + 1 / 9)  # weights 1 / distance^2: 1 of the first, 1 / 9 of the last
    assert found[0].tolist() == pytest.approx([0, near, 0.5, 1 - near, 1])
    assert found[1].tolist() == [0] * 5  # all hidden: nothing is known
    assert guessed(by, hidden, (1, 5)).scale[1].tolist() == [[1]] * 5


# --- Histograms of oriented gradients.


def ramp(degrees: float) -> torch.Tensor:
    """Values that rise in one direction, counted from the right over the bottom."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    angle = math.radians(degrees)
    return (x * math.cos(angle) + y * math.sin(angle)).expand(1, 3, -1, -1)


@pytest.mark.parametrize("k", range(9))
def test_a_ramp_has_one_direction_unsigned(k):
    """All in direction k, for the middle of its 20 degrees, and alike when turned by half a circle."""
    for turn in (0, 180):
        found = hog(ramp(90 - 20 * k - 10 + turn))[0, 0, :, 1:3, 1:3]  # borders are reflected, so not a ramp
        assert found.argmax(0).eq(k).all()
        torch.testing.assert_close(found[k], torch.ones(2, 2))


def test_histograms_do_not_see_contrast_or_brightness():
    pixels = torch.rand(2, 3, 16, 24)
    scales = torch.tensor([2.0, 0.5, 4.0]).view(3, 1, 1)
    torch.testing.assert_close(hog(pixels * scales + 1), hog(pixels), atol=1e-3, rtol=0)
    norms = hog(pixels).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_flat_cells_have_no_histogram():
    assert hog(torch.full((1, 3, 16, 16), 0.3)).abs().max() == 0


def test_a_window_weighs_the_middle_more():
    """One edge in the middle of the window, one of another direction at its border."""
    pixels = torch.zeros(1, 1, 16, 16)
    pixels[..., 8:, :] += 1  # a vertical gradient at rows 7, 8
    pixels[..., :, 14:] += 1  # a horizontal one at columns 13, 14
    plain, windowed = hog(pixels, cell=16), hog(pixels, cell=16, window=16)
    vertical, horizontal = (int(hog(ramp(x))[0, 0, :, 1, 1].argmax()) for x in (90, 0))
    (share, windowed_share) = (x[0, 0, vertical, 0, 0] / x[0, 0, horizontal, 0, 0] for x in (plain, windowed))
    assert share.item() == pytest.approx(1, abs=0.1)
    assert windowed_share > 1.15


def test_target_tokens_are_the_cells_of_their_patch():
    pixels = torch.rand(2, 3, 32, 48)
    found, cells = HOG(16)(pixels), hog(pixels)
    assert found.shape == (2, 6, 108)
    assert found[:, 4].equal(cells[..., 2:4, 2:4].flatten(1))  # row 1, column 1 of 2 x 3 tokens


def test_a_video_token_has_its_first_frame():
    video = torch.rand(2, 3, 4, 16, 32)
    found = HOG(16, frames=2)(video)
    assert found.equal(torch.cat([HOG(16)(video[:, :, 0]), HOG(16)(video[:, :, 2])], dim=1))


def test_histograms_of_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"patch 12.*cell 8.*4"):
        HOG(12)
    with pytest.raises(ValueError, match="not whole tokens of 1 frames and 16 x 16"):
        HOG(16)(torch.rand(1, 3, 24, 32))
    with pytest.raises(ValueError, match="not whole windows of 16"):
        hog(torch.rand(1, 3, 24, 32), window=16)


# --- Features.


def test_features_become_tokens_in_row_major_order():
    features = torch.randn(2, 5, 3, 4)
    assert Features("none")(features).equal(features.flatten(2).transpose(1, 2))
    assert Features("none")(features)[1, 5].equal(features[1, :, 1, 1])


def test_features_are_normalised_as_torch_does():
    features = 3 * torch.randn(2, 5, 3, 4) + 1
    tokens = features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(Features("layer_norm")(features), nn.LayerNorm(5)(tokens).detach())
    torch.testing.assert_close(Features("instance_norm")(features), nn.InstanceNorm2d(5)(features).flatten(2).mT)
    norms = Features("l2")(features).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    torch.testing.assert_close(F.cosine_similarity(Features("l2")(features), tokens, -1), torch.ones(2, 12))


def test_the_last_layers_are_averaged_after_their_norm():
    layers = [10.0**i * torch.randn(2, 5, 3, 4) for i in range(4)]
    each = [Features("layer_norm")(x) for x in layers]
    torch.testing.assert_close(Features("layer_norm", layers=3)(layers), sum(each[1:]) / 3)
    assert Features("layer_norm")(layers).equal(each[-1])
    joined = Features("layer_norm", layers=2, join="concatenate")(layers)
    assert joined.equal(torch.cat(each[-2:], -1))
    with pytest.raises(ValueError, match=r"5.* 4.*teacher\.layers"):
        Features(layers=5)(layers)


def test_features_carry_no_gradient():
    assert not Features()(torch.randn(1, 4, 2, 2, requires_grad=True)).requires_grad


def test_centre_follows_the_mean_of_the_logits_in_training_only():
    softmax = CentredSoftmax(6, momentum=0.8)
    logits = torch.randn(3, 6, 2, 2) + torch.arange(6.0).view(6, 1, 1)
    mean = logits.mean((0, 2, 3))
    softmax.eval()(logits)
    assert softmax.centre.abs().max() == 0
    for i in range(1, 4):
        softmax.train()(logits)
        torch.testing.assert_close(softmax.centre, (1 - 0.8**i) * mean)


def test_a_call_uses_the_centre_from_before_it():
    softmax = CentredSoftmax(6, temperature=0.5)
    logits = torch.randn(3, 6)
    torch.testing.assert_close(softmax(logits), (logits / 0.5).softmax(-1))
    centre = softmax.centre.clone()
    torch.testing.assert_close(softmax(logits), ((logits - centre) / 0.5).softmax(-1))


def test_centring_takes_off_what_all_tokens_share():
    """A logit that leads everywhere leads nowhere: the way to collapse is shut."""
    softmax = CentredSoftmax(6, momentum=0.0)
    logits = 0.1 * torch.randn(64, 6) + torch.tensor([5.0, 0, 0, 0, 0, 0])
    assert softmax(logits)[:, 0].min() > 0.99
    assert softmax(logits).argmax(-1).bincount(minlength=6).max() < 32


def test_teacher_temperature_warms_up_by_calls():
    softmax = CentredSoftmax(4, temperature=0.07, first_temperature=0.04, warmup=3)
    found = []
    for _ in range(6):
        found.append(softmax.temperature().item())
        softmax(torch.randn(2, 4))
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert CentredSoftmax(4).temperature().item() == pytest.approx(0.07)


def test_centre_and_temperature_resume():
    softmax = CentredSoftmax(4, warmup=3)
    softmax(torch.randn(8, 4))
    again = CentredSoftmax(4, warmup=3)
    again.load_state_dict(softmax.state_dict())
    logits = torch.randn(8, 4)
    assert again.eval()(logits).equal(softmax.eval()(logits))


def test_temperatures_must_be_positive():
    with pytest.raises(ValueError, match=r"temperatures.*positive.* 0\.0.*0\.07"):
        CentredSoftmax(4, first_temperature=0.0)


# --- Tokens.


def test_bits_are_the_codes():
    codes = torch.randint(64, (2, 3, 4))
    bits = Bits(6)(codes)
    assert bits.shape == (2, 12, 6)
    assert (bits @ 2.0 ** torch.arange(6)).long().equal(codes.flatten(1))
    assert Bits(3)(torch.tensor([[1, 4]])).tolist() == [[[1, 0, 0], [0, 0, 1]]]


def test_codes_and_latents_are_targets_as_they_are():
    codes, latents = torch.randint(9, (2, 3, 4)), torch.randn(2, 3, 4, 5)
    assert Codes()(codes).equal(codes.flatten(1))
    assert Latents()(latents).equal(latents.view(2, 12, 5))


def test_a_configuration_names_targets():
    settings = {"target": {"type": "pixels", "patch": 8, "normalise": "patch_channel"}, "objective": "mse"}
    core = MaskedModeling(**check(MaskedModeling, settings, "here"))
    assert core.target.normalise == "patch_channel"
    with pytest.raises(ConfigError, match="normalise"):
        check(MaskedModeling, {"target": {"type": "pixels", "normalise": "chanel"}}, "here")
