"""The masked-modeling core: ratios, samplers, plans, the objective."""

import itertools
import math

import pytest
import torch

from flat import transformer
from maskgen.mim.core import MaskedModeling
from maskgen.mim.dropping import DropAll, DropShare, Keep, kept_tokens
from maskgen.mim.objective import CrossEntropy
from maskgen.mim.plan import DROP, SUBSTITUTE, VISIBLE, MaskPlan
from maskgen.mim.ratios import SCHEDULES, Fixed, Scheduled, TruncatedNormal, Uniform, gamma
from maskgen.mim.samplers import RandomSampler, hidden_counts, hide_lowest


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_fall_from_one_to_zero(name):
    values = [gamma(name, i / 100) for i in range(101)]
    assert values[0] == pytest.approx(1, abs=1 / 256 if name == "exponential" else 1e-12)
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(values))


def test_schedules_have_their_values_at_the_middle():
    half = {"cosine": math.cos(math.pi / 4), "arccos": 2 / 3, "linear": 0.5, "square": 0.75, "cubic": 0.875}
    assert {name: pytest.approx(gamma(name, 0.5)) for name in half} == half


def test_unknown_schedule_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        gamma("cosin", 0.5)


def test_truncated_normal_matches_its_density():
    """MAGE's ratio: all draws inside, and the mean of the truncated density."""
    draws = TruncatedNormal(0.55, 0.25, 0.5, 1.0)(200_000, torch.Generator().manual_seed(0))
    assert draws.min() >= 0.5
    assert draws.max() <= 1
    x = torch.linspace(0.5, 1, 10_001, dtype=torch.float64)
    density = torch.exp(-(((x - 0.55) / 0.25) ** 2) / 2)
    assert draws.mean().item() == pytest.approx(((x * density).sum() / density.sum()).item(), abs=1e-3)


def test_ratios_lie_in_their_ranges():
    generator = torch.Generator().manual_seed(0)
    uniform = Uniform(0.5, 1.0)(10_000, generator)
    assert 0.5 <= uniform.min() < 0.501
    assert 0.999 < uniform.max() <= 1
    assert (Fixed(0.75)(5) == 0.75).all()
    cosine = Scheduled("cosine")(20_000, generator)
    assert cosine.mean().item() == pytest.approx(2 / math.pi, abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(1.2), r"ratio.*1\.2.*\[0, 1\]"),
        (lambda: Uniform(0.9, 0.1), "low 0.9.*high 0.1"),
        (lambda: TruncatedNormal(std=0.0), "std 0.0.*std > 0"),
    ],
)
def test_wrong_ratios_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_random_sampler_hides_exactly_the_count_of_each_row():
    ratio = torch.tensor([0.0, 0.01, 0.5, 0.51, 1.0])
    mask = RandomSampler()(ratio, (8, 8))
    assert mask.flatten(1).sum(1).tolist() == [1, 1, 32, 33, 64]  # ceil, and at least one


def test_random_sampler_hides_every_place_alike():
    mask = RandomSampler()(torch.full((4000,), 0.25), (4, 4), generator=torch.Generator().manual_seed(0))
    share = mask.float().mean(0)
    assert (share - 0.25).abs().max() < 0.03


def test_hide_lowest_breaks_ties_by_place():
    assert hide_lowest(torch.zeros(1, 4), torch.tensor([2])).tolist() == [[True, True, False, False]]
    assert hidden_counts(torch.tensor([0.3]), 10).tolist() == [3]


def test_a_plan_says_what_is_hidden_dropped_and_predicted():
    mask = torch.tensor([[True, False]])
    plan = MaskPlan.from_mask(mask)
    assert plan.roles.tolist() == [[SUBSTITUTE, VISIBLE]]
    assert plan.hidden.equal(mask)
    assert plan.predict.equal(mask)
    dropped = MaskPlan(torch.tensor([[DROP, VISIBLE]], dtype=torch.uint8), mask)
    assert dropped.dropped.equal(mask)
    assert dropped.hidden.equal(mask)
    assert not dropped.substituted.any()


def test_loss_counts_masked_tokens_only():
    logits = torch.randn(2, 6, 5)
    target = torch.randint(5, (2, 6))
    predict = torch.tensor([[True, False, True, False, False, False], [False] * 5 + [True]])
    terms = CrossEntropy(label_smoothing=0.0)(logits, target, predict)
    picked = torch.nn.functional.cross_entropy(logits[predict], target[predict])
    assert terms["loss"].item() == pytest.approx(picked.item(), rel=1e-6)
    changed = logits.masked_fill(~predict[..., None], 9.0)
    assert CrossEntropy(0.0)(changed, target, predict)["loss"] == terms["loss"]


def test_reductions_differ_by_the_weight_of_a_token():
    logits, target = torch.randn(2, 6, 5), torch.randint(5, (2, 6))
    predict = torch.zeros(2, 6, dtype=torch.bool)
    predict[0, :5] = predict[1, 0] = True
    rows = [CrossEntropy(0.0)(logits[i : i + 1], target[i : i + 1], predict[i : i + 1])["loss"] for i in range(2)]
    image = CrossEntropy(0.0, reduction="image")(logits, target, predict)["loss"]
    token = CrossEntropy(0.0)(logits, target, predict)["loss"]
    assert image.item() == pytest.approx(sum(rows).item() / 2, rel=1e-5)
    assert token.item() == pytest.approx((5 * rows[0] + rows[1]).item() / 6, rel=1e-5)


def test_support_all_counts_every_token():
    logits, target = torch.randn(1, 4, 3), torch.randint(3, (1, 4))
    predict = torch.tensor([[True, False, False, False]])
    loss = CrossEntropy(0.0, support="all")(logits, target, predict)["loss"]
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits[0], target[0]).item(), rel=1e-6)


def test_hidden_codes_do_not_reach_the_network():
    """What stands at a masked place makes no difference to any prediction."""
    model = transformer(16, (3, 3), width=32, depth=2, heads=2).eval()
    torch.nn.init.normal_(model.head.weight)
    codes = torch.randint(16, (2, 3, 3))
    mask = torch.rand(2, 3, 3) < 0.5
    other = torch.where(mask, (codes + 1) % 16, codes)
    assert model(codes, mask).predictions.equal(model(other, mask).predictions)


def test_core_learns_a_rule_that_its_control_cannot():
    """Rows of one repeated code: the visible tokens tell the hidden ones; with all hidden nothing does."""

    def accuracy(ratio: dict) -> float:
        torch.manual_seed(0)
        model = transformer(8, (2, 4), width=32, depth=2, heads=2)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        core = MaskedModeling(ratio=ratio)
        for _ in range(80):
            codes = torch.randint(8, (32, 1, 1)).expand(-1, 2, 4).contiguous()
            terms = core.losses(model, codes)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
        return float(terms["accuracy"])

    assert accuracy({"type": "fixed", "ratio": 0.5}) > 0.9
    assert accuracy({"type": "fixed", "ratio": 1.0}) < 0.4


# ---------------------------------------------------------------------------------------------------- dropping tokens


def test_droppings_keep_the_mask_and_drop_what_they_say():
    mask = RandomSampler()(torch.tensor([0.3, 0.55, 1.0]), (4, 5))
    for dropping, counts in ((Keep(), [0, 0, 0]), (DropAll(), [6, 11, 20]), (DropShare(0.5), [6, 10, 10])):
        plan = dropping(mask)
        assert torch.equal(plan.hidden, mask)
        assert torch.equal(plan.predict, mask)
        assert plan.dropped.flatten(1).sum(1).tolist() == counts
    with pytest.raises(ValueError, match=r"share.*1\.0.*between 0 and 1"):
        DropShare(1.0)


def test_a_share_is_dropped_at_random_among_the_hidden():
    mask = torch.zeros(4000, 6, dtype=torch.bool)
    mask[:, :4] = True
    dropped = DropShare(0.5)(mask, torch.Generator().manual_seed(0)).dropped.float().mean(0)
    torch.testing.assert_close(dropped, torch.tensor([0.75] * 4 + [0.0] * 2), atol=0.03, rtol=0)


def test_kept_tokens_stand_in_order_at_the_front():
    mask = torch.tensor([[1, 0, 0, 1, 0], [1, 1, 1, 0, 1]], dtype=torch.bool)
    assert kept_tokens(MaskPlan.from_mask(mask)) is None
    keep, counts = kept_tokens(DropAll()(mask))
    assert counts == [3, 1]
    assert keep.tolist() == [[1, 2, 4], [3, 0, 0]]


@pytest.mark.parametrize("decoder", [0, 1])
@pytest.mark.parametrize("ratio", [Fixed(0.75), Uniform(0.3, 1.0)])
def test_a_step_with_dropped_tokens_is_the_plain_loss_over_the_same_places(decoder, ratio):
    """With a decoder all hidden places are predicted; without one, those hidden but kept."""
    model = transformer(codebook_size=16, grid=(4, 4), width=16, depth=2, heads=2, decoder_depth=decoder, registers=1)
    torch.nn.init.normal_(model.head.weight)
    codes, core = torch.randint(16, (5, 4, 4)), MaskedModeling(ratio=ratio, dropping=DropShare(0.4))
    terms = core.losses(model, codes, generator=torch.Generator().manual_seed(1))
    plan = core.plan(5, (4, 4), torch.Generator().manual_seed(1))
    keep, counts = kept_tokens(plan)
    losses = []
    for row, n in enumerate(counts):
        seen = (codes[row : row + 1], plan.substituted[row : row + 1])
        logits = model(*seen, keep=keep[row : row + 1, :n]).predictions[0]
        at = torch.arange(16) if decoder else keep[row, :n]
        hidden = plan.predict[row].flatten()[at]
        target = codes[row].flatten()[at][hidden]
        losses.append(torch.nn.functional.cross_entropy(logits[hidden], target, reduction="none", label_smoothing=0.1))
    torch.testing.assert_close(terms["loss"], torch.cat(losses).mean())
    assert terms["drop_ratio"] == pytest.approx(plan.dropped.float().mean().item())
    terms["loss"].backward()
