"""Reconstruction: numbers that can be known beforehand, names that follow the weights, what is left out and why."""

import functools
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from maskgen.cli import app
from maskgen.data import Emoji
from maskgen.data.arrays import NpzArrays
from maskgen.data.images import ImageFiles
from maskgen.evaluation.classifier import SmallClassifier, classifier_frechet, save_classifier
from maskgen.evaluation.fid import inception as inception
from maskgen.evaluation.fid.inception import Extractor
from maskgen.evaluation.fid.statistics import fit, frechet_distance
from maskgen.evaluation.reconstruction.measures import codebook_use, measure, psnr, spread, ssim
from maskgen.evaluation.reconstruction.report import largest_size, reconstruct
from maskgen.pipelines.store import fingerprint, save_tokenizer
from maskgen.tokenizer import perceptual
from maskgen.tokenizer.model import Tokenizer

SCRIPT = Path(__file__).parents[1] / "tokenizers/reconstruct.py"


def conv(quantizer=None, multipliers=(1, 2), channels=3):
    coder = {"width": 8, "multipliers": list(multipliers), "blocks": 1, "channels": channels}
    torch.manual_seed(0)
    return Tokenizer(coder, quantizer or {"codebook_size": 16, "dim": 4}, coder).eval()


def exact(patch=4):
    """A tokenizer that changes nothing."""
    coder = {"type": "patch", "patch": patch}
    return Tokenizer(coder, {"type": "none", "dim": 3 * patch**2}, coder).eval()


def quiet(tokenizer, dataset, **options):
    return reconstruct(tokenizer, dataset, progress=False, **options)


# ------------------------------------------------------------------------------------------------------------ numbers


def test_psnr_is_known_for_a_known_error():
    zero = torch.zeros(2, 3, 4, 4)
    made = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)])  # 2 is clipped to 1
    torch.testing.assert_close(psnr(made, zero), torch.tensor([20.0, 10 * math.log10(4)]))
    assert psnr(zero, zero).tolist() == pytest.approx([10 * math.log10(4e10)] * 2)


def test_ssim_is_wangs_formula_of_pixels_in_0_1():
    """By scipy's Gaussian filter: equation 13 of Wang et al. 2004 with K = 0.01, 0.03 and L = 1, mirrored borders."""
    a = torch.rand(2, 1, 40, 40) * 2 - 1
    b = (a + 0.3 * torch.randn_like(a)).clamp(-1, 1)

    def smooth(x):
        return gaussian_filter(x, 1.5, radius=5, mode="mirror")

    for i in range(2):
        x, y = ((v[i, 0].double().numpy() + 1) / 2 for v in (a, b))
        mx, my = smooth(x), smooth(y)
        vx, vy, vxy = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
        value = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        assert float(ssim(b, a)[i]) == pytest.approx(value.mean(), abs=1e-4)
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    assert ssim(a + 5 * (a == a.max()), a)[0] <= 1  # clipped
    with pytest.raises(ValueError, match="window is 11 pixels wide"):
        ssim(a[..., :10], b[..., :10])


def test_codebook_use_counts_the_dead():
    found = codebook_use(torch.tensor([0, 0, 1, 1, 5, 5]), 8)
    assert found == {"use": 3 / 8, "perplexity": pytest.approx(3.0), "dead": 5}
    assert codebook_use(torch.tensor([3]), 4) == {"use": 0.25, "perplexity": 1.0, "dead": 3}


def test_spread_is_even_and_keeps_sizes_apart():
    class Sizes:
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return {"pixels": torch.full((1, 2, 2 + i // 3), float(i))}

    assert [batch[:, 0, 0, 0].tolist() for batch in spread(Sizes(), 6, 2)] == [[0, 1], [2], [3, 4], [5]]
    assert [batch[:, 0, 0, 0].tolist() for batch in spread(Sizes(), 3, 2)] == [[0, 2], [4]]
    assert list(spread([], 3)) == []


def test_the_numbers_are_those_of_all_images_at_once_whatever_the_batch():
    model, data = conv(), Emoji(classes=["food"])
    report = quiet(model, data, limit=50, batch_size=7)
    pixels = torch.cat(list(spread(data, 50)))
    with torch.no_grad():
        codes = model.encode(pixels)
        made = model.decode(codes)
    expected = {
        "psnr": float(psnr(made, pixels).mean()),
        "ssim": float(ssim(made, pixels).mean()),
        **codebook_use(codes.flatten(), 16),
    }
    assert report.metrics == pytest.approx(expected, rel=1e-4)
    assert (report.count, report.sizes, report.tokenizer) == (50, [[32, 32]], fingerprint(model))
    assert measure(model, data, 50) == pytest.approx({k: v for k, v in expected.items() if k != "ssim"}, rel=1e-4)


def test_a_perfect_tokenizer_has_the_best_of_every_number():
    report = quiet(exact(), Emoji(classes=["food"]))
    assert report.metrics["psnr"] > 100
    assert report.metrics["ssim"] == pytest.approx(1, abs=1e-4)
    assert report.left_out["use, perplexity, dead"] == "the tokens are continuous, so there is no codebook"
    assert set(measure(exact(), Emoji(classes=["food"]))) == {"psnr"}


def test_codes_of_several_levels_count_together():
    model = conv({"type": "residual", "num_quantizers": 3, "quantizer": {"codebook_size": 16, "dim": 4}})
    data = Emoji(classes=["food"])
    report = quiet(model, data)
    with torch.no_grad():
        codes = model.encode(torch.stack([data[i]["pixels"] for i in range(len(data))]))
    assert codes.shape[-1] == report.levels == 3
    assert report.metrics["dead"] == 16 - len(codes.unique())
    assert any("3 quantizers are counted together" in note for note in report.notes)


# -------------------------------------------------------------------------------------------------------- files, sizes


def test_files_of_several_sizes_are_cropped_to_what_the_tokenizer_takes(tmp_path):
    sizes = [(33, 40), (33, 40), (64, 17)]  # w, h
    for i, size in enumerate(sizes):
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / f"{i}.png")
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    report = quiet(exact(8), ImageFiles(files))
    assert report.sizes == [[40, 32], [16, 64]]
    assert report.metrics["psnr"] > 100
    assert report.notes[0] == f"{files[0]}: 40x33 (h x w) cropped to 40x32"
    assert [tuple(p.shape[1:]) for p in report.originals] == [(40, 32), (40, 32), (16, 64)]
    whole = (np.asarray(Image.open(files[2]))[0:16].astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)
    assert torch.equal(report.originals[2], torch.from_numpy(whole))
    sheet = report.image()
    assert sheet.size[0] > 3 * 64
    assert quiet(exact(8), ImageFiles(files, 24)).sizes == [[24, 24]]


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 12, 16, 32])
def test_the_largest_size_is_the_multiple_below(factor):
    class Takes:
        def grid(self, size):
            if any(s <= 0 or s % factor for s in size):
                raise ValueError(f"multiples of {factor}")

    for size in ((100, 57), (64, 64), (33, 95)):
        assert largest_size(Takes(), size) == tuple(s // factor * factor for s in size)
    if factor > 1:
        with pytest.raises(ValueError, match=f"multiples of {factor}"):
            largest_size(Takes(), (factor - 1, 200))


def test_the_sheet_and_the_json_lie_beside_each_other(tmp_path):
    report = quiet(conv(), Emoji(classes=["food", "flags"]))
    file = report.save(tmp_path / "deep/sheet.png")
    assert file == tmp_path / "deep/metrics.json"
    facts = json.loads(file.read_text())
    assert facts["metrics"] == pytest.approx(report.metrics)
    assert facts.keys() == {
        *("tokenizer", "codebook_size", "levels", "count", "sizes", "metrics", "left_out", "notes"),
    }
    sheet = np.asarray(Image.open(tmp_path / "deep/sheet.png").convert("RGB"))
    assert sheet.shape[1] > 8 * 64
    first = np.asarray(Image.fromarray(((report.originals[0].numpy().transpose(1, 2, 0) + 1) * 127.5).astype("uint8")))
    left = sheet.shape[1] - 8 * 68 - 4 + 4
    np.testing.assert_allclose(sheet[4:68:2, left : left + 64 : 2].astype(int), first.astype(int), atol=1)


def test_the_script_says_what_the_command_says(tmp_path, monkeypatch, capsys):
    save_tokenizer(conv(), tmp_path / "model")
    Image.effect_noise((20, 16), 60).convert("RGB").save(tmp_path / "a.png")
    arguments = [str(tmp_path / "model"), str(tmp_path / "a.png"), "--device", "cpu", "--out"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, str(tmp_path / "0/x.png")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    script = capsys.readouterr().out
    done = CliRunner().invoke(app, ["reconstruct", *arguments, str(tmp_path / "1/x.png")], catch_exceptions=False)
    assert "psnr" in script
    assert done.stdout.startswith(script.strip())
    for name in ("x.png", "metrics.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


# ------------------------------------------------------------------------------------------------- networks, and names


def test_a_distance_in_the_classifiers_features_has_its_own_name(tmp_path):
    small = SmallClassifier(3, 4, width=8).eval()
    save_classifier(small, tmp_path)
    model, data = conv(), Emoji(classes=["food"])
    report = quiet(model, data, classifier=str(tmp_path), batch_size=16)
    pixels = torch.stack([data[i]["pixels"] for i in range(len(data))])
    with torch.no_grad():
        name, value = classifier_frechet(small, pixels, model.decode(model.encode(pixels)).clamp(-1, 1))
    assert report.metrics[name] == pytest.approx(value, rel=1e-3)
    assert not [key for key in report.metrics if "fid" in key]
    assert any("biased upwards" in note for note in report.notes)


@pytest.mark.parametrize("published", [True, False])
def test_only_the_published_inception_weights_make_an_rfid(monkeypatch, published):
    class Pooled:
        def __call__(self, batch):
            assert batch.dtype == torch.uint8
            return (torch.nn.functional.adaptive_avg_pool2d(batch.float(), 2).flatten(1),)

    sha = inception.PUBLISHED_SHA256 if published else "0123456789" * 6 + "0123"
    network = Extractor(Pooled(), inception.STANDARD, sha, torch.device("cpu"))
    asked = []
    monkeypatch.setattr(inception, "load_extractor", lambda weights, device: asked.append(weights) or network)
    model, data = conv(), Emoji(classes=["food"])
    report = quiet(model, data, inception="some.pth", batch_size=16)
    name = "rfid" if published else "frechet_distance[inception-v3-compat/01234567]"
    pixels = torch.stack([data[i]["pixels"] for i in range(len(data))])
    with torch.no_grad():
        both = [((x.clamp(-1, 1) + 1) * 127.5).round() for x in (pixels, model.decode(model.encode(pixels)))]
    a, b = (fit(torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)) for x in both)
    assert report.metrics[name] == pytest.approx(frechet_distance(a, b), rel=1e-3)
    assert ("rfid" in report.metrics) == published
    assert asked == ["some.pth"]
    quiet(model, data, inception="download")
    assert asked[1] is None
    with pytest.raises(ValueError, match="needs at least 2 images, got 1"):
        quiet(model, data, inception="some.pth", limit=1)


def test_lpips_of_other_weights_carries_their_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(perceptual, "Lpips", functools.cache(perceptual.Lpips))  # seconds each
    from torchvision.models.vgg import cfgs, make_layers

    state = {f"features.{key}": value for key, value in make_layers(cfgs["D"]).state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    data = Emoji(classes=["food"])
    name = f"lpips[vgg16/{inception.sha256_of(tmp_path / 'vgg.pth')[:8]}]"
    report = quiet(conv(), data, lpips=str(tmp_path / "vgg.pth"), limit=5, batch_size=2)
    whole = quiet(conv(), data, lpips=str(tmp_path / "vgg.pth"), limit=5)
    assert report.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-4)
    assert report.metrics[name] > 0
    assert "lpips" not in report.metrics
    assert quiet(exact(), data, lpips=str(tmp_path / "vgg.pth"), limit=3).metrics[name] == pytest.approx(0, abs=1e-6)
    small = quiet(conv(), Emoji(classes=["food"], size=8), lpips=str(tmp_path / "vgg.pth"), limit=3)
    assert small.left_out["ssim"] == "needs images of at least 11x11, found 8x8"
    assert small.left_out[name] == "needs images of at least 16x16, found 8x8"


# ------------------------------------------------------------------------------------------------------------- errors


class Images:
    """Two images of one value."""

    size, class_names, labels = (8, 8), ("all",), np.zeros(2, np.int64)

    def __init__(self, channels=3, value=0.0):
        self.pixels = torch.full((channels, 8, 8), value)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"pixels": self.pixels}


def test_what_cannot_be_reconstructed_is_told(tmp_path):
    with pytest.raises(ValueError, match="pixels have 1 channels; this tokenizer takes 3"):
        quiet(conv(), Images(channels=1))
    with pytest.raises(ValueError, match="pixels hold NaN or infinity"):
        quiet(conv(), Images(value=float("nan")))
    with pytest.raises(ValueError, match="each side must be a multiple of 16"):
        quiet(conv(multipliers=(1, 1, 1, 1, 1)), Images())
    with pytest.raises(ValueError, match="codes run from 0 to 16; this codebook has 0 to 15"):
        conv().decode(torch.tensor([[[0, 16], [1, 2]]]))
    grey = conv(channels=1)
    save_classifier(SmallClassifier(3, 4, width=8), tmp_path)
    with pytest.raises(ValueError, match=r"3 channels .* makes 1; give a classifier"):
        quiet(grey, Images(channels=1), classifier=tmp_path)
    np.savez(tmp_path / "nan.npz", images=np.full((2, 8, 8, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="floats from nan to nan"):
        NpzArrays(str(tmp_path / "nan.npz"))


def test_a_tokenizer_of_features_makes_no_images():
    coder = {"width": 8, "multipliers": [1, 2], "blocks": 1}
    model = Tokenizer(coder, {"codebook_size": 16, "dim": 4}, coder, target="features").eval()
    with pytest.raises(ValueError, match=r"decodes to a teacher's features, not to pixels.*target: pixels"):
        quiet(model, Images())
