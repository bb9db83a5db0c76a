"""Tasks as conditions (MAGVIT's COMMIT): the pixels, the tokens in training, and the decode that begins with them."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from typer.testing import CliRunner

from maskgen import MaskedVideoPipeline, MaskScheduler, MaskTransformer, Tokenizer
from maskgen.cli import app
from maskgen.data.augment import Augmentation
from maskgen.decoding.loop import Step
from maskgen.mim.core import Learner, MaskedModeling
from maskgen.parts import build
from maskgen.pipelines.conditions import Conditions, condition_region
from maskgen.pipelines.predictor import Predictor
from maskgen.pipelines.store import save_tokenizer
from maskgen.pipelines.video_jobs import edit_video
from maskgen.tasks.conditions import PADDINGS, TASK, Prompts, condition_video
from maskgen.training.generator_stage import GeneratorStage
from maskgen.training.loop import Training, train
from maskgen.training.metrics import read_metrics

SIZE = (7, 8, 12)
ALL = [
    "generation",
    {"type": "prediction", "frames": 2},
    {"type": "interpolation", "frames": 2},
    *({"type": "outpainting", "region": region} for region in ("horizontal", "vertical", "central", "dynamic")),
    *({"type": "inpainting", "region": region} for region in ("central", "dynamic")),
]
NAMES = [spec if isinstance(spec, str) else "-".join(map(str, spec.values())) for spec in ALL]


def clip(batch=1, channels=2, size=SIZE, seed=0):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(n=0):
    return torch.Generator().manual_seed(n)


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


def test_conditions_that_cannot_be():
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[3, :2] = True
    with pytest.raises(ValueError, match="interpolation hides whole frames"):
        condition_video("interpolation", clip(), mask)
    with pytest.raises(ValueError, match="unknown task 'predict'"):
        condition_video("predict", clip(), mask)
    for spec in ({"type": "prediction", "frames": 7}, {"type": "interpolation", "frames": 4}):
        with pytest.raises(ValueError, match=r"of 7; give 1 to"):
            build(TASK, spec).hidden(SIZE)


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
def test_prompts_that_cannot_be(names, classes):
    with pytest.raises(ValueError, match="give one task or more, and conditional: true where"):
        Prompts(names, classes)


def test_rows_are_given_their_tasks_prompt_and_condition():
    conditions = Conditions([ALL[1], {"type": "generation", "classes": True}, *ALL[5:]], 4)
    drawn = conditions.drawn(600, seeded())
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

    def forward(self, tokens, masked, condition=None):
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
    network = MaskTransformer(16, grid, width=16, depth=1, heads=2).eval()
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


# --------------------------------------------------------------------------------------------------------- decoding

CAUSAL = {"type": "causal", "channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1, "temporal": 1}
TASKS = ["generation", "prediction", "interpolation", "outpainting", "inpainting"]


def make(mode="cond_input", tasks=TASKS, classes=None, condition="in_context"):
    torch.manual_seed(0)
    tokenizer = Tokenizer(CAUSAL, {"codebook_size": 16, "dim": 4}, CAUSAL).eval()
    count = Prompts(tasks, len(classes or ())).count
    transformer = MaskTransformer(16, (3, 4, 4), count, width=16, depth=2, heads=2, condition=condition).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pipeline = MaskedVideoPipeline(tokenizer, transformer, MaskScheduler(num_inference_steps=3), classes, tasks, mode)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    return make()


def frames_of(result):
    return result.frames.transpose(1, 2) * 2 - 1


def watched(pipeline, monkeypatch, call):
    """What the transformer was shown at each step, -1 the mask token, and the labels it was told."""
    seen, told, forward, conditions = [], [], MaskTransformer.forward, MaskTransformer.conditions

    def look(self, tokens, masked, **named):
        seen.append(torch.where(masked, -1, tokens))
        return forward(self, tokens, masked, **named)

    def listen(self, labels, batch):
        told.append(labels.tolist())
        return conditions(self, labels, batch)

    monkeypatch.setattr(MaskTransformer, "forward", look)
    monkeypatch.setattr(MaskTransformer, "conditions", listen)
    return call(), seen, told


def test_decoding_begins_with_the_condition_tokens(pipeline, monkeypatch):
    """Algorithm 1: the region of condition tokens and the mask token elsewhere, every place to be decided."""
    pixels, mask = clip(1, 1, (5, 8, 8)), torch.zeros(5, 8, 8, dtype=torch.bool)
    mask[3:] = True
    condition = pipeline.tokenizer.encode(condition_video("prediction", pixels, mask))
    result, seen, told = watched(
        pipeline,
        monkeypatch,
        lambda: pipeline.predict(pixels[:, :, :3], 2, generator=seeded(), output_type="codes").frames,
    )
    wanted = condition.clone()
    wanted[:, 2] = -1  # frames 3 and 4; the second token of time holds 1 and 2, both known
    assert torch.equal(seen[0], wanted)
    assert told[0][0] == pipeline.prompts.label("prediction")
    for early, late in itertools.pairwise(seen):
        undecided = (late == wanted).flatten()
        decided = late.flatten()[~undecided]
        assert torch.equal(decided, result.flatten()[~undecided])
        assert (early.flatten()[undecided] == wanted.flatten()[undecided]).all()
    assert len(seen) == 3


def test_a_token_with_some_condition_pixels_is_in_the_region(pipeline):
    """MAGVIT's "ispad": only a token that holds nothing but padding is none."""
    hidden = torch.ones(1, 5, 8, 8, dtype=torch.bool)
    hidden[:, 2, 7, 3] = False
    region = condition_region(pipeline.tokenizer, hidden)
    assert region.nonzero().tolist() == [[0, 1, 3, 1]]


@pytest.mark.parametrize("mode", ["input_input", "cond_cond"])
def test_fixed_conditions_stay(mode):
    pipeline = make(mode)
    pixels, mask = clip(2, 1, (5, 8, 8)), torch.zeros(5, 8, 8, dtype=torch.bool)
    mask[:, :, 4:] = True
    codes = pipeline.inpaint(pixels, mask, output_type="codes", generator=seeded()).frames
    condition = pipeline.tokenizer.encode(condition_video("inpainting", pixels, mask))
    assert torch.equal(codes[..., :2], condition[..., :2])
    assert not torch.equal(codes[..., 2:], condition[..., 2:])


def calls(pipeline, video):
    """Each method at the trained size, 5 x 8 x 8."""
    hole = torch.zeros(5, 8, 8, dtype=torch.bool)
    hole[:, 2:6, 3:7] = True
    settings = {"generator": seeded(), "output_type": "pt"}
    known = torch.ones(5, 8, 8, dtype=torch.bool)
    return {
        "prediction": (pipeline.predict(video[:, :, :2], 3, **settings), known & (torch.arange(5) < 2)[:, None, None]),
        "interpolation": (
            pipeline.interpolate(video[:, :, :1], video[:, :, 4:], 3, **settings),
            known & (torch.arange(5) % 4 == 0)[:, None, None],
        ),
        "outpainting": (
            pipeline.outpaint(video[:, :, :, :, 2:6], left=2, right=2, **settings),
            known & ((torch.arange(8) >= 2) & (torch.arange(8) < 6)),
        ),
        "inpainting": (pipeline.inpaint(video, hole, **settings), ~hole),
    }


@pytest.mark.parametrize("mode", ["cond_input", "cond_cond"])
def test_every_task_keeps_known_pixels_and_sees_no_others(mode):
    pipeline, video = make(mode), clip(1, 1, (5, 8, 8))
    for name, (result, known) in calls(pipeline, video).items():
        made = frames_of(result)
        torch.testing.assert_close(made[:, :, known], video[:, :, known])
        other = frames_of(calls(pipeline, torch.where(known, video, -video))[name][0])
        assert torch.equal(made, other), name


def test_each_method_tells_its_task(pipeline, monkeypatch):
    _, _, told = watched(pipeline, monkeypatch, lambda: calls(pipeline, clip(1, 1, (5, 8, 8))))
    names = ["prediction", "interpolation", "outpainting", "inpainting"]
    assert [labels[0] for labels in told] == [pipeline.prompts.label(name) for name in names]
    _, seen, told = watched(pipeline, monkeypatch, lambda: pipeline(generator=seeded(), output_type="codes"))
    assert told[0][0] == pipeline.prompts.label("generation")
    assert (seen[0] == -1).all()


def test_classes_and_copies():
    tasks = ["class_generation", "prediction", "class_prediction"]
    pipeline = make(tasks=tasks, classes=["cat", "dog"], condition="adaln")
    alone = pipeline.predict(clip(1, 1, (1, 8, 8)), 4, output_type="codes", generator=[seeded(3)]).frames
    video = clip(1, 1, (1, 8, 8))
    four = pipeline.predict(
        video, 4, class_labels="dog", num_videos_per_prompt=2, output_type="codes", generator=[seeded(3), seeded(4)]
    ).frames
    assert four.shape == (2, 3, 4, 4)
    assert not torch.equal(four[:1], alone)
    assert torch.equal(
        four[:1], pipeline.predict(video, 4, class_labels=1, output_type="codes", generator=[seeded(3)]).frames
    )
    with pytest.raises(ValueError, match="not trained on generation without a class"):
        pipeline()
    with pytest.raises(ValueError, match="not trained on inpainting without a class"):
        pipeline.inpaint(clip(1, 1, (5, 8, 8)), torch.ones(5, 8, 8, dtype=torch.bool))


def test_longer_predictions_go_on_from_decoded_frames(pipeline):
    video = clip(1, 1, (3, 8, 8))
    made = frames_of(pipeline.predict(video, 7, generator=seeded(), output_type="pt"))
    assert made.shape == (1, 1, 10, 8, 8)
    torch.testing.assert_close(made[:, :, :3], video)


def test_larger_videos_and_models_of_other_tasks_are_refused(pipeline):
    with pytest.raises(ValueError, match="works at its trained frames and size"):
        pipeline.outpaint(clip(1, 1, (5, 8, 8)), left=4)
    with pytest.raises(ValueError, match=r"5 labels of tasks .* were not trained together"):
        MaskedVideoPipeline(
            pipeline.tokenizer,
            MaskTransformer(16, (3, 4, 4), 4, width=16, depth=1, heads=2),
            MaskScheduler(),
            None,
            TASKS,
        )


def test_a_saved_pipeline_knows_its_tasks(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = MaskedVideoPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.prompts.names == TASKS
    assert loaded.config.condition_mode == "cond_input"
    video = clip(1, 1, (2, 8, 8))
    a, b = (x.predict(video, 3, generator=seeded(), output_type="codes").frames for x in (pipeline, loaded))
    assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_shown_tokens_stand_at_hidden_places_alone(scale):
    network = MaskTransformer(16, (2, 2, 3), 4, width=16, depth=2, heads=2).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, shown = torch.randint(16, (2, 2, 12))
    hidden, where = torch.rand(2, 2, 12, generator=seeded()) < 0.6
    positions = torch.arange(12).expand(2, -1)
    seen = torch.where(hidden & where, shown, tokens).view(2, 2, 2, 3)
    masked = (hidden & ~where).view(2, 2, 2, 3)
    c, u = (network(seen, masked, labels).predictions for labels in (torch.tensor([1, 3]), None))
    step = Step(tokens, hidden, positions, 0, 4, scale, True)
    made = Predictor(network, [1, 3], (2, 2, 3), shown=(shown, where))(step)
    torch.testing.assert_close(made, u + scale * (c - u), rtol=1e-4, atol=1e-4)


def test_paddings_are_of_all_tasks():
    assert set(PADDINGS) == set(TASK.table)


# --------------------------------------------------------------------------------------------------------- training


class Clips:
    """Clips of noise in two classes."""

    def __init__(self, count=8, size=(4, 8, 8)):
        self.class_names, self.labels, self.size = ["cat", "dog"], [i % 2 for i in range(count)], size

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixels": clip(1, 1, self.size, index)[0], "label": self.labels[index]}


def stage_of(folder, tasks, conditional=False, **settings):
    coder = {"channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1}
    if not folder.exists():
        save_tokenizer(Tokenizer(coder, {"codebook_size": 16, "dim": 4}, coder), folder)
    model = {"width": 16, "depth": 1, "heads": 2, "condition": "in_context"}
    masking = {"corruption": "condition", "objective": {"type": "cross_entropy", "support": "all"}}
    settings = {"model": model, "masking": masking, "scheduler": {"num_inference_steps": 2}, **settings}
    return GeneratorStage(str(folder), Clips(), Clips(), conditional=conditional, tasks=tasks, **settings)


def test_training_shows_each_rows_condition_and_tells_its_prompt(tmp_path):
    tasks = [{"type": "prediction", "classes": True}, {"type": "inpainting", "region": "dynamic"}]
    stage, seen = stage_of(tmp_path / "tokenizer", tasks, conditional=True), []
    network = stage.modules["model"].network
    network.register_forward_pre_hook(lambda module, given: seen.append(given))
    batch = torch.utils.data.default_collate([stage.dataset[i] for i in range(8)])
    torch.manual_seed(3)
    ((_, terms),) = stage.losses(batch, 0)
    assert torch.isfinite(terms["loss"])
    torch.manual_seed(3)
    drawn = stage.conditions.drawn(8)
    assert set(drawn) == {0, 1}
    ((tokens, masked, labels),) = seen
    assert labels.tolist() == [int(batch["label"][i]) if drawn[i] == 0 else 2 for i in range(8)]
    codes = stage.tokenizer.encode(batch["pixels"])
    videos, hidden = stage.conditions.videos(batch["pixels"], drawn)
    condition, region = stage.tokenizer.encode(videos), condition_region(stage.tokenizer, hidden)
    assert not (masked & region).any()
    assert ((tokens == codes) | (tokens == condition))[region].all()
    assert (tokens != codes)[region].any()
    assert torch.equal(tokens[~region & ~masked], codes[~region & ~masked])


def test_a_run_of_several_tasks_trains_evaluates_and_is_loaded(tmp_path):
    stage = stage_of(tmp_path / "tokenizer", ["prediction", "interpolation", "inpainting", "generation"])
    settings = Training(steps=2, batch_size=4, log_every=1, precision="fp32")
    train(stage, Clips(), settings, tmp_path / "run", Augmentation())
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert np.isfinite(last["holdout/loss"])
    assert (tmp_path / "run" / "samples" / "step_00000002.png").is_file()
    pipeline = MaskedVideoPipeline.from_pretrained(tmp_path / "run")
    assert pipeline.prompts.names == ["prediction", "interpolation", "inpainting", "generation"]
    learner = stage.modules["model"].eval()
    batch = torch.utils.data.default_collate([stage.dataset[i] for i in range(4)])
    given = stage.inputs(batch)
    assert given.condition.tolist() == [0, 1, 2, 3]
    terms = learner.masking.main_losses(learner.network, given.tokens, given.condition, **given.sources)
    assert torch.isfinite(terms["loss"])


def test_tasks_and_corruption_go_together(tmp_path):
    for tasks, masking in ((["prediction"], {}), ([], {"corruption": "condition"})):
        with pytest.raises(ValueError, match=r"stage\.tasks and masking\.corruption condition go together"):
            stage_of(tmp_path / "tokenizer", tasks, masking=masking)
    with pytest.raises(ValueError, match="conditional: true where"):
        stage_of(tmp_path / "tokenizer", ["prediction"], conditional=True)
    stage = stage_of(tmp_path / "tokenizer", ["prediction"])
    with pytest.raises(ValueError, match="a token cache has none"):
        next(iter(stage.losses({"codes": torch.zeros(1, 4, 4, 4, dtype=torch.long)}, 0)))


def bars(count, seed):
    """A bar that goes right by a column a frame, around the edge: (count, 1, 5, 4, 6)."""
    column = torch.randint(6, (count, 1), generator=seeded(seed)) + torch.arange(5)
    frames = torch.nn.functional.one_hot(column % 6, 6)[:, None, :, None].expand(-1, 1, -1, 4, -1)
    return frames.float() * 2 - 1


def test_one_small_model_learns_four_tasks():
    part = {"type": "patch", "patch": 1, "channels": 1}
    tokenizer = Tokenizer(part, {"codebook_size": 2, "dim": 1}, part).eval()
    tokenizer.quantizer.codebook.data.copy_(torch.tensor([[-1.0], [1.0]]))
    conditions = Conditions(["prediction", "interpolation", {"type": "outpainting", "region": "horizontal"}, ALL[-1]])
    count = conditions.prompts.count
    network = MaskTransformer(
        2, (5, 4, 6), count, width=32, depth=2, heads=2, condition="in_context", class_dropout=0.0
    )
    objective = {"type": "cross_entropy", "label_smoothing": 0.0, "support": "all"}
    learner = Learner(network, MaskedModeling(corruption="condition", objective=objective))
    optimizer, pixels = torch.optim.AdamW(network.parameters(), lr=3e-3), bars(32, 0)
    codes = tokenizer.encode(pixels)
    for _ in range(100):
        drawn = conditions.drawn(32)
        videos, hidden = conditions.videos(pixels, drawn)
        region = condition_region(tokenizer, hidden)
        sources = {"condition_tokens": tokenizer.encode(videos), "condition_region": region}
        optimizer.zero_grad()
        learner(codes, conditions.labels(drawn, None), **sources)["loss"].backward()
        optimizer.step()
    scheduler = MaskScheduler(num_inference_steps=6, temperature=0.0)
    pipeline = MaskedVideoPipeline(tokenizer, network.eval(), scheduler, None, conditions.prompts.names)
    pipeline.set_progress_bar_config(disable=True)
    truth = bars(8, 1)
    for task in conditions.tasks:
        mask = task.hidden((5, 4, 6))
        made = frames_of(pipeline.inpaint(truth, mask, task=task.name, generator=seeded(), output_type="pt"))
        right = (made == truth)[:, :, mask].float().mean()
        assert right > 0.97, task.name  # black is 0.83; of prediction and interpolation the padding 0.67 and 0.61


# ------------------------------------------------------------------------------------------------------------ files


def test_files_to_files(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)) for _ in range(5)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    frames[0].save(tmp_path / "first.png")
    frames[4].save(tmp_path / "last.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:5] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    model, clip_file, fast = tmp_path / "model", tmp_path / "clip.gif", {"steps": 2}

    def pictures(paths):
        return [[np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(Image.open(p))] for p in paths]

    ends = tmp_path / "first.png", tmp_path / "last.png"
    between = edit_video("interpolate", model, *ends, out=tmp_path / "a.gif", **fast)
    assert len(pictures(between)[0]) == 5
    mask_file = tmp_path / "mask.png"
    two = edit_video("inpaint", model, clip_file, mask=mask_file, count=2, out=tmp_path / "b.gif", **fast)
    assert [path.name for path in two] == ["b_000.gif", "b_001.gif"]
    boxed = edit_video("inpaint", model, clip_file, box=(3, 2, 5, 6), out=tmp_path / "c.gif", **fast)
    for one, other in zip(*pictures([two[0], *boxed])):
        assert np.array_equal(one, other)
    wider = edit_video("outpaint", model, clip_file, sides=(2, 0, 2, 0), out=tmp_path / "d.gif", **fast)
    assert pictures(wider)[0][0].shape == (8, 8)
    command = ["edit-video", "inpaint", str(model), str(clip_file), "--box", "3", "2", "5", "6", "--steps", "2"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "e.gif")], catch_exceptions=False)
    assert done.stdout.split()[-1] == str(tmp_path / "e.gif")
    assert (tmp_path / "e.gif").read_bytes() == boxed[0].read_bytes()
    with pytest.raises(ValueError, match="leave nothing of the model's frames of 8x8"):
        edit_video("outpaint", model, clip_file, sides=(4, 0, 4, 0))
    with pytest.raises(ValueError, match="give one of both"):
        edit_video("inpaint", model, clip_file)
    with pytest.raises(ValueError, match=r"unknown task 'paint': .*choose one of interpolate, inpaint, outpaint"):
        edit_video("paint", model, clip_file)
    with pytest.raises(ValueError, match="give video_2"):
        edit_video("interpolate", model, clip_file)
