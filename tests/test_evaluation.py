"""Distances against closed forms and ADM's arithmetic, their uncertainty, and the small classifier."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch

from maskgen.evaluation import classifier as C
from maskgen.evaluation.classifier.training import augment
from maskgen.evaluation.fid.metrics import (
    deviation,
    frechet_infinity,
    inception_score,
    kernel_distance,
    precision_recall,
    resampled,
)
from maskgen.evaluation.fid.statistics import BLOCK, Gaussian, fit, frechet_distance

# ------------------------------------------------------------------------------------------------------- statistics


def orthogonal(rng, d):
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def test_distance_of_commuting_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    q = orthogonal(rng, 20)
    x, y = rng.uniform(0.1, 3, 20), rng.uniform(0.1, 3, 20)
    x[:5], y[3:9] = 0, 0  # rank-deficient, in different directions
    a = Gaussian(rng.standard_normal(20), q * x @ q.T)
    b = Gaussian(rng.standard_normal(20), q * y @ q.T)
    expected = ((a.mu - b.mu) ** 2).sum() + ((np.sqrt(x) - np.sqrt(y)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_distance_is_adms_arithmetic():
    """guided-diffusion's evaluator takes scipy's root of the product of the covariances, which have full rank here."""
    rng = np.random.default_rng(1)
    a, b = fit(rng.standard_normal((90, 16)) @ rng.standard_normal((16, 16))), fit(rng.standard_normal((80, 16)) + 0.3)
    root, difference = scipy.linalg.sqrtm(a.sigma.dot(b.sigma)), a.mu - b.mu
    assert np.abs(np.imag(root)).max() < 1e-3
    adm = difference.dot(difference) + np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.trace(root.real)
    assert frechet_distance(a, b) == pytest.approx(adm, rel=1e-6)


def test_the_factor_of_few_samples_changes_no_distance():
    rng = np.random.default_rng(2)
    few, many = fit(rng.standard_normal((7, 20))), fit(rng.standard_normal((50, 20)))
    plain = Gaussian(few.mu, few.sigma)
    assert few.factor is not None
    assert many.factor is None
    for other in (many, fit(rng.standard_normal((9, 20)))):
        assert frechet_distance(few, other) == pytest.approx(frechet_distance(plain, other), rel=1e-9)
        assert frechet_distance(other, few) == pytest.approx(frechet_distance(plain, other), rel=1e-9)


@pytest.mark.parametrize("n", [5, 200])
def test_identical_features_are_at_no_distance(n, caplog):
    gaussian = fit(torch.randn(n, 30))
    assert 0 <= frechet_distance(gaussian, gaussian) < 1e-9 * np.trace(gaussian.sigma)
    assert ("rank-deficient" in caplog.text) == (n <= 30)


def test_a_shift_of_all_features_is_its_squared_length():
    x = torch.randn(100, 6, dtype=torch.float64)
    assert frechet_distance(fit(x), fit(x + 2)) == pytest.approx(24, rel=1e-6)


def test_fit_is_numpys_mean_and_covariance():
    x = np.random.default_rng(0).standard_normal((30, 4))
    gaussian = fit(x)
    np.testing.assert_allclose(gaussian.mu, x.mean(0))
    np.testing.assert_allclose(gaussian.sigma, np.cov(x, rowvar=False))
    assert gaussian.count == 30
    many = np.random.default_rng(1).standard_normal((2 * BLOCK + 5, 3)).astype(np.float32)
    np.testing.assert_allclose(fit(many).sigma, np.cov(many.astype(np.float64), rowvar=False), rtol=1e-9)


def test_bad_statistics_are_refused():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        fit(torch.zeros(1, 3))
    x = torch.zeros(4, 3)
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 4 samples are NaN or infinite .first at index 2"):
        fit(x)
    eye = Gaussian(np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="3 and 2 features; both must come from the same extractor"):
        frechet_distance(eye, Gaussian(np.zeros(2), np.eye(2)))
    with pytest.raises(ValueError, match="negative eigenvalue"):
        frechet_distance(eye, Gaussian(np.zeros(3), np.diag([1.0, 1.0, -0.1])))
    with pytest.raises(ValueError, match="not symmetric"):
        frechet_distance(eye, Gaussian(np.zeros(3), np.eye(3) + np.eye(3, k=1)))


# ---------------------------------------------------------------------------------------------------------- metrics


def draws(n, seed, d=4, shift=0.0):
    return (np.random.default_rng(seed).standard_normal((n, d)) * np.arange(1, d + 1) + shift).astype(np.float32)


def test_the_bootstrap_knows_how_far_another_draw_falls():
    reference = Gaussian(np.full(4, 0.2), np.diag(np.arange(2, 6) ** 2.0))
    real = np.std([frechet_distance(fit(draws(300, seed)), reference) for seed in range(300)])
    found = [deviation(draws(300, 1000 + i), reference, 40, seed=i) for i in range(10)]
    assert np.mean(found) == pytest.approx(real, rel=0.2)


@pytest.mark.parametrize("d", [4, 30])
def test_a_resample_is_the_distance_of_its_repeated_samples(d):
    x, reference = draws(20, 3, d), fit(draws(150, 4, d, shift=0.5))
    counts = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), size=3)
    expected = [frechet_distance(fit(np.repeat(x, row, axis=0)), reference) for row in counts]
    np.testing.assert_allclose(resampled(x, reference, counts), expected, rtol=1e-6)


def test_extrapolation_takes_the_bias_out():
    reference = Gaussian(np.zeros(8), np.diag(np.arange(1, 9) ** 2.0))
    plain = [frechet_distance(fit(draws(800, seed, d=8)), reference) for seed in range(12)]
    infinite = [frechet_infinity(draws(800, seed, d=8), reference)["value"] for seed in range(12)]
    assert abs(np.mean(infinite)) < 0.35 * np.mean(plain)  # the truth is 0
    with pytest.raises(ValueError, match="needs more than 8 there; give over 80, got 80"):
        frechet_infinity(draws(80, 0, d=8), reference)


def test_scores_of_known_logits_are_known():
    sure = np.eye(10, dtype=np.float32)[np.arange(200) % 10] * 100
    assert inception_score(sure, splits=1)["value"] == pytest.approx(10, rel=1e-6)  # ten sure and equal classes
    assert inception_score(np.zeros((40, 10), np.float32))["value"] == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 10 images, got 9"):
        inception_score(sure[:9])


def test_kernel_distance_and_manifolds_of_known_features():
    a, b = draws(200, 0), draws(200, 1)
    assert abs(kernel_distance(a, b)["value"]) < kernel_distance(a, b + 3)["value"]
    assert kernel_distance(a, b[:50])["subset_size"] == 50
    precision, recall = precision_recall(a[:30], a)  # every sample is a reference image
    assert precision["value"] == 1
    assert recall["value"] > 0.5
    assert [r["value"] for r in precision_recall(a, a + 1000)] == [0, 0]
    with pytest.raises(ValueError, match="3 neighbours need more than 3 images on each side, got 3"):
        precision_recall(a[:3], a)


# ------------------------------------------------------------------------------------------------------- classifier


class Bars:
    """Noise with a bright bar that is horizontal, vertical or absent; the label says which."""

    class_names = ("across", "down", "none")

    def __init__(self, n, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(n) % 3
        self.pixels = torch.rand(n, 3, 16, 16, generator=generator) - 1
        for i, at in enumerate(torch.randint(3, 12, (n,), generator=generator).tolist()):
            if self.labels[i] == 0:
                self.pixels[i, :, at : at + 2] += 1
            elif self.labels[i] == 1:
                self.pixels[i, :, :, at : at + 2] += 1

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"pixels": self.pixels[i], "label": int(self.labels[i])}


@pytest.fixture(scope="module")
def trained():
    return C.train_classifier(Bars(240), steps=60, batch_size=32, progress=False)


def test_classifier_learns_and_agrees_with_the_right_labels_only(trained):
    model, facts = trained
    assert facts["accuracy"] > 0.9 > 0.4 > facts["chance"]
    assert (facts["held_out"], facts["steps"]) == (24, 60)
    fresh = Bars(90, seed=1)
    assert C.class_agreement(model, fresh.pixels, fresh.labels) > 0.9
    assert C.class_agreement(model, fresh.pixels, (fresh.labels + 1) % 3) < 0.1


def test_real_is_nearer_to_real_than_noise_is(trained):
    model, _ = trained
    real = Bars(200, seed=2).pixels
    name, floor = C.real_vs_real(model, real)
    assert name == f"frechet_distance[{model.name}]"
    _, far = C.classifier_frechet(model, real[:100], torch.rand(100, 3, 16, 16) * 2 - 1)
    _, one_class = C.classifier_frechet(model, real[:100], real[0:1] + 0.01 * torch.randn(100, 3, 16, 16))
    assert 0 < floor < 0.5 * min(far, one_class)
    with pytest.raises(ValueError, match="need 300 real images, got 200"):
        C.real_vs_real(model, real, count=150)


def test_classifier_is_the_same_after_saving_and_for_the_same_seed(trained, tmp_path):
    model, facts = trained
    C.save_classifier(model, tmp_path, accuracy=facts["accuracy"])
    loaded, pixels = C.load_classifier(tmp_path), Bars(6).pixels
    assert loaded.name == model.name
    torch.testing.assert_close(loaded(pixels), model(pixels))
    assert json.loads((tmp_path / "classifier.json").read_text())["accuracy"] == facts["accuracy"]
    with pytest.raises(FileNotFoundError, match=r"classifier\.json.*save_classifier"):
        C.load_classifier(tmp_path / "elsewhere")
    short = [C.train_classifier(Bars(60), steps=2, seed=s, progress=False)[0].name for s in (0, 0, 1)]
    assert short[0] == short[1] != short[2]


def test_held_out_images_are_a_share_of_each_class():
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 20)
    train, held = C.split(labels, holdout=0.1)
    assert sorted(torch.cat([train, held]).tolist()) == list(range(160))
    assert labels[held].bincount().tolist() == [10, 4, 2]


def test_classifier_refuses_what_it_cannot_learn():
    one = Bars(30)
    one.class_names = ("all",)
    with pytest.raises(ValueError, match=r"at least 2 classes, from 0; got 1 class names and labels 0..2"):
        C.train_classifier(one, steps=1)
    with pytest.raises(ValueError, match=r"holdout.*give at least 10"):
        C.train_classifier(Bars(5), steps=1)
    with pytest.raises(ValueError, match="holdout must be above 0"):
        C.train_classifier(Bars(30), steps=1, holdout=0.0)
    with pytest.raises(ValueError, match=r"steps=0.*must be above 0"):
        C.train_classifier(Bars(30), steps=0)


def test_augmentation_keeps_the_image():
    """Shifts and a patch leave most of a bright square where it was, and never mirror a lopsided image."""
    pixels = torch.full((64, 1, 16, 16), -1.0)
    pixels[:, :, :, 8:] = 1.0
    out = augment(pixels)
    assert out.shape == pixels.shape
    assert not torch.equal(out[0], out[1])
    assert (out[..., :8].mean(dim=(1, 2, 3)) < out[..., 8:].mean(dim=(1, 2, 3))).all()
    assert (out == pixels).float().mean() > 0.75


def test_nearest_neighbour_finds_copies():
    real = torch.rand(20, 3, 8, 8) * 2 - 1
    fake = torch.stack([real[7], real[3] + 0.1, -torch.ones(3, 8, 8)])
    distance, index = C.nearest_neighbour_distance(fake, real)
    assert index[:2].tolist() == [7, 3]
    assert distance[0] == 0
    assert distance[1] == pytest.approx(0.1, rel=1e-4)
    expected = (real + 1).square().flatten(1).mean(1).sqrt()
    assert distance[2] == pytest.approx(float(expected.min()), rel=1e-4)
    assert index[2] == expected.argmin()
