"""Representation learners: every configuration trains, draws what it hides, exports a backbone, and is probed."""

import numpy as np
import pytest
import torch
from PIL import Image

from flat import merged
from maskgen.config import configs_folder, load
from maskgen.data.arrays import NpzArrays
from maskgen.evaluation.probes import knn
from maskgen.evaluation.probes.features import extract
from maskgen.pipelines.backbone import load_backbone
from maskgen.training.loop import Training
from maskgen.training.metrics import read_metrics
from maskgen.training.run import run
from maskgen.training.saved import load_learner

NAMES = sorted(path.stem for path in (configs_folder() / "representation").glob("*.yaml"))
CODES, FEATURES = ["target", "predicted", "pasted"], ["agreement"]
ROWS = {
    "mae": ["predicted", "pasted"],
    **dict.fromkeys(("beit", "beit2", "ccvit", "maskfeat"), CODES),
    **dict.fromkeys(("attmask", "ibot", "maskalign", "maskdistill"), FEATURES),
}
TINY = {"width": 16, "depth": 2, "block": {"heads": 2}}
HIERA = {"width": 16, "stages": [1, 1], "pooling": {"pools": 1}, "heads": 2}  # 8 wide in its first block

SMALL = {
    "decoder": {"depth": 1, "width": 8, "heads": 2},
    "branch": {"depth": 1, "layer": 1, "out_dim": 192},
    "head": {"hidden": 12, "bottleneck": 8, "mixtures": 2},
}


@pytest.fixture
def data(colours):
    return colours(side=32, noise=70)


def tiny(name, data):
    """A configuration in everything but its size: 8-pixel patches of 32-pixel images, a 4x4 grid."""
    stage = load(f"representation/{name}", [])["stage"]
    model = merged(stage["model"], HIERA if stage["model"].get("type") == "hiera" else TINY)
    for part, small in SMALL.items():
        if part in model:
            model[part] = {key: small.get(key, value) for key, value in model[part].items()}
    masking = dict(stage["masking"])
    masking["target"] = shrunk(masking["target"])
    masking["auxiliary"] = [shrunk(term) for term in masking.get("auxiliary", [])]
    if masking.get("sampler") == "block":
        masking["sampler"] = {"type": "block", "min_block": 2}
    if "count" in (masking.get("dropping") or {}):
        masking["dropping"] = {"type": "replace_more", "count": 2}
    stage |= {"tokens": {"type": "patches", "patch": 8}, "model": model, "masking": masking}
    if "target_tokenizer" in stage:
        patch = {"type": "patch", "patch": 8}
        parts = {"encoder": patch, "quantizer": {"codebook_size": 16, "dim": 192}, "decoder": patch}
        run("centroids", {"type": "centroids", "tokenizer": parts, "points": 100}, data, Training(steps=2))
        stage["target_tokenizer"] = "runs/centroids"
    if stage.get("teacher", {}).get("layers"):
        run("taught", tiny("mae", data), data, Training(steps=1, batch_size=8))
        stage["teacher"] = {"type": "run", "path": "runs/taught", "layers": 2}
    elif stage.get("teacher", {}).get("type") == "torchvision":
        torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 5, 4, 4)), "teacher.pt")
        stage["teacher"] = {"type": "torchscript", "path": "teacher.pt"}
    return stage


def shrunk(part):
    """A target or term with the sizes of a tiny run."""
    if not isinstance(part, dict):
        return part
    part = {"patch": 16, **part} if part.get("type") == "hog" else part
    sizes = {"patch": 8, "dim": 12, "prototypes": 12, "layers": 2}
    return {key: shrunk(sizes.get(key, value)) for key, value in part.items()}


def augmentation(name):
    augment = {
        k: tuple(v) if isinstance(v, list) else v for k, v in load(f"representation/{name}", [])["augment"].items()
    }
    return {**augment, "small": 2, "small_size": 16} if augment.get("small") else augment


@pytest.mark.train
@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_trains_and_its_backbone_gives_features(name, data):
    settings = Training(steps=2, batch_size=8, log_every=1, precision="fp32")
    folder = run(name, tiny(name, data), data, settings, augment=augmentation(name), holdout=4)
    lines = read_metrics(folder / "metrics.jsonl")
    assert len(lines) == 2
    assert all(np.isfinite(line["model/loss"]) for line in lines)
    assert np.isfinite(lines[-1]["holdout/loss"])
    with Image.open(folder / "samples" / "step_00000002.png") as image:
        assert image.height > 2 * 32
    saved = load_learner(folder)
    sheet = saved.visualise(saved.dataset, count=3, ratio=0.5)
    assert list(sheet.rows) == ["image", "mask", *ROWS.get(name, ROWS["mae"])]
    assert all(row.isfinite().all() and len(row) == 3 for row in sheet.rows.values())
    assert sheet.draw().height > sum(row.shape[2] for row in sheet.rows.values())
    for layer in (0, -1):
        backbone = load_backbone(folder, layer)
        features = extract(backbone, NpzArrays("data.npz"), prefix=backbone.prefix, progress=False)
        assert features.values.shape == (24, 8 if (name, layer) == ("hiera", 0) else 16)
        assert knn(features, features, ks=[3], progress=False).protocol
    with pytest.raises(ValueError, match="layer 2: this transformer has layers 0 to 1"):
        load_backbone(folder, 2)


@pytest.mark.train
@pytest.mark.parametrize(("name", "steps"), [("mae", 200), ("hiera", 80)])
def test_mae_learns_to_predict_what_it_does_not_see(name, steps, data):
    stage = tiny(name, data)
    stage["masking"]["target"]["normalise"] = "none"
    settings = Training(steps=steps, batch_size=24, learning_rate=1e-2, warmup_steps=10, log_every=40, precision="fp32")
    folder = run(name, stage, data, settings)
    line = read_metrics(folder / "metrics.jsonl")[-1]
    with np.load("data.npz") as file:
        spread = (file["images"] / 127.5 - 1).var()
    assert line["model/drop_ratio"] == 0.75
    assert line["model/loss"] < 0.7 * spread  # a mean over the data would have 1.0


def test_targets_say_what_they_lack(data):
    stage = tiny("mae", data)
    for target, missing in (({"type": "features"}, "needs features"), ("codes", "needs codes")):
        stage["masking"]["target"] = target
        with pytest.raises(ValueError, match=f"masking.target {missing}.*tokens, pixels.*set stage"):
            run("lacking", stage, data, Training(steps=1))
    stage["masking"]["target"] = {"type": "pixels", "patch": 4}
    with pytest.raises(ValueError, match=r"target has 64 values.*16 tokens"):
        run("unfit", stage, data, Training(steps=1))


def test_no_hidden_pixel_reaches_the_backbone_or_the_image(data):
    """The image that a run draws depends on visible pixels alone."""
    from maskgen.training.stages.representation import RepresentationStage

    stage = {k: v for k, v in tiny("mae", data).items() if k != "type"}
    dataset = NpzArrays("data.npz")
    torch.manual_seed(0)
    built = RepresentationStage(dataset=dataset, **stage)
    model = built.modules["model"].eval()
    torch.nn.init.normal_(model.network.head.weight)
    first = np.asarray(built.image(model))
    plan = model.masking.plan(16, (4, 4), torch.Generator().manual_seed(0))
    cover = plan.hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]

    class Changed:
        class_names, labels = dataset.class_names, dataset.labels

        def __len__(self):
            return 24

        def __getitem__(self, index):
            pixels = dataset[index]["pixels"]
            row = next((r for r in range(16) if r * 24 // 16 == index), None)
            return {"pixels": pixels if row is None else torch.where(cover[row], -pixels, pixels), "label": 0}

    built.dataset = Changed()
    second = np.asarray(built.image(model))
    row = 4 + 3 * 32
    assert not np.array_equal(first[:row], second[:row])  # the images themselves differ
    assert np.array_equal(first[row:], second[row:])
