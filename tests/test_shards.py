"""Tar shards: the same images as the folder's, in any order, and every complaint names the shard and the sample."""

import io
import json
import logging
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from maskgen.config import ConfigError
from maskgen.data.images import ImageFolder
from maskgen.data.shards import TarShards, find_shards
from maskgen.data.source import open_dataset


def encoded(seed, kind="PNG", size=(10, 8)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def shard(path, members):
    """A tar file of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def three_shards(folder, count=7):
    """Shards s-08 .. s-10 of up to three images with the labels 0, 1, 2, 0, ..."""
    images = [encoded(i) for i in range(count)]
    for n, start in enumerate(range(0, count, 3)):
        members = []
        for i in range(start, min(start + 3, count)):
            members += [(f"a/{i:03d}.png", images[i]), (f"a/{i:03d}.cls", str(i % 3).encode())]
        shard(folder / f"s-{n + 8:02d}.tar", members)
    return images


def test_shards_give_the_images_of_a_folder_in_any_order(tmp_path):
    images = three_shards(tmp_path / "shards")
    for i, data in enumerate(images):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / f"{i:03d}.png").write_bytes(data)
    folder, shards = ImageFolder(str(tmp_path / "folder"), 6), TarShards(str(tmp_path / "shards"), 6)
    assert len(shards) == 7
    assert shards.class_names == ["0", "1", "2"]
    assert shards.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for i in (6, 0, 3, 5, 1):
        assert torch.equal(shards[i]["pixels"], folder[i]["pixels"])
        assert shards[i]["label"] == i % 3
    assert shards.names[4] == f"{tmp_path}/shards/s-09.tar:a/004"
    assert not [f for f in (tmp_path / "shards").iterdir() if f.suffix != ".tar"]  # nothing is unpacked


def test_shards_are_named_by_folder_pattern_or_range(tmp_path, monkeypatch):
    three_shards(tmp_path / "s")
    ways = ("s", "s/s-*.tar", "s/s-{08..10}.tar", "s/s-{0..1}{0..0}.tar", "s/s-09.tar")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s/s-00.tar").write_bytes((tmp_path / "s/s-08.tar").read_bytes())
    counts = [len(find_shards(way)) for way in ways]
    assert counts == [4, 4, 3, 2, 1]
    assert [f.name for f in find_shards(ways[2])] == ["s-08.tar", "s-09.tar", "s-10.tar"]
    with pytest.raises(ValueError, match=r"2 of 4 shards of s/s-\{09\.\.12\}\.tar do not exist, first s/s-11\.tar"):
        find_shards("s/s-{09..12}.tar")
    with pytest.raises(ValueError, match=r"no shards at gone-\*\.tar; give a \.tar file, a folder"):
        find_shards("gone-*.tar")


def test_what_a_user_types_opens_shards(tmp_path, monkeypatch):
    three_shards(tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    for text in ("s", "s/s-{08..10}.tar", "s/*.tar", '{type: tar_shards, path: "s/s-{08..10}.tar", size: 4}'):
        dataset = open_dataset(text, 4)
        assert isinstance(dataset, TarShards)
        assert (len(dataset), dataset.size) == (7, (4, 4))
    with pytest.raises(ConfigError, match="shards need a size: --size 256"):
        open_dataset("s/s-08.tar")


def test_labels_of_json_are_numbers_or_text(tmp_path):
    def labelled(labels, **options):
        members = []
        for i, label in enumerate(labels):
            members += [(f"{i}.jpg", encoded(i, "JPEG")), (f"{i}.json", json.dumps(label).encode())]
        return TarShards(str(shard(tmp_path / "x.tar", members)), 4, **options)

    dataset = labelled([{"label": "owl"}, {"label": "cat", "caption": "a cat"}, {"label": "owl"}])
    assert dataset.class_names == ["cat", "owl"]
    assert dataset.labels.tolist() == [1, 0, 1]
    assert labelled([{"label": 2}, {"label": 0}]).labels.tolist() == [2, 0]
    assert labelled([{"caption": "x"}, {}]).class_names == ["all"]
    assert labelled([{"label": "owl"}], class_names=["owl", "cat"]).labels.tolist() == [0]
    (tmp_path / "classes.json").write_text('["cat", "dog", "owl"]')
    assert labelled([{"label": "owl"}, {"label": "cat"}]).labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"x\.tar:0: label 'cow' is none of the 3 classes"):
        labelled([{"label": "cow"}])
    with pytest.raises(ValueError, match=r"x\.tar:1: label 3 is none of the 3 classes"):
        labelled([{"label": 0}, {"label": 3}])
    (tmp_path / "classes.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a list of class names"):
        labelled([{"label": 0}])
    (tmp_path / "classes.json").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images have no label, first .*:1; label all or none"):
        labelled([{"label": 0}, {}])
    with pytest.raises(ValueError, match=r"mix integers with text \('owl'\)"):
        labelled([{"label": 0}, {"label": "owl"}])
    with pytest.raises(ValueError, match="label True"):
        labelled([{"label": True}])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x"), ("a.jpg", b"y")], r"a\.jpg is a second image of its sample"),
        ([("a.png", encoded(0)), ("a.cls", b"cat")], r":a: its label file holds b'cat'; give an integer"),
        ([("a.png", encoded(0)), ("a.cls", b'"cat"')], r":a: label 'cat'; \.cls holds an integer"),
        ([("a.png", encoded(0)), ("a.cls", b"-1")], r":a: label -1 is none of the 0 classes"),
        ([("a.png", encoded(0)), ("a.cls", b"1" * (2 << 20))], r"a label file of 2097152 bytes; more than"),
        ([("a.txt", b"hello")], r"no images in .*x\.tar; looked for"),
    ],
)
def test_members_that_make_no_sense_are_refused(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        TarShards(str(shard(tmp_path / "x.tar", members)), 4)


def test_links_hidden_files_and_paths_outside_are_no_images_and_nothing_is_written(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind, link in (("link.png", tarfile.SYMTYPE, "/etc/passwd"), ("dir.png", tarfile.DIRTYPE, "")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)
        for name in ("._a.png", "../../up.png", "/root.png"):
            info = tarfile.TarInfo(name)
            info.size = len(encoded(0))
            tar.addfile(info, io.BytesIO(encoded(0)))
    dataset = TarShards(str(tmp_path / "x.tar"), 4)
    assert [name.split(":")[1] for name in dataset.names] == [
        "../../up",
        "root",
    ]
    assert dataset[0]["pixels"].shape == (3, 4, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]
    assert not (tmp_path.parent.parent / "up.png").exists()


def test_a_shard_that_is_compressed_cut_short_or_damaged_is_named(tmp_path):
    three_shards(tmp_path)
    whole = (tmp_path / "s-08.tar").read_bytes()
    with tarfile.open(tmp_path / "z.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "s-08.tar", "a.png")
    for name, data, reason in (
        ("cut.tar", whole[:700], "cut short|unexpected end"),
        ("head.tar", whole[: 1024 + 100], "damaged at byte|truncated|unexpected end"),
        ("bad.tar", whole[:1024] + b"\x01" * 512 + whole[1536:], "damaged at byte"),
        ("empty.tar", b"", "empty"),
        ("gz.tar", (tmp_path / "z.tar.gz").read_bytes(), "gunzip"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} cannot be read as an uncompressed tar file \(") as caught:
            TarShards(str(tmp_path / name), 4)
        assert any(part in str(caught.value) for part in reason.split("|"))


def test_an_unreadable_image_is_passed_over_as_a_folder_does(tmp_path, caplog):
    images = [encoded(0), encoded(1), encoded(2)]
    members = [("0.png", images[0]), ("1.png", images[1][:-40]), ("2.png", images[2]), ("3.png", b"no image")]
    path = str(shard(tmp_path / "x.tar", members))
    with caplog.at_level(logging.WARNING):
        dataset = TarShards(path, [8, 10])
    assert len(dataset) == 3  # the header of the last is wrong
    assert "x.tar:3: cannot identify image file" in caplog.text
    assert torch.equal(dataset[1]["pixels"], dataset[2]["pixels"])
    assert f"{path}:1: " in dataset.unreadable[f"{path}:1"]
    with pytest.raises(ValueError, match=r"1 unreadable images in .*x\.tar, more than max_unreadable=0"):
        TarShards(path, 8, max_unreadable=0)


def test_workers_and_other_processes_read_the_same(tmp_path):
    three_shards(tmp_path)
    dataset = TarShards(str(tmp_path), 6)
    alone = torch.stack([dataset[i]["pixels"] for i in range(7)])
    loader = DataLoader(dataset, 2, num_workers=2)
    assert torch.equal(torch.cat([batch["pixels"] for batch in loader]), alone)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[5]["pixels"], alone[5])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files by /proc")
def test_no_file_is_kept_open(tmp_path):
    three_shards(tmp_path)
    dataset = TarShards(str(tmp_path), 6)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(7):
        dataset[i]
    assert len(os.listdir("/proc/self/fd")) == before
