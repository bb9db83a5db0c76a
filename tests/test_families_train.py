"""Every family through the training command: two steps, an export that loads, and generators on top."""

import numpy as np
import pytest
import torch

from maskgen.config import configs_folder, load
from maskgen.data.arrays import NpzArrays
from maskgen.evaluation.reconstruction.report import reconstruct
from maskgen.pipelines.store import load_tokenizer
from maskgen.tokenizer.tiling import tiled_decode, tiled_encode
from maskgen.training.loop import Training
from maskgen.training.metrics import read_metrics
from maskgen.training.run import run

pytestmark = pytest.mark.train

CONV = {"width": 8, "multipliers": [1, 2], "blocks": 1, "patch": 2}
SMALL = {"width": 16, "depth": 1, "heads": 2}
VIT = {"type": "vit", "size": 16, "patch": 4, "transformer": SMALL}
TOKENS = {**VIT, "tokens": 6, "transformer": {**SMALL, "positions": "learned"}}
VQ = {"codebook_size": 32, "dim": 4}
FAMILIES = {
    "vqgan": (CONV, VQ, CONV),
    "entropy": (CONV, {**VQ, "learned": True, "entropy": 0.1}, CONV),
    "movq": (CONV, {"type": "multichannel", "quantizer": {"codebook_size": 32, "dim": 2}}, {**CONV, "norm": "spatial"}),
    "fsq": (CONV, {"type": "fsq", "levels": [5, 3, 2]}, CONV),
    "lfq": (CONV, {"type": "lfq", "bits": 5}, CONV),
    "residual": (CONV, {"type": "residual", "num_quantizers": 2, "quantizer": VQ}, CONV),
    "continuous": (CONV, {"type": "none", "dim": 4}, CONV),
    "vae": (CONV, {"type": "gaussian", "dim": 4}, CONV),
    "vit-vqgan": (VIT, {**VQ, "l2_norm": True}, VIT),
    "titok": (TOKENS, VQ, {**TOKENS, "refine": True}),
    "ta-titok": (TOKENS, VQ, {**TOKENS, "text_dim": 5, "text_length": 7}),
}
TWO_STEPS = {"steps": 2, "batch_size": 8, "log_every": 1, "precision": "fp32"}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (24, 16, 16, 3), dtype=np.uint8)
    np.savez("plain.npz", images=images, labels=np.arange(24) % 3)
    np.savez("text.npz", images=images, labels=np.arange(24) % 3, text=rng.normal(size=(24, 7, 5)).astype(np.float32))
    return {"type": "npz", "path": "text.npz"}


def trained(name, data, **settings):
    encoder, quantizer, decoder = FAMILIES[name]
    stage = {"type": "tokenizer", "tokenizer": {"encoder": encoder, "quantizer": quantizer, "decoder": decoder}}
    return run(name, {**stage, **settings}, data, Training(**TWO_STEPS), holdout=4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_and_its_tokenizer_loads(name, data):
    folder = trained(name, data)
    last = read_metrics(folder / "metrics.jsonl")[-1]
    assert last["step"] == 2
    assert np.isfinite(last["holdout/psnr"])
    tokenizer = load_tokenizer(folder)
    assert ("codebook/use" in last) == (tokenizer.codebook_size > 0)
    report = reconstruct(tokenizer, NpzArrays("text.npz"), progress=False)
    assert report.count == 24
    assert np.isfinite(report.metrics["psnr"])


def test_a_decoder_of_text_needs_data_with_text(data):
    with pytest.raises(ValueError, match=r"needs text features \(b, at most 7, 5\), got none"):
        trained("ta-titok", {**data, "path": "plain.npz"})


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (np.zeros((24, 5), np.float32), r"float32 \(24, 5\)"),
        (np.zeros((9, 7, 5), np.float32), r"float32 \(9, 7, 5\)"),
        (np.zeros((24, 7, 5), np.int64), r"int64 \(24, 7, 5\)"),
        (np.full((24, 7, 5), np.nan, np.float32), r"float32 \(24, 7, 5\)"),
    ],
)
def test_text_features_that_do_not_fit_the_images(data, text, got):
    images = np.zeros((24, 16, 16, 3), np.uint8)
    np.savez("wrong.npz", images=images, text=text)
    with pytest.raises(ValueError, match=r"'text' in wrong.npz must be finite text features, float \(24, .*got " + got):
        NpzArrays("wrong.npz")


# Sizes of a tiny run; whatever else a configuration says stays. The networks of losses and teachers need a download.
SIZES = {
    "width": 16,
    "heads": 2,
    "depth": 1,
    "blocks": 1,
    "hidden_dim": 16,
    "codebook_size": 16,
    "tokens": 6,
    "text_dim": 5,
    "text_length": 7,
    "multipliers": [1, 2],
}


def shrunk(part):
    if not isinstance(part, dict):
        return part
    if part.get("type") == "vit":
        part = {**part, "size": 4 if part["patch"] == 1 else 16, "patch": min(part["patch"], 4)}
        part |= {"channels": 5} if "channels" in part else {}
    part |= {"attention": [1]} if isinstance(part.get("attention"), list) else {}
    return {key: SIZES.get(key, shrunk(value)) for key, value in part.items()}


@pytest.mark.parametrize("name", sorted(path.stem for path in (configs_folder() / "tokenizer").glob("*.yaml")))
def test_every_configuration_takes_two_steps(name, data):
    stage = load(f"tokenizer/{name}", [])["stage"]
    parts = stage["tokenizer"] = shrunk(stage["tokenizer"])
    if parts["encoder"].get("channels") == 1:
        for coder in ("encoder", "decoder"):
            parts[coder]["channels"] = 3
    if "adversarial" in stage:
        stage["adversarial"] = {**stage["adversarial"], "start": 0, "warmup": 0, "width": 8, "layers": 1}
    if "perceptual" in stage:
        stage["perceptual"] = 0.0
    if "teacher" in stage:
        torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 5, 4, 4)), "teacher.pt")
        stage["teacher"] = {"type": "torchscript", "path": "teacher.pt"}
    if name == "centroids":
        stage["points"] = 100
    folder = run(name, stage, data, Training(**TWO_STEPS), holdout=4)
    lines = read_metrics(folder / "metrics.jsonl")
    assert len(lines) == 2
    assert all(np.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    if "adversarial" in stage:
        assert lines[-1]["discriminator/loss"] > 0
    assert load_tokenizer(folder).config.target == parts.get("target", "pixels")


def test_centroids_are_fitted_and_load(data):
    tokenizer = {
        "encoder": {"type": "patch"},
        "quantizer": {"codebook_size": 32, "dim": 48},
        "decoder": {"type": "patch"},
    }
    folder = run("centroids", {"type": "centroids", "tokenizer": tokenizer, "points": 200}, data, Training(steps=5))
    lines = read_metrics(folder / "metrics.jsonl")
    errors = [line["error"] for line in lines]
    assert len(lines) == 5
    assert errors[-1] < errors[0]
    assert lines[-1]["codebook/use"] == 1
    assert load_tokenizer(folder).encode(torch.zeros(1, 3, 8, 16)).shape == (1, 2, 4)
    assert (folder / "samples" / "step_00000005.png").is_file()
    with pytest.raises(ValueError, match="k-means needs the quantizer of type vq"):
        run("fsq", {"type": "centroids", "tokenizer": {"quantizer": "fsq"}}, data, Training(steps=1))
    stage = {"type": "centroids", "tokenizer": tokenizer, "points": 200}
    with pytest.raises(ValueError, match="leave augment out"):
        run("turned", stage, data, Training(steps=1), augment={"flip": 0.5})
    with pytest.raises(ValueError, match=r"stage.points 9 must be at least the 32 centroids"):
        run("few", {"type": "centroids", "tokenizer": tokenizer, "points": 9}, data, Training(steps=1))
    with pytest.raises(ValueError, match="no weights to train"):
        run("patches", {"type": "tokenizer", "tokenizer": tokenizer}, data, Training(steps=1))


@pytest.mark.parametrize("name", ["titok", "lfq", "fsq"])
def test_generators_train_on_other_tokens_than_a_grid_of_a_codebook(name, data):
    trained(name, data)
    stage = {
        "type": "generator",
        "tokenizer": f"runs/{name}",
        "model": {"width": 16, "depth": 2, "block": {"heads": 2}},
    }
    folder = run("generator", {**stage, "scheduler": {"num_inference_steps": 2}}, data, Training(**TWO_STEPS))
    assert (folder / "pipeline" / "model_index.json").is_file()


def test_large_images_are_reconstructed_in_tiles(data):
    tokenizer = load_tokenizer(trained("vqgan", data))
    images = np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), dtype=np.uint8)
    np.savez("large.npz", images=images)
    whole, tiled = (reconstruct(tokenizer, NpzArrays("large.npz"), tile=tile, progress=False) for tile in (0, 32))
    pixels = NpzArrays("large.npz")[0]["pixels"][None]
    made = tiled_decode(tokenizer, tiled_encode(tokenizer, pixels, 32, 8), 8, 2).clamp(-1, 1)
    torch.testing.assert_close(tiled.made[0], made[0])
    torch.testing.assert_close(whole.made[0], tokenizer(pixels).pixels[0].clamp(-1, 1), rtol=0, atol=1e-4)
    assert not torch.equal(tiled.made[0], whole.made[0])
