"""What the representation learners bring: replaced tokens, groups, second branches, heads, views, auxiliary terms."""

import math

import pytest
import torch
from torch import nn

from flat import transformer
from maskgen.config import check
from maskgen.data.augment import Views
from maskgen.mim.core import Learner, MaskedModeling
from maskgen.mim.dropping import DropAll, DropShare, ReplaceAll, ReplaceMore, kept_tokens
from maskgen.mim.objective import L1
from maskgen.mim.plan import DROP, REPLACE, SUBSTITUTE, VISIBLE, MaskPlan
from maskgen.mim.targets import Pixels
from maskgen.mim.terms import StepOutput
from maskgen.transformer.heads import LayerMix, Projector
from maskgen.transformer.several_codes import group_size, join_codes, split_codes

SMALL = {"grid": (4, 4), "width": 16, "depth": 3, "heads": 2, "mlp": "gelu", "qk_norm": False, "rope": False}
PATCHES = {"codebook_size": 0, "token_dim": 12, **SMALL}


def network(**options):
    """A transformer whose head does not start at zero."""
    torch.manual_seed(0)
    model = transformer(**{**PATCHES, **options}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


# --- What becomes of hidden tokens.


def test_replace_more_leaves_the_hidden_and_replaces_so_many_of_the_visible():
    mask = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4
    plan = ReplaceMore(3)(mask, torch.Generator().manual_seed(1))
    assert (plan.replaced.flatten(1).sum(1) == 3).all()
    assert torch.equal(plan.substituted, mask)
    assert torch.equal(plan.predict, mask | plan.replaced)
    nearly_all = torch.ones(1, 4, 4, dtype=torch.bool)
    nearly_all[0, 0, 0] = False
    assert ReplaceMore(3)(nearly_all).replaced.sum() == 1


@pytest.mark.parametrize("corruption", ["foreign", "centroids", "noise", {"type": "noise", "std": 2.0}])
def test_corruptions_change_the_replaced_tokens_alone(corruption):
    seen = {}

    def spy(tokens, masked, condition, **options):
        seen.update(tokens=tokens, masked=masked)
        return type("Output", (), {"predictions": torch.zeros(3, 16, 12)})

    core = MaskedModeling(
        ratio={"type": "fixed", "ratio": 0.25},
        dropping={"type": "replace_more", "count": 4},
        corruption=corruption,
        target="latents",
        objective="mse",
    )
    tokens, other = torch.randn(3, 4, 4, 12), torch.randn(3, 4, 4, 12)
    plan = core.plan(3, (4, 4), torch.Generator().manual_seed(0))
    core.outputs(spy, tokens, plan, reconstruction=other)
    where = plan.replaced[..., None].expand_as(tokens)
    assert torch.equal(seen["masked"], plan.substituted)
    assert torch.equal(seen["tokens"][~where], tokens[~where])
    assert (seen["tokens"][where] != tokens[where]).all()
    if corruption == "centroids":
        assert torch.equal(seen["tokens"][where], other[where])
    if corruption == "foreign":
        assert torch.equal(seen["tokens"][where], tokens.roll(1, 0)[where])


def test_nothing_tells_the_network_what_replace_all_replaced():
    mask = torch.rand(2, 4, 4) < 0.5
    plan = ReplaceAll()(mask)
    assert torch.equal(plan.roles == REPLACE, mask)
    assert not plan.substituted.any()


@pytest.mark.parametrize(
    ("dropping", "corruption", "says"),
    [
        ("replace_all", "mask_token", r"dropping ReplaceAll.*corruption MaskToken.*replace_all with noise"),
        ("none", "foreign", r"dropping Keep.*corruption Foreign.*replace_all with noise"),
    ],
)
def test_what_is_replaced_and_by_what_belong_together(dropping, corruption, says):
    with pytest.raises(ValueError, match=says):
        MaskedModeling(dropping=dropping, corruption=corruption)


def test_random_codes_need_their_number():
    core = MaskedModeling(dropping="replace_all", corruption="noise")
    with pytest.raises(ValueError, match="set its codebook_size"):
        core.losses(lambda *a, **k: None, torch.zeros(2, 4, 4, dtype=torch.long))


# --- Several codes a place.


def test_codes_split_into_groups_of_bits_and_back():
    codes = torch.randint(64, (3, 4, 4))
    parts = split_codes(codes, group_size(64, 2), 2)
    assert parts.shape == (3, 4, 4, 2)
    assert parts.max() < 8
    assert torch.equal(join_codes(parts, 8), codes)
    for wrong in (60, 32):
        with pytest.raises(ValueError, match=f"{wrong} codes do not split into 2 groups"):
            group_size(wrong, 2)


@pytest.mark.parametrize("embedding", ["table", "bits"])
def test_groups_are_hidden_and_predicted_each_by_itself(embedding):
    model = network(codebook_size=8, token_dim=0, groups=2, embedding=embedding)
    codes, masked = torch.randint(8, (2, 4, 4, 2)), torch.rand(2, 4, 4, 2) < 0.5
    everything = model(codes, masked).predictions
    assert everything.shape == (2, 32, 8)
    changed = torch.where(masked, (codes + 1) % 8, codes)
    torch.testing.assert_close(model(changed, masked).predictions, everything)  # what is hidden does not count
    one = codes.clone()
    one[0, 0, 0, 0], masked[0, 0, 0] = (one[0, 0, 0, 0] + 1) % 8, torch.tensor([False, True])
    assert (model(one, masked).predictions - model(codes, masked).predictions).abs().max() > 1e-4
    for k in (5, 20):  # fewer and more than the places
        at = torch.stack([torch.randperm(32)[:k] for _ in range(2)])
        some = model(codes, masked, predict_at=at).predictions
        wanted = model(codes, masked).predictions.gather(1, at[..., None].expand(-1, -1, 8))
        torch.testing.assert_close(some, wanted)


def test_hidden_bits_are_zeros():
    """MaskBit: no mask token; the projection of a blank canvas is its bias."""
    model = network(codebook_size=8, token_dim=0, groups=2, embedding="bits")
    codes = torch.randint(8, (1, 16, 2))
    blank = model.embedding(codes, torch.ones(1, 16, 2, dtype=torch.bool))
    assert torch.equal(blank, model.embedding.projection.bias.expand(1, 16, -1))
    bits = torch.tensor([[(c >> i & 1) * 2 - 1 for c in codes[0, 0].tolist() for i in range(3)]]).float()
    torch.testing.assert_close(model.embedding(codes, None)[:, 0], model.embedding.projection(bits))


@pytest.mark.parametrize("dropping", [DropAll(), DropShare(0.5)])
def test_only_whole_places_are_dropped(dropping):
    mask = torch.rand(5, 4, 4, 2, generator=torch.Generator().manual_seed(0)) < 0.7
    plan = dropping(mask, torch.Generator().manual_seed(1), codes_per_position=2)
    assert torch.equal(plan.dropped[..., 0], plan.dropped[..., 1])
    assert not (plan.dropped & ~mask).any()
    assert torch.equal(plan.hidden, mask)
    keep, counts = kept_tokens(plan, 2)
    assert counts == (16 - plan.dropped[..., 0].flatten(1).sum(1)).tolist()
    assert keep.max() < 16


@pytest.mark.parametrize("embedding", ["table", "bits"])
@pytest.mark.parametrize("decoder", [0, 1])
def test_groups_train_with_dropped_places(embedding, decoder):
    model = network(codebook_size=8, token_dim=0, groups=2, embedding=embedding, decoder_depth=decoder).train()
    core = MaskedModeling(ratio={"type": "fixed", "ratio": 0.8}, dropping={"type": "share", "share": 0.4})
    codes = torch.randint(8, (3, 4, 4, 2))
    terms = core.losses(model, codes, generator=torch.Generator().manual_seed(0), codes_per_position=2)
    terms["loss"].backward()
    assert terms["drop_ratio"] > 0.2
    plan = core.plan(3, (4, 4, 2), torch.Generator().manual_seed(0), codes_per_position=2)
    keep, counts = kept_tokens(plan, 2)
    made = model(codes, plan.hidden, keep=keep, kept=counts).predictions
    where = plan.predict.flatten(1)
    wanted = codes.flatten(1)
    if not decoder:  # what was dropped is not predicted
        at = torch.stack([2 * keep, 2 * keep + 1], -1).flatten(1)
        inside = (torch.arange(keep.shape[1]) < torch.tensor(counts)[:, None]).repeat_interleave(2, 1)
        where, wanted = where.gather(1, at) & inside, wanted.gather(1, at)
    by_hand = nn.functional.cross_entropy(made[where], wanted[where], label_smoothing=0.1)
    torch.testing.assert_close(terms["loss"], by_hand)


# --- Heads and branches.


def test_projector_ends_in_cosines():
    head = Projector(6, 10, 5, 7)
    logits = head(torch.randn(50, 6))
    assert logits.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.prototypes.weight *= 3
    x = torch.randn(50, 6)
    assert head(x).abs().max() <= 1 + 1e-6


def test_layer_mix_starts_at_the_layers_it_is_named_after():
    mix = LayerMix(4, 3, 2, 8)
    with torch.no_grad():
        mix.weights -= 0.01
    layers = [torch.randn(2, 5, 4) for _ in range(3)]
    wanted = torch.cat([mix.heads[0](layers[1]), mix.heads[1](layers[2])], -1)
    torch.testing.assert_close(mix(layers), wanted)
    with pytest.raises(ValueError, match="make it a divisor"):
        LayerMix(4, 3, 2, 7)


@pytest.mark.parametrize(
    "options",
    [
        {"class_predictions": True, "registers": 1},
        {"branch_type": "class_bottleneck", "branch_layer": 2, "registers": 2, "relative_bias": "shared"},
        {"branch_type": "class_bottleneck", "branch_layer": 1, "registers": 1, "branch_predictions": 7},
        {"branch_type": "class_bottleneck", "branch_layer": 1, "registers": 1, "relative_bias": "block"},
        {"head_type": "layer_mix", "head_mixtures": 2, "registers": 1, "class_predictions": True},
        {"head_type": "projector", "head_hidden": 8, "head_bottleneck": 4, "registers": 1, "class_predictions": True},
        {"decoder_depth": 1, "branch_type": "decoder", "branch_predictions": 1, "registers": 1},
    ],
)
def test_predictions_at_some_places_are_those_of_all(options):
    model = network(**options)
    tokens, masked = torch.randn(2, 4, 4, 12), torch.rand(2, 4, 4) < 0.5
    at = torch.stack([torch.randperm(16)[:5] for _ in range(2)])
    whole, some = model(tokens, masked), model(tokens, masked, predict_at=at)
    for name in ("predictions", "branch"):
        if getattr(whole, name) is not None:
            full = getattr(whole, name)
            torch.testing.assert_close(
                getattr(some, name), full.gather(1, at[..., None].expand(-1, -1, full.shape[-1]))
            )
    if whole.class_predictions is not None:
        torch.testing.assert_close(some.class_predictions, whole.class_predictions)
        assert whole.class_predictions.shape == (2, whole.predictions.shape[-1])


def test_the_bottleneck_sees_late_layers_through_the_class_token_alone():
    """Without gradients through the class token nothing after `branch_layer` gets any from the branch."""
    model = network(branch_type="class_bottleneck", branch_layer=1, registers=1)
    tokens, masked = torch.randn(2, 4, 4, 12), torch.rand(2, 4, 4) < 0.5
    model(tokens, masked).branch.sum().backward()
    last = model.blocks[-1].mlp.fc2.weight
    assert last.grad.norm() > 0
    changed = network(branch_type="class_bottleneck", branch_layer=1, registers=1)
    with torch.no_grad():  # later blocks that leave the class token alone change nothing
        for block in (*model.blocks[1:], *changed.blocks[1:]):
            for parameter in (*block.attn.proj.parameters(), *block.mlp.fc2.parameters()):
                parameter.zero_()
        changed.blocks[1].mlp.fc1.weight.normal_()
    torch.testing.assert_close(changed(tokens, masked).branch, model(tokens, masked).branch)


@pytest.mark.parametrize("relative_bias", ["none", "shared", "block"])
def test_attention_of_the_class_token_is_that_of_the_explicit_path(relative_bias):
    model = network(registers=1, relative_bias=relative_bias)
    for bias in model.relative:
        torch.nn.init.normal_(bias.table)
    tokens = torch.randn(2, 4, 4, 12)
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    found = model(tokens, nothing, attention=True).attention
    made, again = model.layers_and_attention(tokens)
    torch.testing.assert_close(found, again)
    block = model.blocks[-1]
    q, k, _ = block.attn.qkv(block.norm1(made[-2])).unflatten(-1, (3, 2, 8)).unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).div(math.sqrt(8))
    weights = (scores + model.relative[-1]((4, 4), 1) if model.relative else scores).softmax(-1)
    torch.testing.assert_close(found, weights.mean(1)[:, 0, 1:])
    with pytest.raises(ValueError, match="set num_registers: 1"):
        network()(tokens, nothing, attention=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_predictions": True}, "need the class token; set num_registers: 1"),
        ({"branch_type": "decoder"}, "needs a decoder; set decoder.depth and branch.out_dim"),
        ({"branch_type": "class_bottleneck", "branch_layer": 4, "registers": 1}, "branch.layer 4 must lie between 1"),
        ({"head_type": "layer_mix", "decoder_depth": 1}, "head.type: layer_mix and .* need decoder.depth: 0"),
        ({"groups": 2}, "continuous tokens have none"),
        (
            {"num_classes": 3, "head_type": "projector"},
            "not go with an adaLN condition; set conditioning.pooled: in_context",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        transformer(**{**PATCHES, **options})


# --- Hard patches, views and terms.


def test_hard_patches_are_hidden_as_the_teacher_expects():
    core = MaskedModeling(
        ratio={"type": "fixed", "ratio": 0.5}, sampler={"type": "loss", "start": 1.0, "end": 1.0}, dropping="all"
    )
    losses = torch.randn(3, 16)
    plan = core.plan(3, (4, 4), torch.Generator().manual_seed(0), progress=0.5, losses=losses)
    hardest = losses.argsort(1, descending=True)[:, :8].sort(1).values
    assert torch.equal(plan.dropped.flatten(1).nonzero()[:, 1].view(3, 8), hardest)


def test_views_are_of_their_sizes_and_repeat_with_the_seed():
    image = torch.rand(3, 20, 20) * 2 - 1
    views = Views(count=2, small=3, small_size=12)
    found = views.item(image, torch.Generator().manual_seed(0))
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "views": (2, 3, 20, 20),
        "small_pixels": (3, 3, 12, 12),
    }
    assert all(x.min() >= -1 and x.max() <= 1 for x in found.values())
    again = views.item(image, torch.Generator().manual_seed(0))
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not torch.equal(found["views"][0], found["views"][1])
    ramp = torch.linspace(-1, 1, 20).expand(3, 20, 20)  # without a flip a crop of it still rises
    for seed in range(20):
        plain = Views(count=1, flip=0.0, colour=0.0).item(ramp, torch.Generator().manual_seed(seed))["views"][0]
        assert (plain.diff(dim=-1) > 0).all()
        mirrored = Views(count=1, flip=1.0, colour=0.0).item(ramp, torch.Generator().manual_seed(seed))["views"][0]
        torch.testing.assert_close(mirrored, plain.flip(-1))
    assert Views(small=1, small_size=8).item(torch.rand(1, 20, 20), torch.Generator())["small_pixels"].shape == (
        1,
        1,
        8,
        8,
    )
    with pytest.raises(ValueError, match="smallest and largest share of the area"):
        Views(scale=(0.5, 0.2))


def test_contrast_needs_two_views():
    model = network()
    core = MaskedModeling(target="latents", objective="mse", auxiliary=[{"type": "info_nce"}], width=16)
    tokens = torch.randn(4, 4, 4, 12)
    with pytest.raises(ValueError, match=r"info_nce needs two views.*1"):
        core.losses(model, tokens)
    options = {"views": 2, "generator": torch.Generator().manual_seed(0)}
    terms = Learner(model, core)(tokens, **options)
    main = core.main_losses(model, tokens, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(terms["loss"], main["loss"] + 0.1 * terms["info_nce/loss"])
    terms["info_nce/loss"].backward()
    assert core.auxiliary["info_nce"].projection[0].weight.grad.norm() > 0


def test_contrast_looks_at_kept_tokens_alone():
    """Rows that keep different numbers are padded; padding is no feature."""
    core = MaskedModeling("uniform", dropping="all", target="latents", objective="mse", auxiliary=["info_nce"], width=8)
    roles = torch.tensor([[0, 0, 0, DROP], [0, DROP, DROP, DROP]], dtype=torch.uint8)
    features = torch.tensor([[1.0, 2.0, 3.0], [5.0, 100.0, 100.0]])[..., None].expand(-1, -1, 8)
    output = type("Output", (), {"features": features})
    plan = MaskPlan(roles, roles == DROP)
    outcome = StepOutput(output, roles, plan.predict, core.target, core.objective, {}, plan)
    torch.testing.assert_close(outcome.pooled(), torch.tensor([2.0, 5.0])[:, None].expand(-1, 8))


def test_a_term_stands_once():
    with pytest.raises(ValueError, match=r"auxiliary.*twice: branch, branch"):
        MaskedModeling(auxiliary=["branch", {"type": "branch", "target": "pixels"}])


def test_loss_prediction_takes_its_words_alone():
    term = {"type": "loss_prediction", "kind": "relativ"}
    with pytest.raises(ValueError, match="relativ"):
        check(MaskedModeling, {"auxiliary": [term]}, "masking.yaml")


def test_terms_say_what_they_lack():
    tokens = torch.randn(4, 4, 4, 12)
    for term, message in (
        ("loss_prediction", "needs the network's branch: set model.branch: {kind: decoder, out_dim: 1}"),
        ("branch", "needs the network's branch: set model.branch: {kind: class_bottleneck}"),
        ("class_distillation", "needs the network's class_predictions: set model.cls_token_head: true"),
    ):
        core = MaskedModeling(target="latents", objective="mse", auxiliary=[{"type": term}], width=16)
        with pytest.raises(ValueError, match=message):
            core.losses(network(), tokens)


def test_the_branch_learns_the_main_target_or_its_own():
    model = network(branch_type="class_bottleneck", branch_layer=1, registers=1)
    tokens = torch.randn(4, 4, 4, 12)
    core = MaskedModeling(target="latents", objective="mse", auxiliary=[{"type": "branch", "weight": 0.5}])
    terms = core.losses(model, tokens, generator=torch.Generator().manual_seed(0))
    plan = core.plan(4, (4, 4), torch.Generator().manual_seed(0))
    output = model(tokens, plan.hidden)
    where = plan.hidden.flatten(1)
    by_hand = [(x - tokens.flatten(1, 2)).square().mean(-1)[where].mean() for x in (output.predictions, output.branch)]
    torch.testing.assert_close(terms["loss"], by_hand[0] + 0.5 * by_hand[1])
    own = network(branch_type="class_bottleneck", branch_layer=1, registers=1, branch_predictions=48)
    core = MaskedModeling(
        target="latents",
        objective="mse",
        auxiliary=[{"type": "branch", "target": {"type": "pixels", "patch": 4}, "objective": "l1"}],
    )
    pixels = torch.rand(4, 3, 16, 16)
    terms = core.losses(own, tokens, pixels=pixels, generator=torch.Generator().manual_seed(0))
    wanted = L1()(own(tokens, plan.hidden).branch, Pixels(4)(pixels), where)["loss"]
    torch.testing.assert_close(terms["branch/loss"], wanted)


def test_roles_are_told_apart():
    assert len({VISIBLE, SUBSTITUTE, DROP, REPLACE}) == 4
