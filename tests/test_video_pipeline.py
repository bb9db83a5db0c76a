"""Every task on videos: what is known stays, what is hidden is never seen, and windows slide."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flat
from maskgen import MaskedVideoPipeline, MaskScheduler, Tokenizer
from maskgen.pipelines.tokens import actions_of_tokens
from maskgen.pipelines.video_inputs import open_video
from maskgen.pipelines.video_jobs import edit_video, predict_video
from maskgen.tasks.planning import cross_entropy_plan, goal_distance, rollout_cost
from maskgen.tasks.videos import held, video_token_mask
from maskgen.videos import save

av = pytest.importorskip("av")

CONV = {"channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1}
CAUSAL = {"type": "causal", "channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1, "temporal": 1}
VQ = {"codebook_size": 16, "dim": 4}


def make(coder=CONV, grid=(4, 3, 4), factor=1, **options):
    torch.manual_seed(0)
    tokenizer = Tokenizer(coder, {**VQ}, coder).eval()
    settings = {"width": 16, "depth": 2, "heads": 2, "windows": [[1, 0, 0], [0, 1, 2]], **options}
    transformer = flat.transformer(16, grid, **settings).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pipeline = MaskedVideoPipeline(tokenizer, transformer, MaskScheduler(num_inference_steps=3))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    return make()


def video(frames=2, batch=1, height=6, width=8):
    return torch.rand(batch, 1, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def frames_of(result):
    return result.frames.transpose(1, 2) * 2 - 1


@pytest.mark.parametrize("given", [1, 2, 3])
@pytest.mark.parametrize("more", [1, 2, 9])
def test_any_number_of_frames_in_and_out(pipeline, given, more):
    known = video(given)
    made = frames_of(pipeline.predict(known, more, output_type="pt", generator=seeded()))
    assert made.shape == (1, 1, given + more, 6, 8)
    torch.testing.assert_close(made[:, :, :given], known)


def test_prediction_within_the_trained_length_is_completion_of_the_future(pipeline):
    known = video(2)
    codes = pipeline.predict(known, 2, output_type="codes", generator=seeded()).frames
    canvas = torch.cat([pipeline.vqvae.encode(known), torch.zeros(1, 2, 3, 4, dtype=torch.long)], 1)
    mask = torch.zeros_like(canvas, dtype=torch.bool)
    mask[:, 2:] = True
    assert torch.equal(codes, pipeline.complete(canvas, mask, generator=seeded()))
    assert torch.equal(codes[:, :2], canvas[:, :2])


def test_a_window_slides_with_as_many_known_frames_as_were_given(pipeline, monkeypatch):
    seen = []

    def complete(canvas, mask, *args, **options):
        seen.append((canvas.shape[1], options["overlap"]))
        return canvas

    monkeypatch.setattr(pipeline, "complete", complete)
    pipeline.predict(video(2), 6, output_type="codes")
    pipeline.predict(video(9), 1, output_type="codes")
    assert seen == [(8, (2, 1, 2)), (10, (3, 1, 2))]


def test_hidden_pixels_are_never_seen(pipeline):
    whole, mask = video(4), torch.zeros(4, 6, 8, dtype=torch.bool)
    mask[1, 2:5, 3:] = True
    mask[3] = True
    other = torch.where(mask, -whole, whole)
    a, b = (pipeline.inpaint(x, mask, output_type="pt", generator=seeded()).frames for x in (whole, other))
    assert torch.equal(a, b)
    torch.testing.assert_close(
        frames_of(type("R", (), {"frames": a}))[:, :, ~mask.any(-1).any(-1)][:, :, 0], whole[:, :, 0]
    )


def test_inpainting_keeps_known_pixels_and_known_tokens(pipeline):
    whole, mask = video(4, batch=2), torch.zeros(2, 4, 6, 8, dtype=torch.bool)
    mask[:, 1:3, :2, :2] = True
    made = frames_of(pipeline.inpaint(whole, mask, output_type="pt", generator=seeded()))
    known = ~mask[:, None]
    torch.testing.assert_close(made[known], whole[known])
    assert (made != whole)[mask[:, None]].any()
    codes = pipeline.inpaint(whole, mask, output_type="codes", generator=seeded()).frames
    same = pipeline.vqvae.encode(held(whole, mask))
    assert torch.equal(codes[:, :, 1:], same[:, :, 1:])


def test_interpolation_keeps_both_ends(pipeline):
    first, last = video(1), video(2)
    made = frames_of(pipeline.interpolate(first, last, 3, output_type="pt", generator=seeded()))
    assert made.shape[2] == 6
    torch.testing.assert_close(made[:, :, :1], first)
    torch.testing.assert_close(made[:, :, 4:], last)


def test_outpainting_in_space_and_time(pipeline):
    known = video(2)
    made = frames_of(
        pipeline.outpaint(known, left=3, bottom=2, before=1, after=3, output_type="pt", generator=seeded())
    )
    assert made.shape == (1, 1, 6, 8, 11)
    torch.testing.assert_close(made[:, :, 1:3, :6, 3:], known)


def test_generation_seeds_and_outputs(pipeline):
    a, b, c = (pipeline(generator=seeded(n), output_type="pt").frames for n in (0, 0, 1))
    assert a.shape == (1, 4, 1, 6, 8)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    as_array = pipeline(generator=seeded(), output_type="np").frames
    np.testing.assert_allclose(as_array, a.permute(0, 1, 3, 4, 2).numpy())
    (images,) = pipeline(generator=seeded(), output_type="pil", return_dict=False)[0]
    assert [p.size for p in images] == [(8, 6)] * 4
    assert pipeline(generator=seeded(), output_type="codes", num_frames=7).frames.shape == (1, 7, 3, 4)


def test_a_result_depends_on_its_own_generator_alone(pipeline):
    known = video(2, batch=2)
    both = pipeline.predict(known, 2, output_type="codes", generator=[seeded(5), seeded(6)]).frames
    alone = pipeline.predict(known[1:], 2, output_type="codes", generator=[seeded(6)]).frames
    assert torch.equal(both[1:], alone)
    several = pipeline.predict(known, 2, output_type="codes", num_videos_per_prompt=2, generator=seeded()).frames
    assert torch.equal(several[0, :2], several[1, :2])
    assert not torch.equal(several[0], several[1])


def test_a_result_depends_on_its_own_mask_alone_where_windows_slide(pipeline):
    """The order of the windows is that of the hidden tokens: of each row's own, not of the batch's."""
    clips, hidden = video(8, batch=2), torch.zeros(2, 8, 6, 8, dtype=torch.bool)
    hidden[0, :2], hidden[1, 5:], hidden[1, 0, 0, 0] = True, True, True
    settings = {"output_type": "codes", "num_inference_steps": 2}
    both = pipeline.inpaint(clips, hidden, generator=[seeded(1), seeded(2)], **settings).frames
    for i in range(2):
        alone = pipeline.inpaint(clips[i], hidden[i], generator=[seeded(i + 1)], **settings).frames
        assert torch.equal(both[i], alone[0])


def test_several_results_of_several_videos_have_their_own_class_and_actions():
    """Also where prediction goes on from decoded frames."""
    options = {"num_classes": 3, "action_dim": 4}
    model, clips = make(CAUSAL, factor=2, **options), video(3, batch=2)
    actions = torch.randn(2, 15, 2, generator=seeded())
    noise = [seeded(i) for i in range(4)]
    settings = {"output_type": "pt", "num_inference_steps": 2}
    both = model.predict(
        clips, 12, class_labels=[0, 2], actions=actions, num_videos_per_prompt=2, generator=noise, **settings
    ).frames
    for i in range(4):
        own = {"class_labels": [0, 2][i // 2], "actions": actions[i // 2], "generator": [seeded(i)]}
        alone = model.predict(clips[i // 2], 12, **own, **settings).frames
        torch.testing.assert_close(both[i], alone[0])
    with pytest.raises(ValueError, match=r"actions \(2, 25, 2\) for 2 videos of 15 frames"):
        model.predict(clips, 12, actions=torch.zeros(2, 25, 2))


def test_classes():
    pipeline = make(num_classes=3)
    made = [pipeline(label, generator=seeded(), output_type="codes").frames for label in ([0, 1], [0, 2])]
    assert made[0].shape == (2, 4, 3, 4)
    assert torch.equal(made[0][0], made[1][0])
    assert not torch.equal(made[0][1], made[1][1])
    assert pipeline.predict(video(1, batch=2), 2, class_labels=1, output_type="pt").frames.shape == (2, 3, 1, 6, 8)
    with pytest.raises(ValueError, match="3 class labels for 2 videos"):
        pipeline.predict(video(1, batch=2), 2, class_labels=[0, 1, 2])


def test_actions_reach_their_frames_in_every_window(monkeypatch):
    pipeline = make(action_dim=2)
    actions = torch.arange(12.0).view(6, 2)
    seen = []
    conditioner = pipeline.transformer.conditioner["actions"]
    original = conditioner.forward

    def forward(given, grid):
        seen.append(given.clone())
        return original(given, grid)

    monkeypatch.setattr(conditioner, "forward", forward)
    pipeline.predict(video(2), 4, actions=actions, output_type="codes", generator=seeded())
    assert torch.equal(seen[0], actions[None, :4])
    assert torch.equal(seen[-1], actions[None, 2:])


def test_actions_change_what_is_predicted_row_by_row():
    pipeline = make(action_dim=2)
    candidates = torch.randn(5, 4, 2, generator=seeded())
    same = [seeded(1) for _ in range(5)]
    many = video(2).expand(5, -1, -1, -1, -1)
    codes = pipeline.predict(many, 2, actions=candidates, generator=same, output_type="codes").frames
    alone = pipeline.predict(video(2), 2, actions=candidates[3], generator=seeded(1), output_type="codes").frames
    assert torch.equal(codes[3:4], alone)
    assert len({tuple(row.flatten().tolist()) for row in codes}) > 1
    with pytest.raises(ValueError, match=r"actions \(3, 2\) for 1 videos of 4 frames"):
        pipeline.predict(video(2), 2, actions=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="reads actions"):
        pipeline.predict(video(2), 2)


@pytest.mark.parametrize(("given", "more"), [(1, 2), (3, 2), (2, 3), (5, 9), (1, 11)])
def test_a_causal_tokenizer_goes_on_from_decoded_frames(given, more):
    pipeline = make(CAUSAL, grid=(3, 3, 4), action_dim=4)
    assert pipeline.size == (5, 6, 8)
    known, actions = video(given), torch.randn(given + more, 2)
    made = frames_of(pipeline.predict(known, more, actions=actions, output_type="pt", generator=seeded()))
    assert made.shape == (1, 1, given + more, 6, 8)
    torch.testing.assert_close(made[:, :, :given], known)
    with pytest.raises(ValueError, match=r"no window can slide .* or use predict"):
        pipeline.outpaint(video(4), before=8, actions=torch.zeros(12, 2))


def test_save_and_load(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    again = MaskedVideoPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    a, b = (p(generator=seeded(), output_type="codes").frames for p in (pipeline, again))
    assert torch.equal(a, b)
    assert again.transformer.config.block["windows"] == [[1, 0, 0], [0, 1, 2]]
    with pytest.raises(FileNotFoundError, match="no run or pipeline at"):
        MaskedVideoPipeline.from_pretrained(tmp_path / "nothing")


def test_files_to_files(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    frames = [Image.fromarray(np.full((12, 16, 3), 20 * i, np.uint8)) for i in range(5)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    settings = {"frames": 4, "context": 2, "steps": 2}
    paths = predict_video(tmp_path / "model", tmp_path / "clip.gif", count=2, out=tmp_path / "out.gif", **settings)
    assert [path.name for path in paths] == ["out_000.gif", "out_001.gif"]
    assert all(path.stat().st_size > 0 for path in paths)
    (sheet,) = predict_video(tmp_path / "model", tmp_path / "clip.gif", out=tmp_path / "out.png", **settings)
    assert Image.open(sheet).width > 6 * 8
    clip = open_video(tmp_path / "clip.gif").clip(range(5), (6, 8), 1)
    assert clip.shape == (1, 5, 6, 8)
    torch.testing.assert_close(clip[0, :, 0, 0], torch.arange(5) * 20 / 127.5 - 1, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="has 5 frames; give 1 to 5"):
        predict_video(tmp_path / "model", tmp_path / "clip.gif", 4, context=6)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"broken.mp4: damaged, or no video"):
        predict_video(tmp_path / "model", tmp_path / "broken.mp4", 4)
    with pytest.raises(ValueError, match=r"out.avi must end in .mp4, .gif or .png"):
        predict_video(tmp_path / "nothing", tmp_path / "clip.gif", 4, out=tmp_path / "out.avi")
    np.save(tmp_path / "text.npy", np.array(["a"]))
    for name in ("text.npy", "nothing.npy", "clip.gif"):
        with pytest.raises(ValueError, match=rf"{name} is not an .npy file of actions \(context \+ frames, a\)"):
            predict_video(tmp_path / "model", tmp_path / "clip.gif", 4, actions=tmp_path / name)


def rate_and_length(path):
    with av.open(str(path)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    return round(1 / (times[1] - times[0]), 2), len(times)


def test_what_is_written_plays_at_the_videos_own_rate(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    bright = torch.linspace(-1, 1, 9)[None, :, None, None].expand(1, 9, 6, 8)
    save(bright, tmp_path / "clip.mp4", fps=25)
    settings = {"frames": 2, "context": 2, "steps": 1}

    def made(clip="clip.mp4", **more):
        (path,) = predict_video(tmp_path / "model", tmp_path / clip, **{"out": tmp_path / "x.mp4", **settings, **more})
        return path

    assert rate_and_length(made()) == (25, 4)
    assert rate_and_length(made(stride=2)) == (12.5, 4)
    assert rate_and_length(made(fps=7)) == (7, 4)
    assert rate_and_length(made(out=tmp_path / "x.gif", fps=30))[0] == pytest.approx(30, abs=4)
    with pytest.raises(ValueError, match=r"fps is 60; .*x.gif .*above 0 and at most 50"):
        made(out=tmp_path / "x.gif", fps=60)
    with pytest.raises(ValueError, match=r"has 5 frames \(stride 2\); give 1 to 5"):
        made(stride=2, context=6)
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "first.png")
    assert rate_and_length(made("first.png", context=1)) == (10, 3)


def test_a_video_may_be_a_folder_of_frames_or_one_of_an_array(tmp_path):
    videos = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 8), np.uint8)
    np.savez(tmp_path / "x.npz", videos=videos)
    np.save(tmp_path / "one.npy", videos[1:2])
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(videos[1]):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{i}.png")
    for name in ("x.npz:1", "one.npy", "frames"):
        footage = open_video(tmp_path / name)
        assert footage.length == 4
        found = (footage.clip([1, 3], (6, 8), 1) + 1) * 127.5
        torch.testing.assert_close(found[0], torch.from_numpy(videos[1, [1, 3]]).float(), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match=r"x.npz holds 3 videos; name one of them, as .*x.npz:3"):
        open_video(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"x.npz:3 holds 3 videos"):
        open_video(tmp_path / "x.npz:3")
    with pytest.raises(ValueError, match=r"nothing.mp4 does not exist; give a video's file"):
        open_video(tmp_path / "nothing.mp4")


def test_a_mask_is_cropped_as_its_video_is_and_must_be_of_its_size(pipeline, tmp_path):
    save(torch.zeros(1, 3, 12, 32), tmp_path / "wide.mp4")
    hidden = np.zeros((12, 32, 4), np.uint8)  # transparent is known
    hidden[:, 16:] = 255
    Image.fromarray(hidden).save(tmp_path / "mask.png")
    hole = open_video(tmp_path / "wide.mp4").hole(tmp_path / "mask.png", (6, 8))
    assert torch.equal(hole, torch.arange(8).expand(6, -1) >= 4)
    Image.fromarray(hidden[:, :16]).save(tmp_path / "half.png")
    with pytest.raises(ValueError, match=r"the mask is 16x12 pixels \(w x h\) and its image 32x12"):
        open_video(tmp_path / "wide.mp4").hole(tmp_path / "half.png", (6, 8))


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        (
            "outpaint",
            {"box": (0, 0, 1, 1), "sides": (1, 0, 0, 0)},
            "outpaint does not take box; it takes sides, before",
        ),
        ("inpaint", {"box": (0, 0, 1, 1), "after": 2}, "inpaint does not take after; it takes mask, box"),
        ("inpaint", {}, "inpaint needs a mask or a box"),
        ("interpolate", {}, "give video_2"),
    ],
)
def test_what_is_of_another_task_is_refused(tmp_path, task, given, message):
    with pytest.raises(ValueError, match=message):
        edit_video(task, tmp_path / "model", tmp_path / "clip.mp4", **given)


def test_videos_are_extended_in_time_from_file_to_file(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    save(torch.zeros(1, 2, 6, 8), tmp_path / "clip.mp4")
    (path,) = edit_video(
        "outpaint", tmp_path / "model", tmp_path / "clip.mp4", before=1, after=1, steps=1, out=tmp_path / "x.mp4"
    )
    assert rate_and_length(path) == (10, 4)


BAD = [
    (lambda p: p.predict(video(2)[0, 0], 1), r"float tensors \(c, t, H, W\)"),
    (lambda p: p.predict(video(2) * 200, 1), r"outside \[-1, 1\]"),
    (lambda p: p.predict(video(2, height=4), 1), "6x8 pixels"),
    (lambda p: p.predict(video(2).expand(1, 3, 2, 6, 8), 1), "takes 1 channels"),
    (lambda p: p.predict(video(2)[:, :, :0], 1), "1 frame or more"),
    (lambda p: p.predict(video(2), 0), "predict at least 1"),
    (lambda p: p.interpolate(video(1), video(1, width=10), 1), "one number and one size"),
    (lambda p: p.outpaint(video(2)), "one of them above 0"),
    (lambda p: p.inpaint(video(2), torch.zeros(2, 6, 8, dtype=torch.bool)), "hide something"),
    (lambda p: p.inpaint(video(2), torch.ones(3, 6, 8, dtype=torch.bool)), "of the size of"),
    (lambda p: p.inpaint(video(4), torch.ones(4, 6, 8)), r"float32 \(4, 6, 8\), must be bool"),
    (lambda p: p(num_frames=0), "num_frames is 0"),
    (lambda p: p.predict(video(2), 1, num_videos_per_prompt=0), "num_videos_per_prompt 0 must be at least 1"),
    (lambda p: p.predict(video(2), 9, overlap=(2, 0)), r"overlap \(2, 0\) be \(time, height, width\)"),
    (lambda p: p.predict(video(2), 1, actions=torch.full((3, 2), np.nan)), "finite numbers"),
    (lambda p: p(class_labels=1), "takes no class_labels"),
    (lambda p: p(output_type="mp4"), "unknown output_type"),
    (
        lambda p: MaskedVideoPipeline(p.vqvae, flat.transformer(16, (3, 4), width=16, depth=1, heads=2), p.scheduler),
        r"grid \(t, h, w\)",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_calls_are_explained(pipeline, call, message):
    with pytest.raises(ValueError, match=message):
        call(pipeline)


# ------------------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("factor", [1, 2])
def test_a_token_is_hidden_if_any_of_its_pixels_is(factor):
    hidden = torch.rand(3, 1 + 4 * factor, 6, 8, generator=seeded()) < 0.02
    mask = video_token_mask(hidden, (5, 3, 4), factor)
    for t in range(5):
        frames = hidden[:, :1] if t == 0 else hidden[:, 1 + (t - 1) * factor : 1 + t * factor]
        wanted = frames.unflatten(2, (3, 2)).unflatten(4, (4, 2)).any(1).any(2).any(3)
        assert torch.equal(mask[:, t], wanted)


def test_hidden_frames_are_held_at_the_nearest_known_one():
    pixels = torch.arange(6.0)[None, None, :, None, None].expand(1, 1, 6, 4, 4) / 6
    hidden = torch.zeros(1, 6, 4, 4, dtype=torch.bool)
    hidden[:, [0, 2, 3, 5]] = True
    assert (held(pixels, hidden)[0, 0, :, 0, 0] * 6).tolist() == pytest.approx([1, 1, 1, 4, 4, 4])
    assert (held(pixels, torch.ones_like(hidden)) == 0).all()


def test_actions_stand_side_by_side_in_their_token():
    actions = torch.arange(10.0).view(1, 5, 2)
    assert torch.equal(actions_of_tokens(actions), actions)
    assert actions_of_tokens(actions, 2).tolist() == [[[0, 0, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]]


def test_planning_finds_the_cheapest_actions_and_more_rounds_help():
    goal = torch.tensor([[0.3, -0.4], [0.1, 0.8]])

    def cost(actions):
        return (actions - goal).square().sum((1, 2))

    box = -torch.ones(2, 2), torch.ones(2, 2)
    shots, rounds = (cross_entropy_plan(cost, *box, 64, 8, n, seeded()) for n in (1, 6))
    assert rounds[1] == pytest.approx(float(cost(rounds[0][None])), abs=1e-6)
    assert rounds[1] < 0.1 * shots[1]
    assert (rounds[0].abs() <= 1).all()
    with pytest.raises(ValueError, match="2 <= elites <= samples"):
        cross_entropy_plan(cost, *box, samples=4, elites=8)


def test_the_goal_is_nearer_where_thin_things_are_nearer():
    goal, frames = torch.full((1, 16, 16), -1.0), torch.full((3, 1, 16, 16), -1.0)
    goal[:, 8, 4] = 1
    for frame, column in zip(frames, (4, 5, 8)):
        frame[:, 8, column] = 1
    distances = goal_distance(frames, goal)
    assert distances[0] == 0
    assert (distances.diff() > 0).all()
    with pytest.raises(ValueError, match=r"goal is \(1, 16, 15\)"):
        goal_distance(frames, goal[..., 1:])


def test_candidates_are_rolled_out_from_the_last_known_frame():
    """By a pipeline whose every predicted frame is as bright as the actions before it sum up to."""

    class Brightness:
        def predict(self, video, num_frames, actions, **_):
            sums = actions[:, : video.shape[2] + num_frames - 1].sum(1)  # the last action leads out of the video
            frames = sums[:, :, None, None, None].expand(-1, 1, num_frames, 4, 4)
            return type("Output", (), {"frames": frames})

    known, past, goal = torch.zeros(1, 2, 4, 4), torch.tensor([[0.2]]), torch.full((1, 4, 4), 0.7)
    cost = rollout_cost(Brightness(), known, past, goal)
    costs = cost(torch.tensor([[[0.1], [0.2], [0.2]], [[0.2], [0.0], [0.0]]]))
    assert costs.tolist() == pytest.approx([0, 3 * 0.3**2], abs=1e-6)  # at 1, 2 and 4 pixels
    with pytest.raises(ValueError, match="2 past actions for 2 known frames"):
        rollout_cost(Brightness(), known, past.repeat(2, 1), goal)


def test_the_planning_script_plans(tmp_path, monkeypatch, capsys):
    make(action_dim=2).save_pretrained(tmp_path / "model")
    np.save(tmp_path / "clip.npy", video(2)[0].numpy())
    np.save(tmp_path / "past.npy", np.zeros((1, 2), np.float32))
    Image.new("L", (8, 6), 200).save(tmp_path / "goal.png")
    script = Path(__file__).parents[1] / "sampling" / "plan_video.py"
    files = [str(tmp_path / name) for name in ("clip.npy", "goal.png")]
    options = {"model": tmp_path / "model", "past": tmp_path / "past.npy", "horizon": 2, "high": 0.5, "samples": 8}
    options |= {"iterations": 2, "steps": 2}
    monkeypatch.setattr(sys, "argv", ["plan_video.py", *files, *(f"--{k}={v}" for k, v in options.items())])
    runpy.run_path(str(script), run_name="__main__")
    head, *lines = capsys.readouterr().out.splitlines()
    assert 0 < float(head.split("goal ")[1].split(";")[0]) < 10
    plan = np.array([line.split() for line in lines], float)
    assert plan.shape == (2, 2)
    assert plan.min() >= -1
    assert plan.max() <= 0.5
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [head, *lines]


def test_the_planning_script_refuses_a_model_without_actions(tmp_path, monkeypatch, pipeline):
    pipeline.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "clip.npy", video(2)[0].numpy())
    Image.new("L", (8, 6)).save(tmp_path / "goal.png")
    script = Path(__file__).parents[1] / "sampling" / "plan_video.py"
    argv = ["plan_video.py", *(str(tmp_path / name) for name in ("clip.npy", "goal.png"))]
    monkeypatch.setattr(sys, "argv", [*argv, "--model", str(tmp_path / "model")])
    with pytest.raises(SystemExit, match="has no actions"):
        runpy.run_path(str(script), run_name="__main__")
