"""Seeing: what is drawn of a run, on whose knowledge, and what the sheet says of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from maskgen import MaskTransformer
from maskgen.data.arrays import NpzArrays
from maskgen.evaluation.hog_glyphs import glyphs
from maskgen.evaluation.visualise import Inputs, visualise
from maskgen.mim.core import Learner, MaskedModeling
from maskgen.mim.hog import HOG
from maskgen.pipelines.encode import encode_dataset
from maskgen.pipelines.store import load_tokenizer
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.loop import Training
from maskgen.training.run import run
from maskgen.training.saved import load_learner
from maskgen.transformer.several_codes import split_codes

MODEL = {"width": 16, "depth": 1, "block": {"heads": 2}, "num_registers": 1}
PATCH = {"type": "patch", "patch": 8}
PEEKED = "PEEKED: with the hidden patches' own mean and contrast."
TARGETS = {"pixels": {"type": "pixels", "patch": 8}, "hog": {"type": "hog", "patch": 8}, "codes": "codes"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run a target, a generator's on images and one on a token cache; the working folder is theirs."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("seeing"))
    patch.setenv("ACCELERATE_USE_CPU", "true")
    images = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    np.savez("data.npz", images=images, labels=np.arange(12) % 3)
    for i in range(2):
        Image.fromarray(images[i][: 32 + 8 * i, : 32 - 8 * i]).save(f"{i}.png")
    data, few = {"type": "npz", "path": "data.npz"}, Training(steps=2)
    parts = {"encoder": PATCH, "quantizer": {"codebook_size": 16, "dim": 192}, "decoder": PATCH}
    run("centroids", {"type": "centroids", "tokenizer": parts, "points": 100}, data, few)
    settings = Training(steps=4, batch_size=8, learning_rate=1e-2, warmup_steps=0, ema=0.5, precision="fp32")
    stage = {"type": "representation", "tokens": {"type": "patches", "patch": 8}, "model": MODEL}
    for name, target in TARGETS.items():
        masking = {"ratio": {"type": "fixed", "ratio": 0.5}, "target": target, "objective": "mse"}
        if name == "codes":
            stage, masking["objective"] = {**stage, "target_tokenizer": "runs/centroids"}, "cross_entropy"
        run(name, {**stage, "masking": masking}, data, settings, holdout=4)
    encode_dataset(load_tokenizer("runs/centroids"), NpzArrays("data.npz"), "tokens")
    generator = {"type": "generator", "tokenizer": "runs/centroids", "model": MODEL}
    run("generator", generator, data, settings)
    run("cached", generator, {"type": "tokens", "path": "tokens"}, settings)
    yield
    patch.undo()


# ------------------------------------------------------------------------------------------------- what reaches a row


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_hidden_reaches_no_prediction(name, runs):
    """Hidden pixels are turned into their opposite: only the truth's own rows see it."""
    saved = load_learner(f"runs/{name}")
    plan = saved.learner.masking.plan(4, (4, 4), torch.Generator().manual_seed(0))
    cover = plan.hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    pixels = torch.stack([saved.dataset[i]["pixels"] for i in range(4)])
    changed = torch.where(cover, -pixels, pixels)
    a, b = (visualise(saved.learner, saved.stage.inputs({"pixels": x})) for x in (pixels, changed))
    assert torch.equal(a.rows["image"], pixels)
    assert torch.equal(a.rows["mask"], torch.where(cover, 0.0, pixels))
    for row in ("mask", "predicted", "pasted"):
        assert torch.equal(a.rows[row], b.rows[row])
    assert a.rows["predicted"].std() > 0.01
    assert name == "pixels" or not torch.equal(a.rows["target"], b.rows["target"])
    if name == "pixels":
        assert torch.equal(a.rows["pasted"].where(~cover, 0.0), a.rows["mask"])
    assert PEEKED not in a.legend


@pytest.mark.parametrize("name", ["generator", "cached"])
def test_hidden_codes_reach_no_prediction(name, runs):
    saved = load_learner(f"runs/{name}")
    plan = saved.learner.masking.plan(4, (4, 4), torch.Generator().manual_seed(0))
    codes = saved.stage._tokens({k: v[None] for k, v in saved.dataset[0].items() if isinstance(v, torch.Tensor)})
    codes = codes.repeat(4, 1, 1)
    changed = torch.where(plan.hidden, (codes + 1) % 16, codes)
    label = torch.arange(4) % 3
    a, b = (visualise(saved.learner, saved.stage.inputs({"codes": x, "label": label})) for x in (codes, changed))
    assert list(a.rows) == ["codes, decoded", "mask", "predicted", "pasted"]
    assert not torch.equal(a.rows["codes, decoded"], b.rows["codes, decoded"])
    for row in ("mask", "predicted", "pasted"):
        assert torch.equal(a.rows[row], b.rows[row])


def test_peeking_is_said_and_seen(runs):
    saved = load_learner("runs/pixels")
    blind, peeked = (saved.visualise(saved.dataset, peek=peek) for peek in (False, True))
    assert PEEKED in peeked.legend
    assert "The mean and contrast of hidden patches are estimated from visible patches." in blind.legend
    assert torch.equal(blind.rows["mask"], peeked.rows["mask"])
    hidden = (blind.rows["mask"] == 0).all(1, keepdim=True)
    assert not torch.isclose(blind.rows["pasted"], peeked.rows["pasted"]).where(hidden, True).all()
    drawn = [np.asarray(sheet.draw()).astype(int) for sheet in (blind, peeked)]
    below = 4 * 100 + 4  # the legend, under four rows of images
    assert all(sheet[below:].min() < 128 for sheet in drawn)
    assert drawn[0][below:].shape != drawn[1][below:].shape or (drawn[0][below:] != drawn[1][below:]).any()
    for name in ("codes", "hog"):
        with pytest.raises(ValueError, match="target of this run is not normalised pixels; leave it out"):
            load_learner(f"runs/{name}").visualise(saved.dataset, peek=True)


# ------------------------------------------------------------------------------------- networks with known answers


class Oracle(nn.Module):
    """Predicts `answer`; without a decoder it predicts what it keeps."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, tokens, masked, conditioning=None, keep=None, kept=None):
        rows = torch.arange(len(self.answer))[:, None]
        return SimpleNamespace(predictions=self.answer if keep is None else self.answer[rows, keep])


def patches():
    return Tokenizer(PATCH, {"type": "none", "dim": 192}, PATCH)


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 32, 32) * 2 - 1


@pytest.mark.parametrize("normalise", ["none", "patch", "patch_channel"])
def test_right_pixels_give_the_image_where_their_statistics_are_known(normalise, pixels):
    core = MaskedModeling("cosine", target={"type": "pixels", "patch": 8, "normalise": normalise}, objective="mse")
    learner, inputs = Learner(Oracle(core.target(pixels)), core), Inputs(patches().encode(pixels), patches(), pixels)
    blind = visualise(learner, inputs)
    if normalise != "none":
        peeked = visualise(learner, inputs, peek=True)
        torch.testing.assert_close(peeked.rows["pasted"], pixels, atol=1e-5, rtol=0)
        torch.testing.assert_close(peeked.rows["predicted"], pixels, atol=1e-5, rtol=0)
    known = torch.allclose(blind.rows["pasted"], pixels, atol=1e-5)
    assert known == (normalise == "none")


@pytest.mark.parametrize("target", ["codes", {"type": "bits", "bits": 4}])
def test_right_codes_give_the_reconstruction(target, pixels):
    tokenizer = Tokenizer(PATCH, {"codebook_size": 16, "dim": 192}, PATCH).eval()
    codes = tokenizer.encode(pixels)
    logits = {"codes": nn.functional.one_hot(codes.flatten(1), 16) * 20.0}
    logits["bits"] = (codes.flatten(1)[..., None] >> torch.arange(4) & 1) * 2.0 - 1
    core = MaskedModeling(target=target, objective="cross_entropy" if target == "codes" else "binary_cross_entropy")
    answer = logits[target if isinstance(target, str) else target["type"]]
    sheet = visualise(Learner(Oracle(answer), core), Inputs(codes, tokenizer, pixels))
    assert list(sheet.rows) == ["image", "mask", "target", "predicted", "pasted"]
    for row in ("target", "predicted", "pasted"):
        torch.testing.assert_close(sheet.rows[row], tokenizer.decode(codes))


def test_right_groups_of_bits_give_the_reconstruction(pixels):
    """Two codes a place, each hidden by itself; a place with one of them hidden is half grey."""
    tokenizer = Tokenizer(PATCH, {"codebook_size": 16, "dim": 192}, PATCH).eval()
    codes = tokenizer.encode(pixels)
    groups = split_codes(codes, 4, 2)
    core = MaskedModeling({"type": "fixed", "ratio": 0.5})
    learner = Learner(Oracle(nn.functional.one_hot(groups.flatten(1), 4) * 20.0), core)
    sheet = visualise(learner, Inputs(groups, tokenizer, pixels, codes_per_position=2))
    for row in ("target", "predicted", "pasted"):
        torch.testing.assert_close(sheet.rows[row], tokenizer.decode(codes))
    share = (1 - (sheet.rows["mask"] / pixels).mean(1)).unflatten(2, (4, 8)).unflatten(1, (4, 8)).mean((2, 4))
    assert {round(x, 3) for x in share.flatten().tolist()} == {0.0, 0.5, 1.0}
    assert share.mean() == pytest.approx(0.5)


@pytest.mark.parametrize("objective", ["mse", {"type": "gaussian_mixture", "components": 2}])
def test_right_latents_give_the_image(objective, pixels):
    tokenizer, core = patches(), MaskedModeling(target="latents", objective=objective)
    tokens = tokenizer.encode(pixels)
    answer = tokens.flatten(1, 2)
    if objective != "mse":  # of two components the first is right, and all but certain
        nothing = torch.zeros_like(answer)
        logits = torch.tensor([30.0, -30.0]).expand(2, 16, 2)
        answer = torch.cat([logits, answer, nothing, nothing, nothing], -1)
    sheet = visualise(Learner(Oracle(answer), core), Inputs(tokens, tokenizer, pixels))
    for row in ("target", "predicted", "pasted"):
        torch.testing.assert_close(sheet.rows[row], pixels)


def test_tokens_without_a_place_have_no_mask(pixels):
    parts = {"type": "vit", "size": 32, "patch": 8, "tokens": 6, "transformer": {"width": 16, "depth": 1, "heads": 2}}
    tokenizer = Tokenizer(parts, {"codebook_size": 16, "dim": 4}, parts).eval()
    codes = tokenizer.encode(pixels)
    learner = Learner(Oracle(nn.functional.one_hot(codes, 16) * 20.0), MaskedModeling({"type": "fixed", "ratio": 0.5}))
    sheet = visualise(learner, Inputs(codes, tokenizer, pixels))
    assert list(sheet.rows) == ["image", "target", "predicted", "pasted"]
    assert sheet.legend[0] == "Hidden: 50% of 6 tokens, which have no position in the image."
    torch.testing.assert_close(sheet.rows["pasted"], tokenizer.decode(codes))


def test_agreement_is_bright_where_right_and_grey_where_dropped(pixels):
    """A teacher's features: right in the left half, the opposite in the right one; the hidden are dropped."""
    features = torch.randn(2, 5, 4, 4)
    answer = torch.where(torch.arange(4) < 2, features, -features).flatten(2).transpose(1, 2)
    target = {"type": "features", "normalise": "none"}
    for dropping in ("none", "all"):
        core = MaskedModeling({"type": "fixed", "ratio": 0.5}, dropping=dropping, target=target, objective="cosine")
        inputs = Inputs(patches().encode(pixels), patches(), pixels, {"features": features})
        sheet = visualise(Learner(Oracle(answer), core), inputs)
        assert list(sheet.rows) == ["image", "mask", "agreement"]
        heat = sheet.rows["agreement"]
        bright, dark = torch.tensor([253, 231, 37]) / 127.5 - 1, torch.tensor([68, 1, 84]) / 127.5 - 1  # viridis' ends
        expected = torch.where(torch.arange(32) < 16, bright[:, None, None], dark[:, None, None]).expand(2, 3, 32, 32)
        dropped = (sheet.rows["mask"] == 0).all(1, keepdim=True) if dropping == "all" else torch.zeros(2, 1, 1, 1) > 0
        torch.testing.assert_close(heat, torch.where(dropped, 0.0, expected), atol=0.02, rtol=0)
        assert ("grey: dropped, not predicted." in sheet.legend[-1]) == (dropping == "all")


@pytest.mark.parametrize("upright", [True, False])
def test_an_edge_is_drawn_along_itself(upright):
    target, line = HOG(patch=8), torch.full((1, 1, 8, 8), -1.0)
    (line[..., 4:] if upright else line[..., 4:, :]).fill_(1)
    drawn = glyphs(target(line), target, 1, (1, 1))[0, 0]
    along, across = (drawn[:, 6:10], drawn[6:10]) if upright else (drawn[6:10], drawn[:, 6:10])
    assert drawn.shape == (16, 16)
    assert along.mean() > across.mean() + 0.3
    assert (glyphs(torch.zeros(1, 1, 9), target, 1, (1, 1)) == -1).all()


# ------------------------------------------------------------------------------------------------- runs and commands


@pytest.mark.parametrize("name", ["codes", "generator"])
def test_a_run_is_read_back_as_its_pipeline(name, runs):
    saved = load_learner(f"runs/{name}")
    exported = MaskTransformer.from_pretrained(f"runs/{name}/pipeline/transformer").state_dict()
    found = saved.learner.network.state_dict()
    assert found.keys() == exported.keys()
    assert all(torch.equal(found[key], exported[key]) for key in exported)
    assert not saved.learner.training


def test_the_command_draws_any_images(runs, maskgen):
    for name, *arguments in (
        ("own.png", "runs/pixels", "--count", 3),
        ("files.png", "runs/pixels", "0.png", "1.png", "--peek"),
        ("g.png", "runs/generator", "--data", "data.npz", "--ratio", 0.25),
    ):
        assert maskgen("visualise", *arguments, "--out", name).out.strip() == name
    with Image.open("own.png") as own, Image.open("files.png") as files, Image.open("g.png") as generator:
        assert own.width == files.width + 100  # three columns, and two
        assert generator.height > own.height  # five rows, and four


def test_the_ratio_is_for_this_sheet_alone(runs):
    saved = load_learner("runs/pixels")
    assert saved.visualise(saved.dataset, ratio=0.25).legend[0] == "Grey: 25% of 16 tokens, hidden."
    assert saved.visualise(saved.dataset).legend[0] == "Grey: 50% of 16 tokens, hidden."
    masks = [saved.visualise(saved.dataset, seed=seed).rows["mask"] for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_who_errs_is_told_how_to_mend_it(runs, maskgen):
    np.savez("grey.npz", images=np.zeros((2, 32, 32), np.uint8), labels=np.zeros(2, int))
    for message, *arguments in (
        ("nowhere has no config.yaml; give the folder of a run", "nowhere"),
        ("runs/centroids is a run of stage centroids, which hides nothing", "runs/centroids"),
        ("leave it out", "runs/codes", "--peek"),
        ("pixels have 1 channels; this tokenizer takes 3", "runs/pixels", "--data", "grey.npz"),
    ):
        assert message in maskgen("visualise", *arguments).message
