"""Video metrics: closed forms, the conventions of the field against numbers worked out by hand, and what is refused."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import nn
from typer.testing import CliRunner

from maskgen.cli import app
from maskgen.evaluation.video.fvd import PixelFeatures, ScriptedFeatures, clip_distance
from maskgen.evaluation.video.measures import (
    METRICS,
    absolute_error,
    best_of,
    blank,
    copy_last,
    psnr,
    squared_error,
    ssim,
    ssim_uniform,
)
from maskgen.evaluation.video.report import evaluate_videos
from maskgen.videos import save


def constant(value, frames=2, side=16, channels=1):
    """A clip of one value, given in [0, 1]."""
    return torch.full((1, channels, frames, side, side), 2.0 * value - 1)


# --- frame by frame ---


def test_errors_are_sums_over_the_pixels_of_a_frame_in_unit_range():
    made, truth = constant(0.75), constant(0.25)
    assert torch.allclose(squared_error(made, truth), torch.full((1, 2), 256 * 0.25))
    assert torch.allclose(absolute_error(made, truth), torch.full((1, 2), 256 * 0.5))
    one = truth.clone()
    one[0, 0, 1, 3, 4] = 1.0  # one white pixel in frame 1
    assert torch.allclose(squared_error(one, truth), torch.tensor([[0.0, 0.75**2]]))
    assert torch.allclose(absolute_error(one, truth), torch.tensor([[0.0, 0.75]]))
    colour = constant(0.75, channels=3), constant(0.25, channels=3)
    assert torch.allclose(squared_error(*colour), torch.full((1, 2), 3 * 256 * 0.25))


def test_predictions_beyond_the_range_are_clipped():
    assert torch.equal(squared_error(constant(1.4), constant(1.0)), torch.zeros(1, 2))


def test_psnr_of_a_frame_is_that_of_unit_range():
    assert torch.allclose(psnr(constant(0.75), constant(0.25)), torch.tensor(10 * math.log10(1 / 0.25)))


@pytest.mark.parametrize("metric", [ssim, ssim_uniform])
def test_ssim_of_flat_frames_in_closed_form(metric):
    """No variance: only the comparison of means is left, with C1 of data_range 1."""
    expected = (2 * 0.75 * 0.25 + 1e-4) / (0.75**2 + 0.25**2 + 1e-4)
    assert torch.allclose(metric(constant(0.75), constant(0.25)), torch.tensor(expected), atol=5e-4)


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_uniform_ssim_is_scikit_images_arithmetic(data_range):
    """Its definition, written with scipy's filter: borders reflected, then cropped; sample covariance."""
    a, b = np.random.default_rng(0).random((2, 3, 20, 17))
    values = []
    for x, y in zip(a, b):
        ux, uy, xx, yy, xy = (uniform_filter(z, 7) for z in (x, y, x * x, y * y, x * y))
        vx, vy, vxy = 49 / 48 * (xx - ux * ux), 49 / 48 * (yy - uy * uy), 49 / 48 * (xy - ux * uy)
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        s = (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
        values.append(s[3:-3, 3:-3].mean())
    clips = (torch.from_numpy(2 * x - 1)[None, :, None].float() for x in (a, b))
    assert float(ssim_uniform(*clips, data_range=data_range)) == pytest.approx(np.mean(values), abs=1e-5)


def test_every_metric_is_best_for_the_truth_and_sees_each_frame_alone():
    truth = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    made = truth.clone()
    made[1, :, 2] = -made[1, :, 2]
    for metric in METRICS.values():
        values = metric.compute(made, truth)
        assert values.shape == (2, 3)
        same = torch.ones(2, 3, dtype=torch.bool)
        same[1, 2] = False
        assert torch.allclose(values[same], metric.compute(truth, truth)[same])
        assert (values[1, 2] < values[0, 0]) == metric.higher


def test_best_of_takes_the_sample_whose_mean_over_frames_is_best():
    values = torch.tensor([[[1.0, 9.0], [2.0, 2.0]], [[4.0, 4.0], [8.0, 0.0]], [[0.0, 12.0], [1.0, 1.0]]])  # n b t
    assert best_of(values, higher=False).tolist() == [[4.0, 4.0], [1.0, 1.0]]
    assert best_of(values, higher=True).tolist() == [[0.0, 12.0], [8.0, 0.0]]


def test_trivial_predictors():
    context = torch.rand(2, 3, 4, 5, 6)
    assert torch.equal(blank(context, 7), torch.full((2, 3, 7, 5, 6), -1.0))
    assert torch.equal(copy_last(context, 7), context[:, :, 3:].expand(2, 3, 7, 5, 6))


# --- distances ---


class Toy(nn.Module):
    """Takes I3D's place: 400 copies of a clip's mean and says what it was told."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
        assert not rescale
        assert not resize
        assert return_features
        assert x.shape[1] == 3
        assert x.shape[3:] == (224, 224)
        return x.mean(dim=(1, 2, 3, 4))[:, None].expand(-1, 400)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d.pt"
    torch.jit.script(Toy()).save(str(path))
    return path


def test_fvd_is_the_distance_of_the_networks_features_and_names_it(toy):
    extractor = ScriptedFeatures(toy)
    assert extractor.name == "fvd"
    assert extractor.facts["sha256"] == hashlib.sha256(toy.read_bytes()).hexdigest()
    assert extractor.options == {"rescale": False, "resize": False, "return_features": True}
    levels = torch.tensor([-0.5, 0.0, 0.25])[:, None, None, None, None].expand(3, 1, 10, 8, 8)
    real, fake = extractor(levels), extractor(levels + 0.125)
    # Every feature is shifted by 1/8, covariances are equal: |mu_a - mu_b|^2 = 400 / 64.
    assert clip_distance(fake, real) == pytest.approx(400 / 64, rel=1e-4)
    assert clip_distance(real, real) == pytest.approx(0, abs=1e-4)


def test_fvd_is_a_name_only_for_what_it_says(toy, tmp_path):
    with pytest.raises(ValueError, match="clips of at least 10 frames, got 9"):
        ScriptedFeatures(toy)(torch.zeros(1, 1, 9, 8, 8))
    ScriptedFeatures(toy, "mine")(torch.zeros(1, 1, 3, 8, 8))  # under another name it is not FVD
    torch.jit.trace(nn.Flatten(), torch.zeros(1, 3, 10, 4, 4)).save(str(tmp_path / "x.pt"))
    with pytest.raises(
        ValueError, match=r"FVD's I3D gives \(1, 400\); measure with another network under another name"
    ):
        ScriptedFeatures(tmp_path / "x.pt")(torch.zeros(1, 1, 10, 8, 8))
    (tmp_path / "y.pt").write_bytes(b"no network")
    with pytest.raises(ValueError, match="is no TorchScript file"):
        ScriptedFeatures(tmp_path / "y.pt")
    with pytest.raises(ValueError, match="does not exist; give I3D as a TorchScript file"):
        ScriptedFeatures(tmp_path / "z.pt")


@pytest.mark.parametrize("name", ["FVD", " Fvd ", " "])
def test_no_other_network_is_called_fvd_in_other_letters(toy, name):
    with pytest.raises(ValueError, match="use fvd for I3D, and another name"):
        ScriptedFeatures(toy, name)


@pytest.mark.parametrize("names", [("fvd", "fvd"), ("mine", "mine"), ("mse",)])
def test_every_number_of_a_report_has_its_own_name(tmp_path, truth, toy, names):
    path = write(tmp_path / "t.npz", truth)
    with pytest.raises(ValueError, match=f"named '{names[0]}'; give the distance another name"):
        evaluate_videos([path], path, extractors=[ScriptedFeatures(toy, name) for name in names])


# --- the report ---


def write(path, videos):
    """uint8 (n, t, h, w) as an .npz."""
    np.savez(path, videos=videos)
    return str(path)


@pytest.fixture
def truth():
    return np.random.default_rng(0).integers(0, 256, (3, 6, 16, 16), np.uint8)


def test_a_report_says_what_was_compared(tmp_path, truth, toy):
    flipped = 255 - truth
    paths = [write(tmp_path / f"{name}.npz", v) for name, v in (("t", truth), ("a", flipped), ("b", truth[:, 2:]))]
    report = evaluate_videos([paths[1], paths[2]], paths[0], context=2, extractors=[PixelFeatures()])
    frames = truth[:, 2:].astype(np.float64) / 255
    wrong = ((1 - 2 * frames) ** 2).sum(axis=(2, 3))
    mse = report.metrics["mse"]
    assert mse["mean"] == pytest.approx(wrong.mean() / 2, rel=1e-4)  # of a wrong and a perfect sample
    assert mse["best_of_N"] == 0
    assert mse["of_the_mean"] == pytest.approx(((0.5 - frames) ** 2).sum(axis=(2, 3)).mean(), rel=1e-4)
    assert mse["per_frame"] == pytest.approx((wrong.mean(axis=0) / 2).tolist(), rel=1e-4)
    assert report.metrics["psnr"]["best_of_N"] == pytest.approx(106, abs=0.1)
    assert (report.clips, report.frames, report.context, report.size) == (3, 4, 2, [16, 16])
    assert "lpips" in report.left_out
    distance = report.distances["frechet_distance[pixels]"]
    assert distance["of_each_sample"][1] == pytest.approx(0, abs=1e-6)
    assert (distance["frames"], distance["context_included"], distance["real"]) == (4, False, 3)
    saved = json.loads(report.save(tmp_path / "out" / "r.json").read_text())
    assert saved["metrics"]["ssim"]["unit"].startswith("data_range 1")
    assert "best_of_N" in str(report)


def test_trivial_predictors_are_named_in_the_place_of_a_file(tmp_path, truth):
    path = write(tmp_path / "t.npz", truth)
    frames = truth.astype(np.float64) / 255
    copied = evaluate_videos(["copy-last"], path, context=2).metrics
    assert copied["mse"]["mean"] == pytest.approx(((frames[:, 2:] - frames[:, 1:2]) ** 2).sum((2, 3)).mean(), rel=1e-4)
    assert "best_of_N" not in copied["mse"]
    black = evaluate_videos(["blank"], path).metrics
    assert black["mae"]["mean"] == pytest.approx(frames.sum((2, 3)).mean(), rel=1e-4)
    with pytest.raises(ValueError, match="copy-last needs a context"):
        evaluate_videos(["copy-last"], path)


def test_fvd_of_the_report_says_frames_context_and_number(tmp_path, toy):
    truth = np.random.default_rng(0).integers(0, 256, (3, 12, 8, 8), np.uint8)
    paths = [write(tmp_path / "t.npz", truth), write(tmp_path / "p.npz", truth[:, 2:])]
    found = evaluate_videos([paths[1]], paths[0], context=2, extractors=[ScriptedFeatures(toy)], with_context=True)
    fvd = found.distances["fvd"]
    assert fvd["value"] == pytest.approx(0, abs=1e-6)
    assert (fvd["frames"], fvd["context_included"], fvd["real"], fvd["fake"]) == (12, True, 3, 3)
    assert len(fvd["sha256"]) == 64
    assert len(found.notes) == 1
    assert "3 clips for 400 features" in found.notes[0]
    assert "ssim" in found.left_out  # 8 pixels are fewer than its window
    assert "ssim_uniform" in found.metrics


def test_folders_are_matched_by_name_and_clips_by_their_files(tmp_path, truth):
    clips = torch.from_numpy(np.repeat(np.repeat(truth // 64 * 64, 2, 2), 2, 3)).float() / 127.5 - 1
    for i, name in enumerate("abc"):
        save(clips[i : i + 1], tmp_path / "truth" / f"{name}.mp4")
        save(clips[i : i + 1], tmp_path / "made" / f"{name}.mp4")
    report = evaluate_videos([str(tmp_path / "made")], str(tmp_path / "truth"), context=1)
    assert report.metrics["mse"]["mean"] == 0
    assert report.channels == 3
    (tmp_path / "made/a.mp4").rename(tmp_path / "made/d.mp4")
    with pytest.raises(ValueError, match="has no video with the name a"):
        evaluate_videos([str(tmp_path / "made")], str(tmp_path / "truth"))


def test_files_beside_an_array_are_in_the_order_of_their_numbers(tmp_path):
    grey = np.arange(0, 220, 20, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(16, 2).repeat(16, 3)
    for i, video in enumerate(grey):
        save(torch.from_numpy(video)[None] / 127.5 - 1, tmp_path / "made" / f"{i}.mp4")
    report = evaluate_videos([str(tmp_path / "made")], write(tmp_path / "t.npz", grey[..., None].repeat(3, 4)))
    assert report.metrics["psnr"]["mean"] > 35


@pytest.mark.parametrize(
    ("made", "context", "message"),
    [
        (np.zeros((2, 6, 16, 16), np.uint8), 2, "has 2 videos .* 3; they must match"),
        (np.zeros((3, 6, 16, 15), np.uint8), 2, r"\(16, 15\) \(h, w\) .* \(16, 16\); give --size"),
        (np.zeros((3, 3, 16, 16), np.uint8), 2, "has 3 frames; 4 are predicted after a context of 2, so give 4 or 6"),
        (np.zeros((3, 6, 16, 16), np.uint8), 6, "must have the same number, more than the 6 of the context"),
        (np.zeros((3, 6, 16, 16), np.uint8), -1, "a context of at least 0"),
    ],
)
def test_what_does_not_match_is_refused(tmp_path, truth, made, context, message):
    paths = [write(tmp_path / "t.npz", truth), write(tmp_path / "p.npz", made)]
    with pytest.raises(ValueError, match=message):
        evaluate_videos([paths[1]], paths[0], context=context)


def test_an_unreadable_video_stops_an_evaluation(tmp_path, truth):
    save(torch.zeros(1, 6, 16, 16), tmp_path / "t" / "a.mp4")
    (tmp_path / "t" / "b.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"1 unreadable videos in (?s:.*)b\.mp4"):
        evaluate_videos(["blank"], str(tmp_path / "t"))


def test_lpips_of_given_weights_bears_their_name(tmp_path, truth):
    from torchvision.models.vgg import cfgs, make_layers

    state = {f"features.{key}": value for key, value in make_layers(cfgs["D"]).state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    path = write(tmp_path / "t.npz", truth[:2, :3])
    digest = hashlib.sha256((tmp_path / "vgg.pth").read_bytes()).hexdigest()[:8]
    report = evaluate_videos([path, "blank"], path, context=1, lpips=str(tmp_path / "vgg.pth"))
    found = report.metrics[f"lpips[vgg16/{digest}]"]
    assert found["best_of_N"] == 0 < found["mean"]
    assert len(found["per_frame"]) == 2


def test_the_command_writes_its_report(tmp_path, truth):
    path = write(tmp_path / "t.npz", truth)
    out = tmp_path / "r.json"
    command = ["evaluate-video", "copy-last", path, "--context", "2", "--pixels", "--out", str(out)]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "mse: mean" in done.stdout
    assert set(json.loads(out.read_text())["distances"]) == {"frechet_distance[pixels]"}
