"""Distances against closed forms and torch-fidelity, the names they are reported under, and the small classifier."""

import json
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.evaluation import classifier as C
from maskgen.evaluation import inception
from maskgen.evaluation.fid import fid
from maskgen.evaluation.sources import open_pictures
from maskgen.evaluation.statistics import Gaussian, fit, frechet_distance

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


def test_distance_of_general_gaussians_is_scipys():
    import scipy.linalg

    rng = np.random.default_rng(1)
    a, b = fit(rng.standard_normal((50, 8)) @ rng.standard_normal((8, 8))), fit(rng.standard_normal((40, 8)) + 0.3)
    root = scipy.linalg.sqrtm(a.sigma @ b.sigma).real
    expected = ((a.mu - b.mu) ** 2).sum() + np.trace(a.sigma + b.sigma - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


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


# -------------------------------------------------------------------------------------------------- pictures and FID


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A weights file of torch-fidelity's Inception, its convolutions drawn at random."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """No weights by environment or cache, and no network."""

    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.delenv(inception.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    return tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"


def write_pictures(folder, arrays):
    for i, pixels in enumerate(arrays):
        (folder / f"class-{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"class-{i % 2}" / f"{i:03}.png")
    return folder


def noise(n, seed, size=32, high=256):
    return np.random.default_rng(seed).integers(0, high, (n, size, size, 3), dtype=np.uint8)


def test_fid_agrees_with_torch_fidelity(random_weights, tmp_path):
    """On the same features to 1e-6; and the features are those torch-fidelity takes from the same folder."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id

    folder = write_pictures(tmp_path / "a", noise(8, seed=0))
    stream = [torch.from_numpy(noise(8, seed=1, high=100)).permute(0, 3, 1, 2)]
    report = fid(folder, lambda: stream, weights=str(random_weights), batch_size=5, device="cpu", progress=False)

    network = inception.load_extractor(weights=random_weights, device="cpu")
    a = network.features(open_pictures(folder).read())
    b = network.features(open_pictures(stream).read())
    assert report.value == pytest.approx(frechet_distance(fit(a), fit(b)), rel=1e-4)  # batches of 5 round otherwise
    assert report.value > 1e-3
    theirs = create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(random_weights), verbose=False
    )
    options = {"cuda": False, "batch_size": 8, "samples_find_deep": True, "verbose": False, "save_cpu_ram": True}
    same = extract_featuresdict_from_input_id(1, theirs, input1=str(folder), **options)["2048"]
    np.testing.assert_allclose(np.sort(a, axis=0), np.sort(same.numpy(), axis=0), rtol=1e-4, atol=1e-5)

    few = slice(0, 2048, 400)  # 6 of the features, so that covariances have full rank and roots are well-conditioned
    x, y = (torch.from_numpy(f[:, few]).double() for f in (a, b))
    expected = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False)
    assert frechet_distance(fit(x), fit(y)) == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


def test_only_the_published_weights_make_an_fid(random_weights, no_weights, monkeypatch):
    stream = [noise(2, seed=0)]
    given = fid(stream, stream, weights=str(random_weights), device="cpu", progress=False)
    sha256 = inception.sha256_of(random_weights)
    assert given.metric == f"frechet_distance[inception-v3-compat/{sha256[:8]}]"
    assert "fid" not in str(given).lower()
    assert (given.count_a, given.count_b, given.weights_sha256) == (2, 2, sha256)
    assert "299x299" in given.resize
    assert any("2 pictures for 2048 features" in warning for warning in given.warnings)
    assert json.loads(given.to_json())["metric"] == given.metric

    # Were this file the published one, found in torch hub's cache, the metric would be FID.
    no_weights.parent.mkdir(parents=True)
    no_weights.write_bytes(random_weights.read_bytes())
    with pytest.raises(ValueError, match="is not the file published at"):
        inception.weights_file()
    monkeypatch.setattr(inception, "PUBLISHED_SHA256", sha256)
    assert inception.weights_file() == no_weights
    network = inception.Extractor(None, inception.STANDARD, sha256, torch.device("cpu"))
    assert network.metric == "fid"
    assert inception.Extractor(None, "vgg16", None, torch.device("cpu")).metric == "frechet_distance[vgg16]"


def test_without_weights_both_ways_to_them_are_named(no_weights):
    stream = [noise(4, seed=0)]
    with pytest.raises(RuntimeError) as error:
        fid(stream, stream, device="cpu", progress=False)
    for part in (
        "no route to host",
        "internet",
        "`weights`",
        "MASKGEN_INCEPTION_WEIGHTS",
        "github.com",
        str(no_weights),
    ):
        assert part in str(error.value)
    assert not no_weights.exists()


def test_wrong_weights_are_refused(tmp_path, monkeypatch, random_weights):
    text, other = tmp_path / "text.pth", tmp_path / "other.pth"
    text.write_text("not weights")
    torch.save({"layer.weight": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match=r"text.pth cannot be read as a file of weights"):
        inception.load_extractor(weights=text)
    with pytest.raises(ValueError, match=r"other.pth holds the weights of another network"):
        inception.load_extractor(weights=other)
    monkeypatch.setenv(inception.WEIGHTS_VARIABLE, str(tmp_path / "gone.pth"))
    with pytest.raises(ValueError, match=r"\$MASKGEN_INCEPTION_WEIGHTS names .*gone.pth, which is no file"):
        inception.load_extractor()
    with pytest.raises(ValueError, match="unknown feature extractor 'inception'; choose one of clip-"):
        inception.load_extractor("inception")
    with pytest.raises(ValueError, match="vgg16 loads its own"):
        inception.load_extractor("vgg16", weights=random_weights)
    monkeypatch.setenv(inception.WEIGHTS_VARIABLE, str(random_weights))
    assert inception.weights_file() == random_weights


def test_a_file_of_weights_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read as a file of weights"):
        inception.load_extractor(weights=tmp_path / "evil.pth")
    assert not (tmp_path / "run").exists()


def test_a_folder_may_mix_sizes_and_modes(tmp_path):
    folder = write_pictures(tmp_path, [*noise(3, 0), *noise(2, 1, size=16), *noise(2, 2)[..., 0]])
    pictures = open_pictures(folder, batch_size=2)
    batches = list(pictures.read())
    assert sorted(tuple(batch.shape) for batch in batches) == [(1, 3, 32, 32), (2, 3, 16, 16)] + [(2, 3, 32, 32)] * 2
    assert pictures.notes["grey pictures converted to RGB"] == 2
    assert pictures.notes["picture sizes in one folder, each resized on its own"] == 2
    limited = list(open_pictures(folder, limit=4).read())
    assert sum(map(len, limited)) == 4


def test_an_npz_gives_pictures_or_statistics(tmp_path):
    images = noise(5, 0)
    np.savez(tmp_path / "images.npz", arr_0=images)
    read = torch.cat(list(open_pictures(tmp_path / "images.npz", batch_size=2).read()))
    assert torch.equal(read, torch.from_numpy(images).permute(0, 3, 1, 2))
    np.savez(tmp_path / "a.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3))
    np.savez(tmp_path / "b.npz", mu=np.ones(3), sigma=4 * np.eye(3))
    report = fid(tmp_path / "a.npz", str(tmp_path / "b.npz"))  # needs no network
    assert report.value == pytest.approx(6)
    assert report.metric == "frechet_distance[statistics]"
    assert report.count_a is None
    assert "unknown number" in str(report)


def test_statistics_are_not_compared_in_other_features(tmp_path, random_weights):
    np.savez(tmp_path / "a.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match=r"holds only mu and sigma.*inception-v3-compat/"):
        fid(tmp_path / "a.npz", [noise(2, 0)], weights=random_weights, device="cpu", progress=False)


def test_a_pipeline_draws_its_classes_in_turn_with_a_seed_per_picture():
    """The picture's colour says what it was asked for, so the batches show the calls."""

    class Oracle:
        class_names = ("a", "b", "c")

        def __call__(self, class_labels, generator, output_type, guidance_scale):
            assert output_type == "np"
            assert guidance_scale == 2
            colours = [(label / 255, g.initial_seed() / 255, 1.0) for label, g in zip(class_labels, generator)]
            return SimpleNamespace(images=np.broadcast_to(np.array(colours)[:, None, None], (len(colours), 4, 4, 3)))

    pictures = open_pictures(Oracle(), batch_size=3, num_samples=7, seed=5, pipeline_options={"guidance_scale": 2})
    pixels = torch.cat(list(pictures.read()))[:, :, 0, 0]
    assert pixels.tolist() == [[i % 3, 5 + i, 255] for i in range(7)]
    assert "3 classes in turn" in str(pictures.notes)


def test_a_data_set_is_read_back_as_its_pictures():
    class Set(list):
        class_names = ("a",)

    images = noise(5, 0)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    batches = open_pictures(Set({"pixels": p, "label": 0} for p in pixels), batch_size=2).read()
    assert torch.equal(torch.cat(list(batches)), torch.from_numpy(images).permute(0, 3, 1, 2))


def test_bad_pictures_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no pictures; looked in all its folders for .*\.png"):
        open_pictures(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="gone does not exist; give a folder"):
        fid(tmp_path / "gone", tmp_path / "gone")
    folder = write_pictures(tmp_path / "some", noise(1, 0))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"cannot read the picture .*broken\.png"):
        list(open_pictures(folder).read())
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "broken.png")
    with pytest.raises(ValueError, match=r"broken\.png has more than 8 bits a channel"):
        list(open_pictures(folder).read())
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.npz is no \.npz file"):
        open_pictures(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz holds x; expected `arr_0` or `images`, or `mu` and `sigma`"):
        open_pictures(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"uint8 .* got a Tensor, torch.float32, \(2, 3, 4, 4\)"):
        list(open_pictures([torch.zeros(2, 3, 4, 4)]).read())
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        fid(folder, folder, limit=0)


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
    with pytest.raises(ValueError, match="two disjoint sets of 150 need 300 real pictures, got 200"):
        C.real_vs_real(model, real, count=150)


def test_classifier_is_the_same_after_saving_and_for_the_same_seed(trained, tmp_path):
    model, facts = trained
    C.save_classifier(model, tmp_path, accuracy=facts["accuracy"])
    loaded, pixels = C.load_classifier(tmp_path), Bars(6).pixels
    assert loaded.name == model.name
    torch.testing.assert_close(loaded(pixels), model(pixels))
    assert json.loads((tmp_path / "classifier.json").read_text())["accuracy"] == facts["accuracy"]
    with pytest.raises(FileNotFoundError, match=r"holds no classifier\.json"):
        C.load_classifier(tmp_path / "elsewhere")
    short = [C.train_classifier(Bars(60), steps=2, seed=s, progress=False)[0].name for s in (0, 0, 1)]
    assert short[0] == short[1] != short[2]


def test_held_out_pictures_are_a_share_of_each_class():
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 20)
    train, held = C.split(labels, holdout=0.1)
    assert sorted(torch.cat([train, held]).tolist()) == list(range(160))
    assert labels[held].bincount().tolist() == [10, 4, 2]


def test_classifier_refuses_what_it_cannot_learn():
    one = Bars(30)
    one.class_names = ("all",)
    with pytest.raises(ValueError, match=r"at least 2 classes, from 0; got 1 class names and labels 0..2"):
        C.train_classifier(one, steps=1)
    with pytest.raises(ValueError, match="5 pictures leave none to hold out"):
        C.train_classifier(Bars(5), steps=1)
    with pytest.raises(ValueError, match="holdout must be above 0"):
        C.train_classifier(Bars(30), steps=1, holdout=0.0)
    with pytest.raises(ValueError, match="steps=0 must be above 0"):
        C.train_classifier(Bars(30), steps=0)


def test_augmentation_keeps_the_picture():
    """Shifts and a patch leave most of a bright square where it was, and never mirror a lopsided picture."""
    pixels = torch.full((64, 1, 16, 16), -1.0)
    pixels[:, :, :, 8:] = 1.0
    out = C.augment(pixels)
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
