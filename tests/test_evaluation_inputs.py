"""What may be evaluated: folders, archives, arrays, data sets, others' statistics; and what is refused, and how."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.data import Emoji
from maskgen.evaluation.fid.evaluate import evaluate
from maskgen.evaluation.fid.inception import STANDARD, Extractor
from maskgen.evaluation.fid.metrics import frechet_infinity
from maskgen.evaluation.fid.opening import open_source
from maskgen.evaluation.fid.sources import Reading
from maskgen.evaluation.fid.statistics import fit, frechet_distance


def noise(n, seed, size=8, high=256):
    return np.random.default_rng(seed).integers(0, high, (n, size, size, 3), dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_images(folder, arrays):
    for i, pixels in enumerate(arrays):
        (folder / f"class-{i % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"class-{i % 2}" / f"{i:03}.png").write_bytes(png(pixels))
    return folder


def everything(source, **reading):
    images = open_source(source, Reading(**reading)).images
    return images.read(0, images.count)


class Corners:
    """A network whose features are the means of the four quarters, and its logits the same."""

    def __call__(self, batch):
        assert batch.dtype == torch.uint8
        features = torch.nn.functional.adaptive_avg_pool2d(batch.float().mean(1, keepdim=True), 2).flatten(1) / 64
        return features, features


def corners():
    return Extractor(Corners(), "corners", None, torch.device("cpu"), ("quarters",))


def published(monkeypatch):
    """The same network as if it were Inception with the published weights."""
    monkeypatch.setattr("maskgen.evaluation.fid.inception.PUBLISHED_SHA256", "0" * 64)
    return Extractor(Corners(), STANDARD, "0" * 64, torch.device("cpu"), ("2048", "logits_unbiased"))


def quiet(samples, reference=None, metrics=("fid",), network=corners, **options):
    return evaluate(samples, reference, metrics, network, **{"bootstrap": 0, "progress": False, **options})


# ------------------------------------------------------------------------------------------------------------ images


def test_the_same_images_from_every_container(tmp_path):
    images = noise(6, 0)
    folder = write_images(tmp_path / "folder", images)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    ordered = images[[int(name[-7:-4]) for name in names]]  # by class folder
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in reversed(names):
            archive.write(folder / name, name)
        archive.writestr("__MACOSX/class-0/000.png", b"no image")
        archive.writestr("labels.json", "{}")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for name in names:
            archive.add(folder / name, name)
    np.savez(tmp_path / "all.npz", arr_0=ordered)
    (tmp_path / "data.yaml").write_text(json.dumps({"data": {"type": "image_folder", "path": str(folder), "size": 8}}))
    sources = [folder, tmp_path / "all.zip", tmp_path / "all.tar", tmp_path / "all.npz", tmp_path / "data.yaml"]
    sources += [ordered, torch.from_numpy(ordered).permute(0, 3, 1, 2), f"{{type: npz, path: {tmp_path}/all.npz}}"]
    for source in sources:
        np.testing.assert_array_equal(
            everything(source if isinstance(source, (np.ndarray, torch.Tensor)) else str(source)), ordered
        )
    np.testing.assert_array_equal(everything(folder, limit=3), ordered[[0, 2, 4]])
    np.testing.assert_array_equal(everything("emoji")[3], ((Emoji()[3]["pixels"] + 1) * 127.5).permute(1, 2, 0).round())


def test_a_crop_is_the_data_sets_own(tmp_path):
    """`crop` of files of several sizes gives the pixels that training on them with that size sees."""
    folder = write_images(
        tmp_path / "folder", [*noise(2, 0, 20), *noise(2, 1, 16), np.ascontiguousarray(noise(1, 2, 24)[0][:18])]
    )
    spec = f"{{type: image_folder, path: {folder}, size: 8}}"
    np.testing.assert_array_equal(everything(folder, crop=8), everything(spec))
    images = open_source(noise(2, 0, 20), Reading(crop=8)).images
    assert images.read(0, 2).shape == (2, 8, 8, 3)
    assert images.notes == {"images resized to 8 at the shorter side and cropped at the centre": 2}


def test_bad_images_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*empty; looked for \.png"):
        open_source(tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ValueError, match=r"no images in .*empty\.zip; looked for"):
        open_source(tmp_path / "empty.zip")
    with pytest.raises(FileNotFoundError, match="gone/x does not exist; give a folder"):
        open_source("gone/x")
    mixed = write_images(tmp_path / "mixed", [*noise(3, 0), *noise(1, 1, 16)])
    with pytest.raises(ValueError, match=r"class-1/003\.png is 16x16 .h x w., .*class-0/000\.png is 8x8.*--crop SIDE"):
        everything(mixed)
    grey = write_images(tmp_path / "grey", [*noise(3, 0), noise(1, 1)[0, ..., 0]])
    with pytest.raises(ValueError, match=r"003\.png is grey; Inception takes RGB.*--grey"):
        everything(grey)
    images = open_source(grey, Reading(grey=True)).images
    last = images.read(0, 4)[3]
    assert (last == last[..., :1]).all()
    assert images.notes == {"grey images taken as RGB": 1}
    with pytest.raises(ValueError, match="the array is grey"):
        everything(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    folder = write_images(tmp_path / "some", noise(1, 0))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"cannot read the image .*broken\.png"):
        everything(folder)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "broken.png")
    with pytest.raises(ValueError, match=r"broken\.png has more than 8 bits"):
        everything(folder)
    for name, message in (
        ("text.npz", "is not an .npz file"),
        ("text.zip", "cannot be read as a zip"),
        ("text.tar", "tar"),
    ):
        (tmp_path / name).write_text("no archive")
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path / name)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(
        ValueError, match=r"other\.npz holds x; expected `arr_0` or `images`, `mu` and `sigma`, or `fea"
    ):
        open_source(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"uint8 .* got a Tensor, torch.float32, \(2, 3, 4, 4\)"):
        open_source(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="cannot read images from a int"):
        open_source(3)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        Reading(limit=0)


# ------------------------------------------------------------------------------------------------ statistics of others


def adm(path, images, features, **more):
    gaussian = fit(features)
    np.savez(path, mu=gaussian.mu, sigma=gaussian.sigma, mu_s=np.zeros(3), sigma_s=np.eye(3), arr_0=images, **more)
    return gaussian


def features_of(images):
    return corners()(torch.from_numpy(images).permute(0, 3, 1, 2))[0]


def test_adms_reference_gives_its_statistics_to_fid_and_its_images_to_the_rest(tmp_path, monkeypatch):
    network = published(monkeypatch)
    samples, shown, all_of_them = noise(30, 0), noise(20, 1), noise(300, 2)
    gaussian = adm(tmp_path / "adm.npz", shown, features_of(all_of_them))
    report = quiet(samples, tmp_path / "adm.npz", metrics=("fid", "kid", "precision"), network=lambda: network)
    assert list(report.metrics) == ["fid", "kid", "precision"]
    assert report.metrics["fid"]["value"] == pytest.approx(
        frechet_distance(fit(features_of(samples)), gaussian), rel=1e-9
    )
    without = quiet(samples, shown, metrics=("kid", "precision"), network=lambda: network)
    assert {name: without.metrics[name] for name in ("kid", "precision")} == {
        k: report.metrics[k] for k in ("kid", "precision")
    }
    assert report.reference["count"] == 20
    assert any("ready-made mu and sigma" in note for note in report.reference["notes"])
    many = noise(200, 3)
    infinite = quiet(many, tmp_path / "adm.npz", metrics=("fid_infinity",), network=lambda: network)
    assert infinite.metrics["fid_infinity"] == frechet_infinity(features_of(many), gaussian)
    assert "pixels_sha256" not in infinite.reference  # its images were not looked at
    # In the features of other weights the statistics say nothing, and the images serve.
    other = quiet(samples, tmp_path / "adm.npz")
    assert other.metrics["frechet_distance[corners]"] == quiet(samples, shown).metrics["frechet_distance[corners]"]


def test_caches_of_torch_fidelity_and_clean_fid_are_read(tmp_path, monkeypatch):
    from torch_fidelity.metric_fid import fid_featuresdict_to_statistics_cached

    network = published(monkeypatch)
    samples, real = noise(30, 0), noise(40, 1)
    features = features_of(real)
    named = Extractor(None, STANDARD, None, torch.device("cpu"))
    monkeypatch.setattr(Extractor, "get_name", lambda self: self.name, raising=False)
    fid_featuresdict_to_statistics_cached(
        {"2048": torch.from_numpy(features)}, "real", named, "2048", cache=True, cache_root=str(tmp_path), verbose=False
    )
    torch.save(torch.from_numpy(features), tmp_path / f"real-{STANDARD}-features-2048.pt")
    np.savez_compressed(
        tmp_path / "real_legacy_tensorflow_custom_na.npz", **{k: getattr(fit(features), k) for k in ("mu", "sigma")}
    )
    np.savez_compressed(tmp_path / "real_legacy_tensorflow_custom_na_kid.npz", feats=features)
    expected = quiet(samples, real, metrics=("fid", "kid"), network=lambda: network).metrics
    for name in (f"real-{STANDARD}-stat-fid-2048.pt", "real_legacy_tensorflow_custom_na.npz"):
        report = quiet(samples, tmp_path / name, network=lambda: network)
        assert report.metrics["fid"]["value"] == pytest.approx(expected["fid"]["value"], rel=1e-5)  # theirs is float32
        assert report.reference["count"] is None
        with pytest.raises(ValueError, match="holds no images, which kid need"):
            quiet(samples, tmp_path / name, metrics=("kid",), network=lambda: network)
    for name in (f"real-{STANDARD}-features-2048.pt", "real_legacy_tensorflow_custom_na_kid.npz"):
        report = quiet(samples, tmp_path / name, metrics=("fid", "kid"), network=lambda: network)
        assert report.metrics == expected
        assert report.reference["count"] == 40


def test_statistics_of_another_resize_network_or_layer_are_refused(tmp_path, monkeypatch):
    network = published(monkeypatch)
    np.savez(tmp_path / "x_clean_train_256.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(
        ValueError, match=r"taken to be of the published Inception weights and the resize clean.*of fid"
    ):
        quiet(noise(9, 0), tmp_path / "x_clean_train_256.npz", network=lambda: network)
    np.savez(tmp_path / "x_legacy_pytorch_train_256.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(ValueError, match="in its mode legacy_pytorch, with another network"):
        open_source(tmp_path / "x_legacy_pytorch_train_256.npz")
    np.savez(tmp_path / "plain.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"cannot be compared in the features of frechet_distance\[corners\]"):
        quiet(noise(9, 0), tmp_path / "plain.npz")
    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="4 and 3 features; both must come from the same extractor"):
        quiet(noise(9, 0), tmp_path / "small.npz", network=lambda: network)
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"mu must be .d,. and sigma .d, d., got .3,. and .4, 4."):
        open_source(tmp_path / "bad.npz")
    torch.save(torch.zeros(5, 64), tmp_path / f"x-{STANDARD}-features-64.pt")
    with pytest.raises(ValueError, match=r"names end in .*-stat-fid-2048\.pt or .*-features-2048\.pt"):
        open_source(tmp_path / f"x-{STANDARD}-features-64.pt")


def test_a_cache_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    path = tmp_path / f"x-{STANDARD}-stat-fid-2048.pt"
    torch.save({"mu": Evil(), "sigma": Evil()}, path)
    with pytest.raises(ValueError, match="cannot be read as a cache of torch-fidelity"):
        open_source(path)
    assert not (tmp_path / "run").exists()


def test_two_files_of_statistics_need_no_network(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3))
    np.savez(tmp_path / "b.npz", mu=np.ones(3), sigma=4 * np.eye(3))
    report = quiet(tmp_path / "a.npz", str(tmp_path / "b.npz"), network=pytest.fail)
    assert report.metrics == {"frechet_distance[statistics]": {"value": pytest.approx(6)}}
    assert report.extractor is None
    assert "unknown number" in str(report)


# ------------------------------------------------------------------------------------------------- what cannot be told


def test_what_cannot_be_measured_is_refused_before_the_work():
    class Nothing(Corners):
        def __call__(self, batch):
            return (super().__call__(batch)[0],)

    class Broken(Corners):
        def __call__(self, batch):
            features, logits = super().__call__(batch)
            features[batch.float().mean(dim=(1, 2, 3)) > 1] = torch.nan
            return features, logits

    def network(module):
        return lambda: Extractor(module, "x", None, torch.device("cpu"))

    with pytest.raises(ValueError, match=r"has 4 images for 4 features: the covariance is rank-deficient.*--few"):
        quiet(noise(4, 0), noise(9, 1))
    with pytest.raises(ValueError, match="has 3 images for 4 features"):
        quiet(noise(9, 0), noise(3, 1))
    few = quiet(noise(4, 0), noise(9, 1), few=True)
    assert "4 images for 4 features: strongly biased upwards" in str(few)
    with pytest.raises(ValueError, match="x has no logits for"):
        quiet(noise(9, 0), noise(9, 1), metrics=("is",), network=network(Nothing()))
    with pytest.raises(ValueError, match=r"features of 9 of 9 samples are NaN or infinite .first at index 0.*weights"):
        quiet(noise(9, 0), noise(9, 1), metrics=("kid",), network=network(Broken()))
    with pytest.raises(ValueError, match="unknown metric 'fidd': did you mean 'fid'"):
        quiet(noise(9, 0), noise(9, 1), metrics=("fidd",))
    with pytest.raises(ValueError, match="fid, kid need a reference"):
        quiet(noise(9, 0), metrics=("kid", "fid", "is"))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        quiet(noise(9, 0), noise(9, 1), batch_size=0)


def test_small_numbers_and_other_sizes_are_warned_of():
    report = quiet(noise(9, 0), noise(12, 1, size=16))
    assert "fewer than 10,000 images (9)" in str(report)
    assert "samples of [8, 8] and a reference of [16, 16]" in str(report)
    alone = quiet(noise(20, 0), metrics=("is",))
    assert list(alone.metrics) == ["score[corners]"]
    assert alone.reference is None
