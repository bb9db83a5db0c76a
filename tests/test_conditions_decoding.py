"""Decodes that begin with a condition (MAGVIT's COMMIT): what the network is shown and told, what stays, and files."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from typer.testing import CliRunner

import flat
from given import an_image, clip, mask, seeded
from maskgen import MaskedVideoPipeline, MaskScheduler, MaskTransformer, Tokenizer
from maskgen.cli import app
from maskgen.conditioning import LabelConditioner
from maskgen.decoding.loop import Step
from maskgen.pipelines.conditions import condition_region
from maskgen.pipelines.predictor import Predictor
from maskgen.pipelines.video_jobs import edit_video
from maskgen.tasks.conditions import Prompts, condition_video

CAUSAL = {"type": "causal", "channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1, "temporal": 1}
TASKS = ["generation", "prediction", "interpolation", "outpainting", "inpainting"]


def make(mode="cond_input", tasks=TASKS, classes=None, condition="in_context"):
    torch.manual_seed(0)
    tokenizer = Tokenizer(CAUSAL, {"codebook_size": 16, "dim": 4}, CAUSAL).eval()
    count = Prompts(tasks, len(classes or ())).count
    transformer = flat.transformer(16, (3, 4, 4), count, width=16, depth=2, heads=2, condition=condition).eval()
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
    seen, told, forward, embed = [], [], MaskTransformer.forward, LabelConditioner.embed

    def look(self, tokens, masked, conditioning, **named):
        hidden, at, stands = masked.flatten(1), conditioning.shown_at, tokens.flatten(1)
        at = torch.zeros_like(hidden) if at is None else at
        stands = stands if conditioning.shown is None else torch.where(hidden & at, conditioning.shown, stands)
        seen.append(torch.where(hidden & ~at, -1, stands).view(tokens.shape))
        return forward(self, tokens, masked, conditioning, **named)

    def listen(self, labels, *rest):
        if (labels != self.count).any():  # not the null condition
            told.append(labels.tolist())
        return embed(self, labels, *rest)

    monkeypatch.setattr(MaskTransformer, "forward", look)
    monkeypatch.setattr(LabelConditioner, "embed", listen)
    return call(), seen, told


def test_decoding_begins_with_the_condition_tokens(pipeline, monkeypatch):
    """Algorithm 1: the region of condition tokens and the mask token elsewhere, every place to be decided."""
    pixels, mask = clip(1, 1, (5, 8, 8)), torch.zeros(5, 8, 8, dtype=torch.bool)
    mask[3:] = True
    condition = pipeline.vqvae.encode(condition_video("prediction", pixels, mask))
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
    region = condition_region(pipeline.vqvae, hidden)
    assert region.nonzero().tolist() == [[0, 1, 3, 1]]


@pytest.mark.parametrize("mode", ["input_input", "cond_cond"])
def test_fixed_conditions_stay(mode):
    pipeline = make(mode)
    pixels, mask = clip(2, 1, (5, 8, 8)), torch.zeros(5, 8, 8, dtype=torch.bool)
    mask[:, :, 4:] = True
    codes = pipeline.inpaint(pixels, mask, output_type="codes", generator=seeded()).frames
    condition = pipeline.vqvae.encode(condition_video("inpainting", pixels, mask))
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


def test_classes_are_told_and_copies_are_drawn_apart():
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
    with pytest.raises(ValueError, match="works at its trained size"):
        pipeline.outpaint(clip(1, 1, (5, 8, 8)), left=4)
    with pytest.raises(ValueError, match=r"5 labels .* were not trained together"):
        MaskedVideoPipeline(
            pipeline.vqvae,
            flat.transformer(16, (3, 4, 4), 4, width=16, depth=1, heads=2),
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
    network = flat.transformer(16, (2, 2, 3), 4, width=16, depth=2, heads=2).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, shown = torch.randint(16, (2, 2, 12))
    hidden, where = torch.rand(2, 2, 12, generator=seeded()) < 0.6
    positions = torch.arange(12).expand(2, -1)
    seen = torch.where(hidden & where, shown, tokens).view(2, 2, 2, 3)
    masked = (hidden & ~where).view(2, 2, 2, 3)
    given = {"label": torch.tensor([1, 3])}
    c, u = (network(seen, masked, network.conditioner(x, 2, (2, 2, 3))).predictions for x in (given, None))
    step = Step(tokens, hidden, positions, 0, 4, scale, True)
    made = Predictor(network, (2, 2, 3), given, 2, (shown, where))(step)
    torch.testing.assert_close(made, u + scale * (c - u), rtol=1e-4, atol=1e-4)


def test_the_tasks_work_from_files_to_files(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    frames = [an_image(seed=i).convert("L") for i in range(5)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    frames[0].save(tmp_path / "first.png")
    frames[4].save(tmp_path / "last.png")
    mask((3, 2, 5, 6)).save(tmp_path / "mask.png")
    model, clip_file, fast = tmp_path / "model", tmp_path / "clip.gif", {"steps": 2}

    def images(paths):
        return [[np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(Image.open(p))] for p in paths]

    ends = tmp_path / "first.png", tmp_path / "last.png"
    between = edit_video("interpolate", model, *ends, out=tmp_path / "a.gif", **fast)
    assert len(images(between)[0]) == 5
    mask_file = tmp_path / "mask.png"
    two = edit_video("inpaint", model, clip_file, mask=mask_file, count=2, out=tmp_path / "b.gif", **fast)
    assert [path.name for path in two] == ["b_000.gif", "b_001.gif"]
    boxed = edit_video("inpaint", model, clip_file, box=(3, 2, 5, 6), out=tmp_path / "c.gif", **fast)
    for one, other in zip(*images([two[0], *boxed])):
        assert np.array_equal(one, other)
    wider = edit_video("outpaint", model, clip_file, sides=(2, 0, 2, 0), out=tmp_path / "d.gif", **fast)
    assert images(wider)[0][0].shape == (8, 8)
    command = ["edit-video", "inpaint", str(model), str(clip_file), "--box", "3", "2", "5", "6", "--steps", "2"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "e.gif")], catch_exceptions=False)
    assert done.stdout.split()[-1] == str(tmp_path / "e.gif")
    assert (tmp_path / "e.gif").read_bytes() == boxed[0].read_bytes()
    with pytest.raises(ValueError, match=r"sides \(4, 0, 4, 0\) .*8x8 frames.*give less"):
        edit_video("outpaint", model, clip_file, sides=(4, 0, 4, 0))
    with pytest.raises(ValueError, match="give one of the two"):
        edit_video("inpaint", model, clip_file)
    with pytest.raises(ValueError, match=r"unknown task 'paint': .*choose one of interpolate, inpaint, outpaint"):
        edit_video("paint", model, clip_file)
    with pytest.raises(ValueError, match="give video_2"):
        edit_video("interpolate", model, clip_file)
