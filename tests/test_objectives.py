"""Losses, their supports and reductions, and the auxiliary ones."""

import math
import multiprocessing

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import distributions

from maskgen.config import ConfigError, check
from maskgen.mim.auxiliary import ClassDistillation, InfoNCE, LossPrediction, added
from maskgen.mim.core import MaskedModeling
from maskgen.mim.objective import (
    L1,
    MSE,
    OBJECTIVES,
    BinaryCrossEntropy,
    Cosine,
    CrossEntropy,
    GaussianMixture,
    SmoothL1,
    SoftCrossEntropy,
    reduced,
    supported,
)
from maskgen.mim.targets import CentredSoftmax
from maskgen.mim.terms import TERMS
from maskgen.registry import Part, build

MASKED = torch.tensor([[True, True, False, False], [True, False, False, False]])
THERE = torch.tensor([[True, False, True, False], [True, True, False, False]])
SUPPORTS = {
    "masked": MASKED,
    "visible": ~MASKED,
    "all": torch.ones_like(MASKED),
}


def example(name, **options):
    """An objective with predictions and a target (2, 4, ...) for it."""
    real = (torch.randn(2, 4, 6), torch.randn(2, 4, 6))
    cases = {
        "cross_entropy": (torch.randn(2, 4, 6), torch.randint(6, (2, 4))),
        "soft_cross_entropy": (torch.randn(2, 4, 6), torch.randn(2, 4, 6).softmax(-1)),
        "binary_cross_entropy": (torch.randn(2, 4, 6), torch.randint(2, (2, 4, 6)).float()),
        "gaussian_mixture": (torch.randn(2, 4, 3 * (1 + 2 * 6)), torch.randn(2, 4, 6)),
    }
    if name == "gaussian_mixture":
        options["components"] = 3
    return build(Part(OBJECTIVES), {"type": name, **options}), *cases.get(name, real)


# --- Supports and reductions, the same for all.


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_support_counts(name, support):
    """The mean is that of the support's tokens; what the others hold, NaN too, changes neither it nor its gradient."""
    objective, predictions, target = example(name, support=support, reduction="token")
    where = SUPPORTS[support]
    predictions.requires_grad_()
    loss = objective(predictions, target, MASKED)["loss"]
    assert loss.item() == pytest.approx(objective.per_token(predictions, target)[where].mean().item(), rel=1e-5)
    loss.backward()
    assert predictions.grad[~where].abs().sum() == 0
    assert (predictions.grad[where].abs().sum(-1) > 0).all()
    broken = predictions.detach().masked_fill(~where[..., None], torch.nan)
    assert objective(broken, target, MASKED)["loss"] == loss


@pytest.mark.parametrize("name", OBJECTIVES)
def test_reduction_by_image_gives_each_image_the_same_weight(name):
    objective, predictions, target = example(name, reduction="image")
    each = objective.per_token(predictions, target)
    wanted = (each[0, :2].mean() + each[1, 0]) / 2
    assert objective(predictions, target, MASKED)["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
    by_token = example(name, reduction="token")[0](predictions, target, MASKED)["loss"]
    assert by_token.item() == pytest.approx(each[MASKED].mean().item(), rel=1e-5)
    assert abs(by_token - wanted) > 1e-6


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_is_computed_in_float32(name):
    objective, predictions, target = example(name)
    loss = objective(predictions.half(), target, MASKED)["loss"]
    assert loss.dtype == torch.float32
    assert loss == objective(predictions.half().float(), target, MASKED)["loss"]


@pytest.mark.parametrize("reduction", ["token", "image"])
def test_an_image_without_such_tokens_counts_as_zero(reduction):
    each, where = torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[True, True], [False, False]])
    assert reduced(each, where, reduction).item() == {"token": 2, "image": 1}[reduction]  # 0 of two images: iBOT's
    assert reduced(each, torch.zeros_like(where), reduction).item() == 0


def test_padding_never_counts():
    for support in ("masked", "visible", "all"):
        assert torch.equal(supported(support, MASKED, THERE), SUPPORTS[support] & THERE)


# --- Each loss.


def test_regressions_are_their_formulas():
    predictions, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0, 3.5]]])
    everything = torch.tensor([[True]])
    found = {
        type(x).__name__: x(predictions, target, everything)["loss"].item()
        for x in (MSE(), L1(), SmoothL1(), SmoothL1(beta=0.5), Cosine())
    }
    assert found.pop("Cosine") == pytest.approx(1 - (2 + 10.5) / math.sqrt(10 * 16.25), rel=1e-5)
    assert found == {"MSE": 0.625, "L1": 0.75, "SmoothL1": (0.75 + 0.25) / 2}
    assert SmoothL1(beta=2.0)(predictions, target, everything)["loss"].item() == (0.25 + 0.0625) / 2


def test_l1_on_pixels_is_divided_by_masked_pixels_and_channels():
    """SimMIM's formula, sum |x - y| over masked pixels / (masked pixels x 3), on its own pixel mask."""
    from maskgen.mim.targets import Pixels

    one, other = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    masked = torch.rand(2, 2, 2) < 0.6
    target = Pixels(4, normalise="none")
    there = masked.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    wanted = ((one - other).abs() * there).sum() / (there.sum() * 3)
    assert L1()(target(one), target(other), masked.flatten(1))["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_accuracy_is_over_the_support():
    target = torch.arange(4).repeat(2, 1)
    logits = F.one_hot(target, 6).float()
    logits[0, 0] = logits[0, 2] = F.one_hot(torch.tensor(5), 6)  # one masked and one visible token are wrong
    found = {x: CrossEntropy(support=x)(logits, target, MASKED)["accuracy"].item() for x in SUPPORTS}
    assert found == pytest.approx({"masked": 2 / 3, "visible": 4 / 5, "all": 2 / 3})


def test_soft_targets_that_are_hard_are_codes():
    logits, codes = torch.randn(2, 4, 6), torch.randint(6, (2, 4))
    soft = SoftCrossEntropy(temperature=0.25, reduction="token")(logits, F.one_hot(codes, 6).float(), MASKED)
    hard = CrossEntropy(label_smoothing=0.0)(logits / 0.25, codes, MASKED)
    assert soft["loss"].item() == pytest.approx(hard["loss"].item(), rel=1e-5)


def test_bits_are_classified_each():
    logits, bits = torch.randn(2, 4, 3), torch.randint(2, (2, 4, 3)).float()
    probability = torch.where(bits == 1, logits.sigmoid(), 1 - logits.sigmoid())
    wanted = -probability.log()[MASKED].mean()
    assert BinaryCrossEntropy()(logits, bits, MASKED)["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_mixture_is_that_of_torch():
    objective, predictions, target = example("gaussian_mixture")
    logits, means, scales = objective.split(predictions)
    mixture = distributions.MixtureSameFamily(
        distributions.Categorical(logits=logits), distributions.Independent(distributions.Normal(means, scales), 1)
    )
    torch.testing.assert_close(objective.per_token(predictions, target), -mixture.log_prob(target))
    terms = objective(predictions, target, MASKED)
    assert terms["nats_per_value"].item() == pytest.approx(terms["loss"].item() / 6)


def test_predictions_of_a_mixture_are_logits_then_means_and_scales_of_each_component():
    logits, means, scales = GaussianMixture(2).split(torch.arange(10.0)[None, None])  # 2 + 2 x (2 + 2)
    torch.testing.assert_close(logits[0, 0].exp(), torch.tensor([0.0, 1.0]).softmax(0))
    assert means[0, 0].tolist() == [[2, 3], [6, 7]]
    torch.testing.assert_close(scales[0, 0], F.softplus(torch.tensor([[4.0, 5.0], [8.0, 9.0]])))


def test_a_far_token_has_a_finite_likelihood_and_gradient():
    """Its density underflows in every component."""
    predictions = torch.zeros(1, 1, 2 * 3, requires_grad=True)
    loss = GaussianMixture(2)(predictions, torch.full((1, 1, 1), 1e4), torch.tensor([[True]]))["loss"]
    loss.backward()
    scale = math.log(2)  # softplus(0)
    assert loss.item() == pytest.approx(0.5 * (1e4 / scale) ** 2, rel=1e-4)
    assert predictions.grad.isfinite().all()


def test_scale_has_a_floor():
    sharp = torch.tensor([0.0, 0.5, -50.0])[None, None]
    loss = GaussianMixture(1, floor=1e-3)(sharp, torch.tensor([[[0.5]]]), torch.tensor([[True]]))["loss"]
    assert loss.item() == pytest.approx(math.log(1e-3 * math.sqrt(2 * math.pi)), rel=1e-4)


def test_a_mixture_learns_two_values_that_squared_error_cannot():
    """Tokens are -1 or 1 for the same input: the mean is far from both, two components are not."""
    predictions = torch.nn.Parameter(0.1 * torch.randn(1, 1, 2 * 3))
    optimizer, objective = torch.optim.Adam([predictions], 0.05), GaussianMixture(2, floor=0.05)
    target = torch.tensor([-1.0, 1.0] * 16)[None, :, None]
    everything = torch.ones(1, 32, dtype=torch.bool)
    for _ in range(150):
        loss = objective(predictions.expand(1, 32, -1), target, everything)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    one_gaussian = 0.5 * math.log(2 * math.pi * math.e)  # the least that mean 0 and scale 1 give
    assert loss.item() < one_gaussian - 0.5


def test_wrong_sizes_of_mixtures_are_refused():
    with pytest.raises(ValueError, match=r"9 predictions.*mixture of 2 components"):
        GaussianMixture(2).split(torch.zeros(1, 1, 9))
    with pytest.raises(ValueError, match=r"2 components of 2 values.*target has 3.*predict 14"):
        GaussianMixture(2).per_token(torch.zeros(1, 1, 10), torch.zeros(1, 1, 3))


# --- Auxiliary losses.


def test_contrast_is_its_formula():
    first, second = torch.randn(5, 8), torch.randn(5, 8)
    found = InfoNCE(0.2)(first, second)
    wanted = 0.0
    for i in range(5):
        for one, other in ((first, second), (second, first)):
            similar = F.cosine_similarity(one[i][None], other) / 0.2
            wanted -= (similar[i] - similar.exp().sum().log()).item() / 10
    assert found["loss"].item() == pytest.approx(wanted, rel=1e-5)
    assert InfoNCE(0.2)(first, 3 * first)["accuracy"] == 1


def contrast(rank, processes, folder, first, second):
    """A process's half of the batch; writes its loss and the gradients at its rows."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    mine = [x.chunk(processes)[rank].clone().requires_grad_() for x in (first, second)]
    terms = InfoNCE()(*mine)
    terms["loss"].backward()
    torch.save([terms["loss"].detach(), *(x.grad for x in mine)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_contrast_in_two_processes_is_that_of_the_whole_batch(tmp_path):
    """Loss and gradients, averaged as data-parallel training averages them."""
    first, second = torch.randn(6, 8), torch.randn(6, 8)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=contrast, args=(i, 2, str(tmp_path), first, second)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = [torch.load(tmp_path / f"{i}.pt") for i in range(2)]
    whole = [x.clone().requires_grad_() for x in (first, second)]
    loss = InfoNCE()(*whole)["loss"]
    loss.backward()
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, loss.detach())
    for i, x in enumerate(whole, start=1):
        torch.testing.assert_close(torch.cat([found[0][i], found[1][i]]) / 2, x.grad)


def test_a_view_is_not_compared_with_itself():
    """With two views each tells the other's teacher; a third, local one tells both."""
    student, teacher = torch.randn(3, 4, 6), torch.randn(2, 4, 6).softmax(-1)

    def pair(v, g):
        return -(teacher[g] * (student[v] / 0.1).log_softmax(-1)).sum(-1).mean().item()

    two, three = [pair(0, 1), pair(1, 0)], [pair(0, 1), pair(1, 0), pair(2, 0), pair(2, 1)]
    assert ClassDistillation()(student[:2], teacher)["loss"].item() == pytest.approx(sum(two) / 2, rel=1e-5)
    assert ClassDistillation()(student, teacher)["loss"].item() == pytest.approx(sum(three) / 4, rel=1e-5)
    with pytest.raises(ValueError, match="give two views"):
        ClassDistillation()(student[:1], teacher[:1])


def test_distilled_class_tokens_have_gradients_of_the_student_only():
    student, head = torch.randn(2, 4, 6, requires_grad=True), torch.randn(8, 6, requires_grad=True)
    ClassDistillation()(student, CentredSoftmax(6)(head).unflatten(0, (2, 4)))["loss"].backward()
    assert student.grad.abs().sum() > 0
    assert head.grad is None


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_predicted_losses_of_masked_tokens_only(kind):
    """Rows hide different numbers of tokens; the others change nothing, and the losses get no gradient."""
    predicted, losses = torch.randn(2, 6, requires_grad=True), torch.rand(2, 6, requires_grad=True)
    masked = torch.tensor([[True, True, True, True, False, False], [False, True, True, False, False, False]])
    loss = LossPrediction(kind)(predicted, losses, masked)["loss"]
    loss.backward()
    assert losses.grad is None
    assert predicted.grad[~masked].abs().sum() == 0
    assert (predicted.grad[masked] != 0).all()
    changed = [torch.where(masked, x.detach(), 9.0) for x in (predicted, losses)]
    assert LossPrediction(kind)(*changed, masked)["loss"] == loss


def test_relative_losses_are_counted_over_ordered_pairs():
    """All ordered pairs, as the peer counts them; equal losses are no pair."""
    predicted, losses = torch.randn(2, 4), torch.tensor([[0.1, 0.4, 0.4, 0.2], [3.0, 2.0, 1.0, 9.0]])
    masked = torch.tensor([[True] * 4, [True, True, True, False]])
    each = []
    for row in range(2):
        for i in range(4):
            for j in range(4):
                if masked[row, i] and masked[row, j] and losses[row, i] != losses[row, j]:
                    harder = torch.sigmoid(predicted[row, i] - predicted[row, j])
                    each.append(-(harder if losses[row, i] > losses[row, j] else 1 - harder).log().item())
    found = LossPrediction()(predicted, losses, masked)
    assert len(each) == 10 + 6
    assert found["loss"].item() == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_the_right_order_is_rewarded():
    losses, masked = torch.rand(3, 8), torch.ones(3, 8, dtype=torch.bool)
    right, wrong = (LossPrediction()(sign * 20 * losses, losses, masked) for sign in (1, -1))
    assert right["accuracy"] == 1
    assert wrong["accuracy"] == 0
    assert right["loss"] < math.log(2) < wrong["loss"]


def test_a_confident_wrong_order_keeps_its_gradient():
    """Where the peer's log(1e-6 + sigmoid) is flat."""
    predicted = torch.tensor([[0.0, 60.0]], requires_grad=True)
    LossPrediction()(predicted, torch.tensor([[2.0, 1.0]]), torch.tensor([[True, True]]))["loss"].backward()
    assert predicted.grad.tolist() == [[-1, 1]]


def test_absolute_losses_are_normalised_in_each_image():
    losses, masked = torch.rand(2, 6) * torch.tensor([[1.0], [100.0]]), torch.ones(2, 6, dtype=torch.bool)
    masked[1, 4:] = False
    wanted = torch.zeros(2, 6)
    wanted[0] = (losses[0] - losses[0].mean()) / (losses[0].var() + 1e-6).sqrt()
    wanted[1, :4] = (losses[1, :4] - losses[1, :4].mean()) / (losses[1, :4].var() + 1e-6).sqrt()
    predicted = torch.randn(2, 6)
    by_hand = (predicted - wanted)[masked].square().mean()
    found = LossPrediction("absolute")(predicted, losses, masked)["loss"]
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-5)
    each = [((predicted - wanted)[i][masked[i]] ** 2).mean() for i in range(2)]
    by_image = LossPrediction("absolute", reduction="image")(predicted, losses, masked)["loss"]
    assert by_image.item() == pytest.approx((sum(each) / 2).item(), rel=1e-5)


def test_auxiliary_losses_are_added_with_their_weight_and_name():
    terms = {"loss": torch.tensor(2.0), "accuracy": torch.tensor(0.5)}
    both = added(terms, "contrast", 0.1, {"loss": torch.tensor(5.0), "accuracy": torch.tensor(0.9)})
    found = {key: value.item() for key, value in both.items()}
    assert found == pytest.approx({"loss": 2.5, "accuracy": 0.5, "contrast/loss": 5, "contrast/accuracy": 0.9})


# --- From configuration.


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_configuration_names_objectives(name):
    spec = {"type": name, "support": "visible", "reduction": "image"}
    core = MaskedModeling(**check(MaskedModeling, {"objective": spec}, "here"))
    assert type(core.objective) is OBJECTIVES[name]
    assert (core.objective.support, core.objective.reduction) == ("visible", "image")


@pytest.mark.parametrize("name", TERMS)
def test_a_configuration_lists_auxiliary_terms(name):
    core = MaskedModeling(**check(MaskedModeling, {"auxiliary": [{"type": name, "weight": 0.5}]}, "here"), width=8)
    assert type(core.auxiliary[name]) is TERMS[name]
    assert core.auxiliary[name].weight == 0.5
    with pytest.raises(ConfigError, match="auxiliary: a list of parts is needed"):
        check(MaskedModeling, {"auxiliary": name}, "here")
    with pytest.raises(ConfigError, match=r"auxiliary\[0\].width: is known from the other parts"):
        check(MaskedModeling, {"auxiliary": [{"type": name, "width": 8}]}, "here")
