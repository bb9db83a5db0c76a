"""Tasks as conditions (MAGVIT's COMMIT): the pixels, the prompts, and what a network in training sees of both."""

import itertools

import numpy as np
import pytest
import torch

import flat
from given import clip, seeded
from maskgen.mim.core import MaskedModeling
from maskgen.pipelines.conditions import Conditions
from maskgen.registry import build
from maskgen.tasks.conditions import PADDINGS, TASK, Prompts, condition_video

SIZE = (7, 8, 12)
ALL = [
    "generation",
    {"type": "prediction", "frames": 2},
    {"type": "interpolation", "frames": 2},
    *({"type": "outpainting", "region": region} for region in ("horizontal", "vertical", "central", "dynamic")),
    *({"type": "inpainting", "region": region} for region in ("central", "dynamic")),
]
NAMES = [spec if isinstance(spec, str) else "-".join(map(str, spec.values())) for spec in ALL]


# ----------------------------------------------------------------------------------------------------------- pixels


def hidden_at(name, t, y, x):
    """The published code's regions, a pixel at a time."""
    frames, height, width = SIZE
    rows, columns = height // 4 <= y < height * 3 // 4, width // 4 <= x < width * 3 // 4
    start = round(t * (width // 2) / (frames - 1))
    passing = start <= x < start + width // 2
    return {
        "generation": True,
        "prediction-2": t >= 2,
        "interpolation-2": 2 <= t < frames - 2,
        "outpainting-horizontal": not rows,
        "outpainting-vertical": not columns,
        "outpainting-central": not (rows and columns),
        "outpainting-dynamic": not passing,
        "inpainting-central": rows and columns,
        "inpainting-dynamic": rows and passing,
    }[name]


@pytest.mark.parametrize(("name", "spec"), zip(NAMES, ALL))
def test_what_each_task_hides(name, spec):
    mask = build(TASK, spec).hidden(SIZE)
    wanted = [hidden_at(name, *at) for at in itertools.product(*map(range, SIZE))]
    assert torch.equal(mask, torch.tensor(wanted).view(SIZE))


@pytest.mark.parametrize("spec", ALL, ids=NAMES)
def test_a_condition_is_the_known_pixels_and_nothing_of_the_others(spec):
    task, pixels = build(TASK, spec), clip(2)
    mask = task.hidden(SIZE)
    condition = condition_video(task.name, pixels, mask)
    assert torch.equal(condition[:, :, ~mask], pixels[:, :, ~mask])
    assert torch.equal(condition_video(task.name, torch.where(mask, -pixels, pixels), mask), condition)


def test_the_padding_of_each_task():
    pixels = clip()

    def made(spec):
        task = build(TASK, spec)
        mask = task.hidden(SIZE)
        return condition_video(task.name, pixels, mask), mask

    predicted, _ = made(ALL[1])
    assert torch.equal(predicted[:, :, 2:], pixels[:, :, 1:2].expand(-1, -1, 5, -1, -1))
    blended, _ = made(ALL[2])
    for i in (2, 3, 4):
        share = (i - 1) / 4
        torch.testing.assert_close(blended[:, :, i], (1 - share) * pixels[:, :, 1] + share * pixels[:, :, 5])
    for spec, axes in ((ALL[3], [3]), (ALL[4], [4]), (ALL[5], [3, 4])):
        known, sides = pixels, [0, 0, 0, 0, 0, 0]
        for axis in axes:
            quarter = pixels.shape[axis] // 4
            known = known.narrow(axis, quarter, 2 * quarter)
            sides[2 * (4 - axis) : 2 * (4 - axis) + 2] = [quarter, quarter]
        assert torch.equal(made(spec)[0], torch.nn.functional.pad(known, sides, mode="replicate"))
    for spec in (ALL[0], *ALL[6:]):
        condition, mask = made(spec)
        assert (condition[:, :, mask] == -1).all()


def test_interpolation_repeats_the_last_known_frame_behind_it():
    """Videos shorter than the trained length have hidden frames at their end."""
    pixels, mask = clip(), torch.ones(SIZE, dtype=torch.bool)
    mask[1], mask[4] = False, False
    made = condition_video("interpolation", pixels, mask)
    assert torch.equal(made[:, :, 0], pixels[:, :, 1])
    assert torch.equal(made[:, :, 5:], pixels[:, :, 4:5].expand(-1, -1, 2, -1, -1))
    torch.testing.assert_close(made[:, :, 2], (2 * pixels[:, :, 1] + pixels[:, :, 4]) / 3)


def test_conditions_that_cannot_be_are_refused():
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[3, :2] = True
    with pytest.raises(ValueError, match="interpolation hides whole frames"):
        condition_video("interpolation", clip(), mask)
    with pytest.raises(ValueError, match="unknown task 'predict'"):
        condition_video("predict", clip(), mask)
    for spec in ({"type": "prediction", "frames": 7}, {"type": "interpolation", "frames": 4}):
        with pytest.raises(ValueError, match=r"has 7; give 1 to"):
            build(TASK, spec).hidden(SIZE)


def test_paddings_are_of_all_tasks():
    assert set(PADDINGS) == set(TASK.table)


# ---------------------------------------------------------------------------------------------------------- prompts


def test_a_label_for_each_task_and_class():
    prompts = Prompts(["prediction", "class_generation", "prediction", "inpainting", "class_prediction"], 3)
    labels = [prompts.label("prediction"), *(prompts.label("generation", i) for i in range(3))]
    labels += [prompts.label("inpainting"), *(prompts.label("prediction", i) for i in range(3))]
    assert labels == list(range(8))
    assert prompts.count == 8
    with pytest.raises(ValueError, match="not trained on generation without a class; its tasks are prediction"):
        prompts.label("generation")
    with pytest.raises(ValueError, match="not trained on inpainting with a class"):
        prompts.label("inpainting", 0)
    with pytest.raises(ValueError, match="class 3 is outside 0 to 2"):
        prompts.label("generation", 3)


@pytest.mark.parametrize(("names", "classes"), [([], 0), (["class_generation"], 0), (["prediction"], 4)])
def test_prompts_that_cannot_be_are_refused(names, classes):
    with pytest.raises(ValueError, match="give one task or more, and conditional: true where"):
        Prompts(names, classes)


def test_rows_are_given_their_tasks_prompt_and_condition():
    conditions = Conditions([ALL[1], {"type": "generation", "classes": True}, *ALL[5:]], 4)
    drawn = conditions.sample(600, seeded())
    assert np.bincount(drawn).min() > 60  # of 100 expected, a deviation of 9
    pixels, classes = clip(len(drawn), size=(3, 4, 4)), torch.arange(600) % 4
    videos, hidden = conditions.videos(pixels, drawn)
    labels = conditions.labels(drawn, classes)
    for i in range(0, 600, 37):
        task = conditions.tasks[drawn[i]]
        assert torch.equal(hidden[i], task.hidden((3, 4, 4)))
        assert torch.equal(videos[i : i + 1], condition_video(task.name, pixels[i : i + 1], hidden[i]))
        assert int(labels[i]) == conditions.prompts.label(task.name, int(classes[i]) if task.classes else None)
    with pytest.raises(ValueError, match="tasks on videos"):
        conditions.videos(torch.zeros(1, 3, 8, 8), [0])


# ------------------------------------------------------------------------------------------------------- corruption


def oracle(mode, codes, condition, region, scores, count):
    """What the network sees, -1 the mask token, and the weights of the loss: token by token, as the paper has it
    (equation 4) and the published code's condition modes. `count` places of the lowest scores are below the cut-off."""
    below = scores <= scores.sort().values[count - 1] if count else torch.zeros_like(region)
    seen, predicted, counted = codes.clone(), torch.zeros_like(region), torch.ones_like(region)
    for i in range(len(codes)):
        if mode == "cond_input":
            if below[i]:
                seen[i] = condition[i] if region[i] else -1
                predicted[i] = True
            continue
        if region[i]:
            counted[i] = False
            seen[i] = condition[i] if mode == "cond_cond" else codes[i]
        elif below[i]:
            seen[i], predicted[i] = -1, True
    return seen, predicted, counted


class Spy(torch.nn.Module):
    """A network that keeps what it was shown, and predicts noise."""

    def forward(self, tokens, masked, conditioning=None):
        self.seen = torch.where(masked, -1, tokens).flatten(1)
        self.made = torch.randn(len(tokens), tokens[0].numel(), 16, generator=seeded(5))
        return type("Output", (), {"predictions": self.made})


@pytest.mark.parametrize("support", ["all", "masked"])
@pytest.mark.parametrize("mode", ["cond_input", "input_input", "cond_cond"])
def test_corruption_is_the_papers(mode, support):
    grid, rows = (3, 2, 4), 32
    codes, condition = (torch.randint(16, (rows, *grid), generator=seeded(i)) for i in (1, 2))
    region = torch.rand(rows, *grid, generator=seeded(3)) < 0.5
    objective = {"type": "cross_entropy", "label_smoothing": 0.0, "support": support}
    core = MaskedModeling("cosine", corruption={"type": "condition", "mode": mode}, objective=objective)
    network, noise = Spy(), seeded(4)
    sources = {"condition_tokens": condition, "condition_region": region}
    terms = core.main_losses(network, codes, generator=seeded(4), **sources)
    ratio = core.ratio(rows, noise)
    scores = torch.rand(rows, 24, generator=noise)
    counts = (ratio.double() * 24).ceil().clamp(1, 24).long().tolist()
    each = torch.nn.functional.cross_entropy(network.made.flatten(0, 1), codes.flatten(), reduction="none").view(
        rows, 24
    )
    weights = torch.zeros(rows, 24)
    for i in range(rows):
        seen, predicted, counted = oracle(
            mode, codes[i].flatten(), condition[i].flatten(), region[i].flatten(), scores[i], counts[i]
        )
        assert torch.equal(network.seen[i], seen)
        weights[i] = counted if support == "all" else predicted
    torch.testing.assert_close(terms["loss"], (each * weights).sum() / weights.sum())


def test_given_tokens_have_no_loss_where_others_are_dropped():
    grid, rows = (3, 2, 4), 8
    codes, condition = (torch.randint(16, (rows, *grid), generator=seeded(i)) for i in (1, 2))
    region = torch.rand(rows, *grid, generator=seeded(3)) < 0.5
    sources = {"condition_tokens": condition, "condition_region": region}
    objective = {"type": "cross_entropy", "label_smoothing": 0.0, "support": "all"}
    corruption = {"type": "condition", "mode": "cond_cond"}
    core = MaskedModeling(dropping={"type": "share", "share": 0.3}, corruption=corruption, objective=objective)
    network = flat.transformer(16, grid, width=16, depth=1, heads=2).eval()
    torch.nn.init.normal_(network.head.weight)
    loss = core.main_losses(network, codes, generator=seeded(4), **sources)["loss"]
    plan = core.plan(rows, grid, seeded(4), **sources)
    assert plan.dropped.any()
    assert not (plan.dropped & region).any()
    output, keep, there = core.outputs(network, codes, plan, **sources)
    counted = there & ~region.flatten(1).gather(1, keep)
    logits, wanted = output.predictions[counted], codes.flatten(1).gather(1, keep)[counted]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, wanted))


def test_condition_tokens_are_needed():
    core = MaskedModeling(corruption="condition")
    with pytest.raises(ValueError, match=r"set stage\.tasks"):
        core.losses(Spy(), torch.zeros(1, 2, 2, 2, dtype=torch.long))
