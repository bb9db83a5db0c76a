"""Hiera: mask units left out, pooling, fusion; its recorded numbers are in test_golden_hiera.py."""

import math

import pytest
import torch
import torch.nn.functional as F

from maskgen.config import ConfigError, check, load
from maskgen.evaluation.probes.probing import Classifier
from maskgen.mim.core import MaskedModeling
from maskgen.pipelines.backbone import load_backbone, save_backbone
from maskgen.training.run import run
from maskgen.training.stages.representation import patches
from maskgen.training.teachers import EMATeacher, RunTeacher
from maskgen.transformer.hiera import Hiera, from_flat
from maskgen.transformer.mask_units import cut, joined, pooled

IMAGE = {"grid": (4, 6), "patch": [2, 2], "kernel": [3, 3], "pool": [2, 2], "unit": [2, 2]}
VIDEO = {"grid": (2, 4, 4), "patch": [2, 1, 1], "kernel": [3, 3, 3], "pool": [1, 2, 2], "unit": [1, 2, 2]}
VIDEO |= {"positions": "learned_sum"}
POOLED_TIME = VIDEO | {"pool": [2, 2, 2], "patch": [1, 1, 1], "kernel": [3, 1, 1], "unit": [2, 2, 1]}
SIZES = {"stages": [1, 2, 1], "pools": 1, "width": 16, "heads": 4, "unit_stages": 1}
SIZES |= {"decoder_depth": 1, "decoder_width": 8, "decoder_heads": 2}
CASES = [pytest.param(case, id=name) for name, case in [("image", IMAGE), ("video", VIDEO), ("time", POOLED_TIME)]]


def network(case, **options):
    """With positions and norms that are no longer as they begin."""
    options = {**SIZES, **case, **options}
    pixels = [p * s ** options["pools"] for p, s in zip(options["patch"], options["pool"])]
    model = Hiera(**from_flat({"token_dim": 3 * math.prod(pixels), **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def given(model, batch=2, hidden=0.5):
    """Tokens, the mask of a step and what it keeps."""
    tokens = torch.randn(batch, *model.config.grid, model.token_dim)
    plan = parts(model, hidden).plan(batch, tuple(model.config.grid))
    masked = plan.dropped
    return tokens, masked, (~masked).flatten(1).nonzero()[:, 1].view(batch, -1)


def parts(model, hidden=0.5, **others):
    sampler = {"type": "units", "unit": model.unit}
    masking = {"ratio": {"type": "fixed", "ratio": hidden}, "sampler": sampler, "dropping": "all"}
    return MaskedModeling(**{**masking, "target": "latents", "objective": "mse", **others})


# --- What is left out.


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_out_changes_nothing(case):
    model = network(case)
    tokens, masked, keep = given(model)
    output = model(tokens, masked, keep=keep)
    assert output.predictions.shape == (2, masked[0].numel(), model.token_dim)
    assert output.features.shape == (2, keep.shape[1], 16)
    other = model(tokens.masked_fill(masked[..., None], torch.nan), masked, keep=keep)
    assert other.predictions.equal(output.predictions)
    assert other.features.equal(output.features)
    moved = model(tokens + 1, masked, keep=keep)
    assert not torch.isclose(moved.predictions, output.predictions).any(-1).all()


@pytest.mark.parametrize("case", CASES)
def test_keeping_everything_is_the_whole_image(case):
    model = network(case)
    tokens, masked, _ = given(model)
    n, nothing = masked[0].numel(), torch.zeros_like(masked)
    whole = model(tokens, nothing)
    order = torch.randperm(n)
    kept = model(tokens, nothing, keep=order.expand(2, -1))
    torch.testing.assert_close(kept.predictions, whole.predictions)
    torch.testing.assert_close(kept.features, whole.features[:, order])


@pytest.mark.parametrize("case", [IMAGE, VIDEO])
def test_a_unit_is_as_it_is_alone_while_attention_stays_within(case):
    """Kernels of one value do not overlap, so nothing else lets units see each other."""
    ones = [1] * len(case["grid"])
    local = network(case, kernel=ones, unit_stages=3)
    tokens, masked, keep = given(local)
    here = torch.arange(2)[:, None], keep
    whole = local(tokens, torch.zeros_like(masked)).features[here]
    torch.testing.assert_close(local(tokens, masked, keep=keep).features, whole)
    seeing = network(case, kernel=ones)
    apart = seeing(tokens, torch.zeros_like(masked)).features[here] - seeing(tokens, masked, keep=keep).features
    assert apart.abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_learns_through_the_core(case):
    model = network(case).train()
    tokens, _, _ = given(model)
    terms = parts(model, hidden=0.7).losses(model, tokens)
    terms["loss"].backward()
    assert terms["drop_ratio"] == terms["mask_ratio"] >= 0.7
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_half_precision_is_near():
    model = network(IMAGE)
    tokens, masked, keep = given(model)
    wanted = model(tokens, masked, keep=keep)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(tokens, masked, keep=keep)
    torch.testing.assert_close(found.predictions.float(), wanted.predictions, atol=0.1, rtol=0.05)


# --- Stages.


@pytest.mark.parametrize("case", CASES)
def test_features_are_the_layers_fused(case):
    """By convolutions over the whole grid here, unit by unit in the network."""
    model = network(case, stages=[1, 2, 1, 1], pools=1, width=32, heads=8)
    tokens, masked, _ = given(model)
    layers = model.layers(tokens)
    grid, pool = model.config.grid, model.config.pooling["pool"]
    small = tuple(n * s for n, s in zip(grid, pool))
    assert [tuple(x.shape[1:]) for x in layers] == [
        (math.prod(small), 4),
        *[(math.prod(grid), w) for w in (8, 8, 16, 32)],
    ]
    first = layers[0].transpose(1, 2).unflatten(2, small)
    fused = layers[-1] + model.fusions[0](first).flatten(2).transpose(1, 2)
    features = model(tokens, torch.zeros_like(masked)).features
    torch.testing.assert_close(model.encoder_norm(fused), features)


def test_pooling_and_cutting_are_those_of_whole_grids():
    x = torch.randn(2, 8, 12, 3)
    units = cut(x, (4, 4))
    assert units.shape == (2, 6, 4, 4, 3)
    assert units[:, 1].equal(x[:, :4, 4:8])
    assert joined(units, (2, 3)).equal(x)
    wanted = F.max_pool2d(x.movedim(-1, 1), (2, 4)).movedim(1, -1)
    assert joined(pooled(units, (2, 4)), (2, 3)).equal(wanted)
    video = torch.randn(2, 4, 8, 12, 3)
    assert joined(cut(video, (2, 4, 4)), (2, 2, 3)).equal(video)
    wanted = F.max_pool3d(video.movedim(-1, 1), (1, 2, 2)).movedim(1, -1)
    assert joined(pooled(cut(video, (2, 4, 4)), (1, 2, 2)), (2, 2, 3)).equal(wanted)


def test_tokens_become_the_image_they_were():
    """The first convolution sees the pixels: one that copies a pixel gives them back."""
    model = network(VIDEO, kernel=[1, 1, 1])
    video = torch.randn(2, 3, 4, 8, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.patch_embedding.weight[:3, :, 0, 0, 0] = torch.eye(3)
        seen = joined(model._embedded(patches(2, 3, 2).encode(video)), (2, 2, 2))
    assert seen[..., :3].movedim(-1, 1).equal(video[:, :, ::2])


def test_other_sizes_resize_the_positions():
    model = network(IMAGE)
    tokens = torch.randn(1, 6, 8, model.token_dim)
    output = model(tokens, torch.zeros(1, 6, 8, dtype=torch.bool))
    assert output.predictions.shape == (1, 48, model.token_dim)
    with pytest.raises(ValueError, match=r"mask units of \(2, 2\) tokens do not tile a grid of \(3, 4\); resize"):
        model(tokens[:, :3, :4], torch.zeros(1, 3, 4, dtype=torch.bool))


# --- Runs.


def test_saved_networks_load_as_what_they_are(tmp_path):
    model = network(IMAGE)
    save_backbone(patches(4), model, tmp_path / "run" / "pipeline")
    pixels = torch.randn(2, 3, 16, 24)
    for layer, width in ((0, 4), (2, 8), (-1, 16)):
        backbone = load_backbone(tmp_path / "run", layer)
        assert isinstance(backbone.transformer, Hiera)
        assert backbone.width == width
        tokens = backbone.tokenizer.encode(pixels)
        torch.testing.assert_close(backbone(pixels), model.layers(tokens)[layer])
        classifier = Classifier(backbone, 5)
        depth = len(classifier.by_depth())
        assert depth == 2 + (layer % 4 + 1)
        assert classifier(pixels).shape == (2, 5)
    trained = {name for name, p in backbone.transformer.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"patch_embedding", "position_embedding", "blocks"}
    with pytest.raises(ValueError, match=r"teacher.path=.*Hiera.*; give a run of mask_transformer"):
        RunTeacher(str(tmp_path / "run"))


def test_the_average_of_the_student_teaches_its_features():
    model = network(IMAGE)
    teacher = EMATeacher(of="features")
    teacher.follow(model)
    tokens, masked, _ = given(model)
    found = teacher.sources(tokens)["features"]
    wanted = model(tokens, torch.zeros_like(masked)).features
    assert found.flatten(2).transpose(1, 2).equal(wanted)


def test_generators_have_no_hiera():
    config = load("generation/quickstart")
    config["stage"]["model"] = {"type": "hiera"}
    with pytest.raises(ConfigError, match=r"stage.model: unknown 'hiera'; allowed: mask_transformer"):
        check(run, config, "x")


# --- What does not go.


def test_other_masks_than_of_whole_units_are_refused():
    model = network(IMAGE)
    tokens, masked, keep = given(model)
    torn = masked.clone()
    torn[:, 0, 0] = ~torn[:, 0, 0]
    places = (~torn).flatten(1).nonzero()[:, 1]
    cases = [
        (masked, None, None),  # a mask token in place
        (torch.zeros_like(masked), keep, None),
        (torn[:1], places[: int((~torn[0]).sum())][None], None),
        (masked, keep, [8, 12]),
    ]
    for mask, seen, kept in cases:
        with pytest.raises(ValueError, match=r"whole mask units of \(2, 2\) tokens, .*{type: units, unit: \[2, 2\]}"):
            model(tokens[: len(mask)], mask, keep=seen, kept=kept)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"grid": (2, 4, 6)},
            r"stem.stride, stem.kernel, pooling.pool, pooling.unit .*one number.* axis .* for \(2, 4, 6\)",
        ),
        ({"kernel": [4, 4]}, r"kernel.*\[4, 4\].*odd"),
        ({"token_dim": 50}, "give it tokens {type: patches} of 4 x 4, not of 50 values"),
        ({"codebook_size": 8}, "Hiera reads pixels"),
        ({"pools": 3}, "pooling.pools 3 must be less than the 3 stages"),
        ({"stages": [1, 0, 1]}, "each of a block or more"),
        ({"width": 18}, "width 18 and heads 4 are halved .* multiples of 4"),
        ({"decoder_depth": 0}, "needs a decoder: set decoder.depth to 1 or more"),
        ({"unit": [3, 2]}, r"mask units of \(3, 2\) tokens do not tile a grid of \(4, 6\)"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(options, problem):
    given = {"token_dim": 48, **SIZES, **IMAGE, **options}
    if "pools" in options:
        given["token_dim"] = 3 * 16**2
    nested = from_flat(given)
    nested["tokens"]["codebook_size"] = options.get("codebook_size", 0)
    with pytest.raises(ValueError, match=problem):
        Hiera(**nested)


def test_conditions_are_refused():
    with pytest.raises(ValueError, match="takes no label: it is unconditional; leave label out"):
        network(IMAGE).conditioner({"label": torch.zeros(2, dtype=torch.long)}, 2, (4, 6))
