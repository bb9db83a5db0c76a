"""Generators on the one core: every configuration trains two steps and draws, whatever a place of its canvas holds."""

import numpy as np
import pytest
import torch

from flat import merged, spec
from maskgen import MaskedImagePipeline
from maskgen.config import configs_folder, load
from maskgen.pipelines.tokens import TokenLayout
from maskgen.pipelines.trace import DecodeTrace
from maskgen.training.loop import Training
from maskgen.training.metrics import read_metrics
from maskgen.training.run import run

pytestmark = pytest.mark.train

ALL = sorted(path.stem for path in (configs_folder() / "generation").glob("*.yaml"))
NAMES = [name for name in ALL if load(f"generation/{name}", [])["stage"]["type"] == "generator"]
assert NAMES  # the other stages: test_critic.py
MODEL = spec(width=16, depth=2, heads=2)
CONV = {"width": 8, "multipliers": [1, 2], "blocks": 1}
TOKENIZERS = {
    "maskbit": {"type": "lfq", "bits": 6},
    "givt": {"type": "gaussian", "dim": 3},
    "multichannel": {"type": "multichannel", "chunks": 2, "quantizer": {"codebook_size": 16, "dim": 2}},
    "residual": {"type": "residual", "num_quantizers": 3, "quantizer": {"codebook_size": 16, "dim": 4}},
}
VQ = {"codebook_size": 16, "dim": 4}
SETTINGS = {"batch_size": 8, "log_every": 1, "precision": "fp32"}


@pytest.fixture
def data(colours):
    return colours()


def tokenizer(name, data):
    quantizer = TOKENIZERS.get(name, VQ)
    parts = {"encoder": CONV, "quantizer": quantizer, "decoder": CONV}
    return str(run(f"{name}-tokenizer", {"type": "tokenizer", "tokenizer": parts}, data, Training(steps=2, **SETTINGS)))


def trained(name, data, steps=2, augment=None, **stage):
    settings = Training(steps=steps, **SETTINGS)
    stage = {"type": "generator", "model": MODEL, "scheduler": {"num_inference_steps": 3}, **stage}
    stage["tokenizer"] = tokenizer(name, data)
    return run(name, stage, data, settings, augment=augment or {}, holdout=4)


def drawn(folder, **options):
    pipeline = MaskedImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, pipeline([0, 1, 2], generator=torch.Generator().manual_seed(0), **options).images


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_trains_and_draws(name, data):
    config = load(f"generation/{name}", [])
    stage = config["stage"]
    decoder = {"decoder": {"depth": 1, "heads": 2}} if "decoder" in stage["model"] else {}
    stage["model"] = merged(stage["model"], MODEL, decoder)
    stage["scheduler"] = {**stage.get("scheduler", {}), "num_inference_steps": 3}
    if name == "givt":
        stage["masking"]["objective"]["components"] = 2
    augment = {k: tuple(v) if isinstance(v, list) else v for k, v in config.get("augment", {}).items()}
    folder = trained(name, data, augment=augment, **{k: v for k, v in stage.items() if k != "tokenizer"})
    lines = read_metrics(folder / "metrics.jsonl")
    assert len(lines) == 2
    assert all(np.isfinite(line["model/loss"]) for line in lines)
    assert np.isfinite(lines[-1]["holdout/loss"])
    _, images = drawn(folder, output_type="np", guidance_scale=1.0)
    assert images.shape == (3, 8, 8, 3)
    assert np.isfinite(images).all()


@pytest.mark.parametrize("name", ["vq", "maskbit", "givt", "multichannel"])
def test_dropping_is_an_option_of_each(name, data):
    masking = {"ratio": {"type": "fixed", "ratio": 0.9}, "dropping": {"type": "share", "share": 0.4}}
    model = merged(MODEL, spec(decoder_depth=1))
    if name == "givt":
        masking |= {"target": "latents", "objective": {"type": "gaussian_mixture", "components": 2}}
    if name in ("maskbit", "multichannel"):
        model = merged(model, spec(groups=2))
    folder = trained(name, data, model=model, masking=masking)
    assert 0.25 < read_metrics(folder / "metrics.jsonl")[-1]["model/drop_ratio"] < 0.5
    _, images = drawn(folder, output_type="np")
    assert np.isfinite(images).all()


@pytest.mark.parametrize(("name", "groups"), [("maskbit", 2), ("maskbit", 3), ("multichannel", 2), ("residual", 3)])
@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_places_of_several_codes_are_completed_and_known_ones_stay(name, groups, order, data):
    model = merged(MODEL, spec(groups=groups, embedding="bits" if name == "maskbit" else "table"))
    folder = trained(name, data, model=model, scheduler={"num_inference_steps": 3, "order": order})
    pipeline, codes = drawn(folder, output_type="codes")
    assert codes.shape == ((3, 4, 4) if name == "maskbit" else (3, 4, 4, groups))
    mask = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    trace = DecodeTrace()
    done = pipeline.complete(codes, mask, [0, 1, 2], generator=torch.Generator().manual_seed(1), trace=trace)
    assert torch.equal(done[~mask], codes[~mask])
    assert not torch.equal(done, codes)
    tokens, hidden, confidence = trace.steps[-1]
    assert torch.equal(tokens, done)
    assert not hidden.any()
    assert torch.equal(confidence.isnan(), ~mask)
    assert len(trace.frames(pipeline.vqvae, side=16)) == 4


def test_continuous_tokens_are_completed_and_known_ones_stay(data):
    masking = {"target": "latents", "objective": {"type": "gaussian_mixture", "components": 2}}
    folder = trained("givt", data, masking=masking)
    pipeline, tokens = drawn(folder, output_type="codes")
    assert tokens.shape == (3, 4, 4, 3)
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    done = pipeline.complete(tokens, mask, [0, 1, 2], generator=torch.Generator().manual_seed(1))
    assert torch.equal(done[~mask], tokens[~mask])
    assert (done[mask] != tokens[mask]).all()
    with pytest.raises(ValueError, match=r"continuous tokens; set it to 1"):
        drawn(folder, guidance_scale=2.0)


@pytest.mark.parametrize("name", ["maskbit", "givt", "multichannel"])
def test_every_task_works_on_it(name, data):
    """An image is completed, extended, varied and joined whatever a place of its canvas holds."""
    model, masking = MODEL, {}
    if name == "givt":
        masking = {"target": "latents", "objective": {"type": "gaussian_mixture", "components": 2}}
    else:
        model = merged(MODEL, spec(groups=2))
    pipeline = MaskedImagePipeline.from_pretrained(trained(name, data, model=model, masking=masking))
    pipeline.set_progress_bar_config(disable=True)
    with np.load("data.npz") as file:
        one, two = file["images"][:2]
    mask = np.zeros((8, 8), bool)
    mask[:4, :4] = True
    options = {"class_labels": 1, "output_type": "np"}
    filled = pipeline.inpaint(one, mask, generator=torch.Generator().manual_seed(0), **options).images[0]
    assert np.array_equal((filled * 255).round().astype(np.uint8)[~mask], one[~mask])
    assert pipeline.outpaint(one, right=5, top=3, **options).images.shape == (1, 11, 13, 3)
    same = pipeline.vary(one, 0.0, **options).images[0]
    assert not np.array_equal(pipeline.vary(one, 0.7, **options).images[0], same)
    frames = pipeline.interpolate(one, two, num_frames=3, **options).images
    np.testing.assert_allclose(frames[0], same, atol=1e-5)
    assert pipeline.join(one, two, gap=4, **options).images.shape == (1, 8, 20, 3)


def test_tokenizers_of_several_codes_need_as_many_groups(data):
    with pytest.raises(ValueError, match=r"2 codes.*set stage\.model\.tokens\.codes_per_position=2"):
        trained("multichannel", data)
    with pytest.raises(ValueError, match="64 codes do not split into 4 groups"):
        trained("maskbit", data, model=merged(MODEL, spec(groups=4)))
    with pytest.raises(ValueError, match="16 codes do not split into 3 groups"):
        trained("vq", data, model=merged(MODEL, spec(groups=3)))


def test_parts_that_were_not_trained_together_are_refused(data):
    one, two = (MaskedImagePipeline.from_pretrained(trained(n, data, model=m)) for n, m in (
        ("vq", MODEL), ("maskbit", merged(MODEL, spec(groups=2, embedding="bits"))),
    ))  # fmt: skip
    with pytest.raises(ValueError, match="they were not trained together"):
        TokenLayout(one.vqvae, two.transformer)
    with pytest.raises(ValueError, match="they were not trained together"):
        TokenLayout(two.vqvae, one.transformer)


def test_contrast_is_refused_for_a_token_cache(data):
    with pytest.raises(ValueError, match="info_nce needs two views, got 1"):
        trained("vq", data, masking={"auxiliary": [{"type": "info_nce"}]})
