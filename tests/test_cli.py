"""The commands, from first images to samples, and the messages of user errors."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from maskgen import cli
from maskgen.data.tokens import TokenCache
from maskgen.pipelines.store import fingerprint, load_tokenizer, save_tokenizer

PARTS = {
    "encoder": {"width": 8, "multipliers": [1, 2], "blocks": 1},
    "quantizer": {"codebook_size": 16, "dim": 4},
    "decoder": {"width": 8, "multipliers": [1, 2], "blocks": 1},
}
TRAINING = {"steps": 3, "batch_size": 4, "precision": "fp32", "log_every": 1}
DATA = {"type": "image_folder", "path": "images", "size": 8}
TOKENIZER = {
    "name": "tokenizer",
    "stage": {"type": "tokenizer", "tokenizer": PARTS},
    "data": DATA,
    "training": TRAINING,
}
GENERATOR = {
    "name": "generator",
    "stage": {
        "type": "generator",
        "tokenizer": "runs/tokenizer",
        "model": {"width": 16, "depth": 1, "block": {"heads": 2}},
        "scheduler": {"num_inference_steps": 3, "guidance_scale": 2.0},
    },
    "data": {"type": "tokens", "path": "tokens"},
    "training": TRAINING,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in two classes, configurations, and what `train`, `encode` and `train` make of them, on the CPU."""
    folder, before = tmp_path_factory.mktemp("cli"), os.getcwd()
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"images/{name}/{i}.png")
    for config in (TOKENIZER, GENERATOR):
        (folder / f"{config['name']}.yaml").write_text(yaml.safe_dump(config))
    os.chdir(folder)
    patch = pytest.MonkeyPatch()
    patch.setenv("ACCELERATE_USE_CPU", "true")
    for arguments in (["train", "tokenizer.yaml"], ["encode", "runs/tokenizer", "tokens"], ["train", "generator.yaml"]):
        done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
    # What errors are made of: images of NaN, another tokenizer, a cache with a code outside the codebook.
    np.savez("nan.npz", images=np.full((2, 8, 8, 3), np.nan, np.float32))
    other = load_tokenizer("runs/tokenizer")
    with torch.no_grad():
        other.quantizer.codebook.add_(1)
    save_tokenizer(other, folder / "runs/other")
    shutil.copytree("tokens", "damaged")
    np.load("damaged/codes.npy", mmap_mode="r+")[:] = 99
    yield folder
    patch.undo()
    os.chdir(before)


@pytest.fixture
def maskgen(folder, maskgen, monkeypatch):
    monkeypatch.chdir(folder)
    return maskgen


# ---------------------------------------------------------------------------------------------------- the whole path


@pytest.mark.train
def test_the_runs_lie_where_the_readme_says(folder):
    for name in ("tokenizer", "generator"):
        run = folder / "runs" / name
        assert {"config.yaml", "metrics.jsonl", "curves.png", "samples", "checkpoints", "pipeline"} <= {
            p.name for p in run.iterdir()
        }
        assert Image.open(run / "samples/step_00000003.png").size[0] > 8
        assert Image.open(run / "curves.png").size[0] > 100
        assert not [p.name for p in run.rglob("*") if "part" in p.name]


def test_a_token_cache_holds_the_codes_of_every_image(folder):
    cache, tokenizer = TokenCache(str(folder / "tokens")), load_tokenizer(folder / "runs/tokenizer")
    assert len(cache) == 12
    assert cache.class_names == ["cats", "dogs"]
    assert cache.labels.tolist() == [0] * 6 + [1] * 6
    assert cache.meta["tokenizer"] == fingerprint(tokenizer)
    image = np.asarray(Image.open(folder / "images/dogs/1.png"))
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert torch.equal(cache[7]["codes"], tokenizer.encode(pixels)[0])


def test_a_stand_in_for_an_unreadable_image_is_cached_with_its_own_label(maskgen, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.effect_noise((8, 8), 50 + i).convert("RGB").save(tmp_path / name / f"{i}.png")
    whole = (tmp_path / "a/1.png").read_bytes()
    (tmp_path / "a/1.png").write_bytes(whole[:-30])  # its header is right, so only reading finds out
    data = f"{{type: image_folder, path: {tmp_path}, size: 8}}"
    assert maskgen("encode", "runs/tokenizer", tmp_path / "cache", "--data", data).code == 0
    cache = TokenCache(str(tmp_path / "cache"))
    assert torch.equal(cache[1]["codes"], cache[2]["codes"])
    assert cache.labels.tolist() == [0, 1, 1, 1]


def test_the_same_seed_draws_the_same_images_byte_for_byte(maskgen, tmp_path):
    def draw(name, *arguments):
        done = maskgen("sample", "runs/generator", "-n", 2, "--out", tmp_path / name, *arguments)
        assert done.code == 0
        assert done.out.strip().splitlines()[-1] == str(tmp_path / name / "grid.png")
        return {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}

    first = draw("a")
    assert first.keys() == {"cats_000.png", "cats_001.png", "dogs_000.png", "dogs_001.png", "grid.png"}
    assert Image.open(tmp_path / "a/cats_000.png").size == (8, 8)
    grid = Image.open(tmp_path / "a/grid.png")
    grid.load()
    assert grid.size[1] > 2 * 64
    assert draw("b", "--seed", 0, "--device", "cpu") == first
    assert draw("c", "--seed", 100)["cats_000.png"] != first["cats_000.png"]
    assert draw("d", "--steps", 1, "--guidance", 1.0)["cats_000.png"] != first["cats_000.png"]
    one = draw("e", "--class", "dogs")
    assert one.keys() == {"dogs_000.png", "dogs_001.png", "grid.png"}
    assert draw("f", "--class", "1") == one


def test_reconstruct_measures_and_shows(maskgen, tmp_path):
    """Of a run, whose data it knows; of a pipeline's folder, whose data must be said; both times the same."""
    done = maskgen("reconstruct", "runs/tokenizer", "--out", tmp_path / "a/it.png")
    report = json.loads((tmp_path / "a/metrics.json").read_text())
    assert done.code == 0
    assert done.out.splitlines()[0].startswith("12 images of 8x8 (h x w), tokenizer ")
    assert f"psnr {report['metrics']['psnr']:.2f} dB, mean over images" in " ".join(done.out.split())
    assert report["metrics"].keys() == {"psnr", "use", "perplexity", "dead"}
    assert report["left_out"].keys() == {"ssim", "lpips", "rfid"}
    assert 0 < report["metrics"]["psnr"] < 40
    assert Image.open(tmp_path / "a/it.png").size[0] > 100
    again = maskgen(
        "reconstruct", "runs/generator/pipeline", "--data", "images", "--size", 8, "--out", tmp_path / "b/it.png"
    )
    assert again.code == 0
    assert json.loads((tmp_path / "b/metrics.json").read_text()) == report
    few = (
        "reconstruct",
        "runs/tokenizer",
        "images/cats/0.png",
        "images/dogs/5.png",
        "--out",
        tmp_path / "c/it.png",
    )
    assert maskgen(*few).code == 0
    assert json.loads((tmp_path / "c/metrics.json").read_text())["count"] == 2
    assert maskgen("reconstruct", "runs/tokenizer", "--limit", 3, "--out", tmp_path / "c/it.png").code == 0
    assert json.loads((tmp_path / "c/metrics.json").read_text())["count"] == 3


@pytest.mark.train
def test_train_takes_overrides_and_goes_on(maskgen, folder):
    assert maskgen("train", "tokenizer.yaml", "name=more", "training.steps=2").out.strip() == "runs/more"
    assert maskgen("train", "tokenizer.yaml", "name=more", "training.steps=4").code == 0
    lines = [json.loads(line) for line in (folder / "runs/more/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_fid_of_two_files_of_statistics_needs_no_network(maskgen, tmp_path):
    for name, mean in (("a", 0.0), ("b", 1.0)):
        np.savez(tmp_path / f"{name}.npz", mu=np.full(3, mean), sigma=np.eye(3))
    done = maskgen("fid", tmp_path / "a.npz", tmp_path / "b.npz", "--out", tmp_path / "report.json")
    assert done.code == 0
    assert "= 3.0000" in done.out
    (metric,) = json.loads((tmp_path / "report.json").read_text())["metrics"].values()
    assert metric["value"] == pytest.approx(3)


def test_help_names_every_command(maskgen):
    done = maskgen("--help")
    assert done.code == 0
    assert all(command in done.out for command in (*cli.COMMANDS, "make-data"))
    for command in [*([name] for name in cli.COMMANDS), *(["make-data", name] for name in cli.MAKE_DATA)]:
        done = maskgen(*command, "--help")
        assert done.code == 0
        assert "Usage: " in done.out


# ------------------------------------------------------------------------------------------------------------- errors


ENCODE = ["encode", "runs/tokenizer", "out", "--data"]
RECONSTRUCT = ["reconstruct", "runs/tokenizer", "--data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["sample", "runs/generator", "--class", "catz"],
            "unknown class 'catz': did you mean 'cats'? choose one of cats",
        ),
        (["sample", "runs/generator", "--class", "7"], "unknown class '7': choose one of cats, dogs"),
        (["sample", "./runs/missing/"], "runs/missing"),
        (
            ["sample", "runs/tokenizer"],
            "no pipeline at runs/tokenizer, for it has no model_index.json: give the run of",
        ),
        (["sample", "runs/generator", "--device", "gpu0"], "no device is called 'gpu0'; give auto, cpu, cuda, cuda:1"),
        (["sample", "runs/generator", "--device", "cuda:99"], "device cuda:99: this machine has"),
        (["make-data", "moving-mnist", "out.npy", "--digits", "nowhere"], "out.npy must end in .npz"),
        (["sample", "runs/generator", "--steps", "0"], "steps must be at least 1"),
        (["reconstruct", "runs/missing"], "no tokenizer at runs/missing: give a run (with pipeline/vqvae/), a"),
        (["reconstruct", "runs/generator"], "its data are codes already; name the images with --data"),
        ([*RECONSTRUCT, "images"], "a folder of images needs a size: --size 256"),
        ([*RECONSTRUCT, "images", "--size", "9"], "each side must be a multiple of 2; resize to (8, 8)"),
        ([*RECONSTRUCT, "{type: image_folder, path: images, size: 8, channels: 1}"], "pixels have 1 channels; this"),
        ([*RECONSTRUCT, "imagez"], "unknown 'imagez'"),
        ([*RECONSTRUCT, "gone/images"], "gone/images: 1 problem\n  - no such file or folder"),
        (
            [*RECONSTRUCT, "nan.npz"],
            "'images' in nan.npz has floats from nan to nan; they must lie in [0, 1] or [-1, 1]",
        ),
        ([*RECONSTRUCT, "emoji", "images/cats/0.png"], "image files (images/cats/0.png) are given too; give one"),
        (["reconstruct", "runs/tokenizer", "images"], "images is not a file; give a folder of images as --data"),
        (["reconstruct", "runs/tokenizer", "tokenizer.yaml"], "tokenizer.yaml: cannot identify image file"),
        ([*RECONSTRUCT, "emoji", "--lpips", "gone.pth"], "lpips needs torchvision's VGG16_Weights"),
        ([*RECONSTRUCT, "emoji", "--inception", "gone.pth"], "names gone.pth, which is not a file"),
        ([*RECONSTRUCT, "emoji", "--classifier", "gone"], "gone has no classifier.json"),
        ([*RECONSTRUCT, "gone-{0..3}.tar", "--size", "8"], "4 of 4 shards of gone-{0..3}.tar do not exist"),
        ([*ENCODE, "images", "--size", "9"], "each side must be a multiple of 2; resize to (8, 8)"),
        ([*ENCODE, "{type: image_folder, path: images, size: 8, channels: 1}"], "pixels have 1 channels; this"),
        ([*ENCODE, "nan.npz"], "'images' in nan.npz has floats from nan to nan"),
        (["encode", "runs/tokenizer", "tokens", "--flips"], "token cache: flips was false, is true. Give another"),
        (["encode", "runs/other", "tokens", "--data", "runs/tokenizer"], "token cache: tokenizer was "),
        (
            ["train", "generator.yaml", "name=new", "stage.tokenizer=runs/other"],
            "the token cache was made by tokenizer",
        ),
        (["train", "generator.yaml", "name=new", "data.path=damaged"], "holds code 99; its codebook has 0 to"),
        ([*RECONSTRUCT, "gone.npz"], "gone.npz does not exist; give an .npz file"),
        (["encode", "runs/tokenizer", "out", "--data", "{type: emoji"], "not valid YAML: while parsing a flow mapping"),
        (["train", "generator.yaml", "name=new", "data.path=gone"], "gone holds no token cache (meta.json); make one"),
        (["train", "tokenizer.yaml", "name=new", "stage.perceptuel=1"], "unknown key; did you mean 'perceptual'?"),
        (["train", "tokenizer.yaml", "training.seed=5"], "training.seed changed from 0 to 5"),
        (["train", "tokeniser.yaml"], "no such file; did you mean 'tokenizer/"),
        (["fid", "gone", "images"], "gone does not exist; give a folder of images, an .npz file or a saved"),
        (["fid", "images", "images", "--weights", "gone.pth"], "names gone.pth, which is not a file"),
    ],
)
def test_an_error_is_one_message(maskgen, arguments, message):
    done = maskgen(*arguments)
    assert done.code == 1
    assert done.message.startswith("maskgen: ")
    assert message in done.message
    assert "Traceback" not in done.message


def test_fid_without_weights_or_network_says_both_ways(maskgen, monkeypatch, tmp_path):
    monkeypatch.delenv("MASKGEN_INCEPTION", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # nothing cached,
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # and nothing can be fetched
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    done = maskgen("fid", "images", "images")
    assert done.code == 1
    assert done.message.startswith("maskgen: could not download the Inception weights (")
    for way in ("run where the internet can be reached", str(tmp_path), "--weights PATH", "MASKGEN_INCEPTION"):
        assert way in done.message


def test_debug_shows_the_traceback(maskgen, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["maskgen", "--debug", "reconstruct", "runs/missing"])
    with pytest.raises(FileNotFoundError, match="no tokenizer at runs/missing"):
        cli.main()


@pytest.mark.parametrize("arguments", [["--temperature", "2"], ["--temperature=2"]])
def test_a_renamed_option_names_the_new_one(maskgen, arguments):
    done = maskgen("evaluate", "bundled", *arguments)
    assert done.code == 2
    assert "--temperature is now called --choice-temperature" in " ".join(done.message.replace("│", " ").split())
    assert maskgen("sample", "--temperature", "2").code == 2  # an unknown option, since this command never had it


@pytest.mark.parametrize("arguments", [["sample", "--count", "0"], ["reconstruct", "runs/tokenizer", "--limit", "0"]])
def test_counts_below_one_are_wrong_usage(maskgen, arguments):
    done = maskgen(*arguments)
    assert done.code == 2
    assert "Usage: " in done.message
    assert arguments[-2] in done.message


@pytest.mark.train
def test_an_error_from_a_shell_is_one_message_and_exit_code_1(folder):
    command = [sys.executable, "-m", "maskgen", "train", "tokenizer.yaml", "training.stepps=3"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    head, problem = done.stderr.splitlines()
    assert head == "maskgen: tokenizer.yaml: 1 problem"
    assert problem.startswith("  - training.stepps: unknown key; did you mean 'steps'? allowed: steps, batch_size,")
