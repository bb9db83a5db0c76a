"""Inception and its weights, offline: agreement with torch-fidelity, names, resizes, and where weights come from."""

import json
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from typer.testing import CliRunner

from maskgen.cli import app
from maskgen.evaluation.fid import inception as inception
from maskgen.evaluation.fid.evaluate import evaluate
from maskgen.evaluation.fid.inception import CleanInception, Extractor, clean_resize, load_extractor


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


def noise(n, seed, size=32, high=256):
    return np.random.default_rng(seed).integers(0, high, (n, size, size, 3), dtype=np.uint8)


def write_images(folder, arrays):
    folder.mkdir()
    for i, pixels in enumerate(arrays):
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return folder


class Quarters(FeatureExtractorBase):
    """Six features and five logits of an image: linear in its four quarters, about 0."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(0)
        self.weights = {"6": torch.randn(12, 6, generator=generator), "logits": torch.randn(12, 5, generator=generator)}

    def forward(self, x):
        pooled = torch.nn.functional.adaptive_avg_pool2d(x.float() - 128, 2).flatten(1) / 8
        return tuple(pooled @ self.weights[layer] for layer in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "6", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "6"

    @staticmethod
    def can_be_compiled():
        return False


@pytest.fixture(scope="module")
def quarters():
    register_feature_extractor("quarters", Quarters)
    yield "quarters"
    del FEATURE_EXTRACTORS_REGISTRY["quarters"]


THEIRS = {
    "frechet_distance": "frechet_inception_distance",
    "score": "inception_score_mean",
    "kernel_distance": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
}


def test_all_metrics_are_torch_fidelitys_on_the_same_folders(quarters, tmp_path):
    """Through its own reading, extraction and arithmetic. Covariances are full, so its FID roots no rounding errors,
    and features lie about 0, because it takes their means in float32."""
    a, b = write_images(tmp_path / "a", noise(60, 0)), write_images(tmp_path / "b", noise(50, 1, high=236))
    theirs = calculate_metrics(
        input1=str(a), input2=str(b), feature_extractor=quarters, isc=True, fid=True, kid=True, prc=True,
        kid_subset_size=50, cuda=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    report = evaluate(a, b, extractor=lambda: load_extractor(quarters, device="cpu"), bootstrap=0, progress=False)
    for name, their_name in THEIRS.items():
        ours = report.metrics[f"{name}[quarters]"]["value"]
        assert ours == pytest.approx(theirs[their_name], rel=1e-6, abs=1e-12), name
        assert ours > 0
    assert report.metrics["score[quarters]"]["std"] == pytest.approx(theirs["inception_score_std"], rel=1e-6)


def test_inception_runs_end_to_end_offline(random_weights, tmp_path):
    """The command on two folders; features, score, KID and manifolds to the last digits of torch-fidelity's own."""
    a, b = write_images(tmp_path / "a", noise(12, 0)), write_images(tmp_path / "b", noise(11, 1, high=100))
    arguments = ["evaluate", str(a), str(b), "--weights", str(random_weights), "--few", "--bootstrap", "3"]
    arguments += ["--out", str(tmp_path / "report.json"), "--work", str(tmp_path / "work"), "--device", "cpu"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    name = f"[inception-v3-compat/{inception.sha256_of(random_weights)[:8]}]"
    assert list(report["metrics"]) == [ours + name for ours in THEIRS]
    theirs = calculate_metrics(
        input1=str(a), input2=str(b), feature_extractor="inception-v3-compat", isc=True, kid=True, prc=True,
        feature_extractor_weights_path=str(random_weights), kid_subset_size=11, cuda=False, save_cpu_ram=True,
        verbose=False,
    )  # fmt: skip
    for ours, their_name in list(THEIRS.items())[1:]:
        assert report["metrics"][ours + name]["value"] == pytest.approx(theirs[their_name], rel=1e-6), ours
    distance = report["metrics"]["frechet_distance" + name]
    assert 0 < distance["interval"][0] < distance["value"] < distance["interval"][1]
    assert "fid" not in done.stdout.lower().replace("fid is biased", "")
    assert "12 images for 2048 features" not in done.stdout  # the fewer count is told
    assert "11 images for 2048 features: strongly biased" in done.stdout
    assert report["extractor"] == {
        "name": "inception-v3-compat",
        "weights_sha256": inception.sha256_of(random_weights),
        "layers": ["2048", "logits_unbiased"],
        "resize": "299x299, bilinear as in TensorFlow 1 (torch-fidelity), no anti-aliasing",
    }
    assert report["samples"]["count"] == 12
    assert report["reference"]["size"] == [32, 32]
    few = CliRunner().invoke(app, [argument for argument in arguments if argument != "--few"])
    assert "12 images for 2,048 features: the covariance is rank-deficient" in str(few.exception)


def test_the_clean_resize_is_pils_on_floats():
    """What rounding after it gives is PIL's own 8-bit resize; a network at 299x299 sees no resize at all."""
    for size in (32, 400):
        pixels = 64 + noise(2, 0, size, high=128)  # no overshoot, which 8 bits would clip between the two passes
        ours = clean_resize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        assert ours.shape == (2, 3, 299, 299)
        theirs = [np.asarray(Image.fromarray(x).resize((299, 299), Image.Resampling.BICUBIC)) for x in pixels]
        assert np.abs(ours.permute(0, 2, 3, 1).round().numpy() - np.stack(theirs)).max() <= 1
        assert ours.min() >= 0
        assert ours.max() <= 255
    flat = clean_resize(torch.full((1, 3, 5, 5), 77, dtype=torch.uint8))
    torch.testing.assert_close(flat, torch.full((1, 3, 299, 299), 77.0))


def test_the_two_resizes_agree_where_there_is_nothing_to_resize(random_weights):
    images = torch.from_numpy(noise(1, 0, 299)).permute(0, 3, 1, 2)
    tensorflow, clean = (
        load_extractor(weights=random_weights, device="cpu", resize=r) for r in ("tensorflow", "clean")
    )
    assert isinstance(clean.module, CleanInception)
    for a, b in zip(tensorflow(images), clean(images)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert clean.metric == tensorflow.metric.replace("]", "/clean]")
    assert "clean-fid" in clean.resize


def test_only_the_published_weights_make_an_fid(random_weights, no_weights, monkeypatch):
    # Were this file the published one, found in torch hub's cache, the metric would be FID.
    sha256 = inception.sha256_of(random_weights)
    no_weights.parent.mkdir(parents=True)
    no_weights.write_bytes(random_weights.read_bytes())
    with pytest.raises(ValueError, match="is not the file published at"):
        inception.weights_file()
    cpu = torch.device("cpu")
    assert Extractor(None, inception.STANDARD, sha256, cpu).metric_name("kid").startswith("kernel_distance[inception")
    monkeypatch.setattr(inception, "PUBLISHED_SHA256", sha256)
    assert inception.weights_file() == no_weights
    network = Extractor(None, inception.STANDARD, sha256, cpu)
    names = ("fid", "fid_infinity", "inception_score", "kid", "precision", "recall")
    assert tuple(map(network.metric_name, inception.NAMES)) == names
    assert Extractor(None, inception.STANDARD, sha256, cpu, resize_mode="clean").metric == "clean_fid"
    assert Extractor(None, "vgg16", None, cpu).metric == "frechet_distance[vgg16]"


def test_without_weights_both_ways_to_them_are_named(no_weights):
    with pytest.raises(RuntimeError) as error:
        evaluate(noise(4, 0), noise(4, 1), ["fid"], few=True, progress=False)
    for part in ("no route to host", "internet", "--weights PATH", "MASKGEN_INCEPTION", "github.com", str(no_weights)):
        assert part in str(error.value)
    assert not no_weights.exists()


def test_wrong_weights_are_refused(tmp_path, monkeypatch, random_weights):
    text, other = tmp_path / "text.pth", tmp_path / "other.pth"
    text.write_text("not weights")
    torch.save({"layer.weight": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match=r"text.pth cannot be read as a file of weights"):
        load_extractor(weights=text)
    with pytest.raises(ValueError, match=r"other.pth holds the weights of another network"):
        load_extractor(weights=other)
    monkeypatch.setenv(inception.WEIGHTS_VARIABLE, str(tmp_path / "gone.pth"))
    with pytest.raises(ValueError, match=r"\$MASKGEN_INCEPTION names .*gone.pth, which is not a file"):
        load_extractor()
    with pytest.raises(ValueError, match="unknown feature extractor 'inception'; choose one of clip-"):
        load_extractor("inception")
    with pytest.raises(ValueError, match="unknown resize 'bicubic'; choose one of tensorflow, clean"):
        load_extractor(resize="bicubic")
    with pytest.raises(ValueError, match="vgg16 has its own"):
        load_extractor("vgg16", weights=random_weights)
    monkeypatch.setenv(inception.WEIGHTS_VARIABLE, str(random_weights))
    assert inception.weights_file() == random_weights


def test_a_file_of_weights_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read as a file of weights"):
        load_extractor(weights=tmp_path / "evil.pth")
    assert not (tmp_path / "run").exists()
