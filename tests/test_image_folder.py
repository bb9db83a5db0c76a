"""A folder of images: classes, labels files, and files that are damaged."""

import json
import logging
import pickle
import zipfile

import pytest
import torch
from torch.utils.data import DataLoader

from given import noise, save, truncate
from maskgen.data import ImageFolder

GREY = 100 / 127.5 - 1  # of what `save` saves


def test_folders_are_classes_however_deep(tmp_path):
    for name in ("b/1.png", "a/2.jpg", "a/deep/er/3.PNG", "a/.hidden.png", ".cache/x.png"):
        save(tmp_path / name, size=(8, 8)) if name != "a/deep/er/3.PNG" else save(tmp_path / name, 0)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    dataset = ImageFolder(str(tmp_path), size=4)
    assert dataset.class_names == ["a", "b"]
    assert dataset.names == ["a/2.jpg", "a/deep/er/3.PNG", "b/1.png"]
    assert dataset.labels.tolist() == [0, 0, 1]
    assert (dataset[1]["pixels"] == -1).all()
    assert torch.allclose(dataset[2]["pixels"], torch.tensor(GREY))


def test_a_folder_of_one_class_and_a_flat_one_are_told_apart(tmp_path):
    save(tmp_path / "one" / "cats" / "1.png")
    save(tmp_path / "flat" / "1.png")
    one, flat = (ImageFolder(str(tmp_path / name), size=4, channels=1) for name in ("one", "flat"))
    assert one.class_names == ["cats"]
    assert flat.class_names == ["all"]
    assert one[0]["pixels"].shape == flat[0]["pixels"].shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("file", "content", "classes", "numbers"),
    [
        ("l.csv", "filename,label\na.png,dog\nsub/b.png,cat\n", ["cat", "dog"], [1, 0]),
        ("l.csv", "\ufefflabel,filename,note\n2,a.png,x\n0,./sub/b.png,y\n", ["0", "1", "2"], [2, 0]),
        ("l.json", {"a.png": "dog", "sub/b.png": "cat"}, ["cat", "dog"], [1, 0]),
        ("l.json", {"labels": [["sub/b.png", 0], ["a.png", 1]]}, ["0", "1"], [1, 0]),
    ],
)
def test_labels_files_name_the_classes(tmp_path, file, content, classes, numbers):
    save(tmp_path / "a.png")
    save(tmp_path / "sub" / "b.png")
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for labels in (file, str(tmp_path / file)):
        dataset = ImageFolder(str(tmp_path), size=4, labels=labels)
        assert dataset.names == ["a.png", "sub/b.png"]
        assert dataset.class_names == classes
        assert dataset.labels.tolist() == numbers


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("l.csv", "filename,label\na.png,0\nb.png,0\nc.png,1\n", r"labels 1 images that do not exist .*: c.png"),
        ("l.csv", "filename,label\na.png,0\n", "1 images have no label in .*l.csv: b.png"),
        ("l.csv", "file,class\na.png,0\n", r"begins with \['file', 'class'\]; its header must have filename,label"),
        ("l.csv", "filename,label\na.png,0\na.png,1\nb.png,0", "labels a.png twice"),
        ("l.csv", "filename,label\na.png,\nb.png,0", r"\('a.png', ''\) is not a file name and a label"),
        ("l.csv", "filename,label\na.png,-1\nb.png,0", "run from -1 to 0; they are class numbers"),
        ("l.json", '{"a.png": 0, "b.png": 1000000000}', "run from 0 to 1000000000; they are class numbers"),
        ("l.json", '{"a.png": 0, "b.png": "cat"}', r"mixes integer labels \(0\) with text \('cat'\)"),
        ("l.json", '{"a.png": 0.5, "b.png": 1}', r"\('a.png', 0.5\) is not a file name and a label"),
        ("l.json", '{"labels": null}', r"holds no labels; give a CSV .* or JSON"),
        ("l.json", '{"a.png": ', "is not JSON"),
        ("l.csv", b"filename,label\n\xff\xfe,0\n", "is not UTF-8 text"),
        ("l.txt", "a.png 0", "is neither .csv nor .json; give a CSV"),
    ],
)
def test_labels_files_that_do_not_fit_are_refused(tmp_path, file, content, message):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(tmp_path), size=4, labels=file)


def test_folder_errors_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"none does not exist; give the folder"):
        ImageFolder(str(tmp_path / "none"), size=4)
    with pytest.raises(ValueError, match=r"no images in .*; looked for .png, .jpg, .jpeg"):
        ImageFolder(str(tmp_path), size=4)
    file = save(tmp_path / "cats" / "1.png")
    with pytest.raises(ValueError, match=r"1.png is a file, not a folder"):
        ImageFolder(str(file), size=4)
    with pytest.raises(ValueError, match=r"labels file .*no.csv does not exist"):
        ImageFolder(str(tmp_path), size=4, labels="no.csv")
    (tmp_path / "dogs").mkdir()
    with pytest.raises(ValueError, match=r"class folder without images in .*: dogs; fill or remove"):
        ImageFolder(str(tmp_path), size=4)
    save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"both images \(loose.png\) and folders of images; move every image"):
        ImageFolder(str(tmp_path), size=4)


def damaged_folder(tmp_path, cut=2, text=0, good=3):
    for i in range(good):
        save(tmp_path / f"good{i}.png", (100 + i,) * 3)
    for i in range(cut):
        truncate(noise(tmp_path / f"cut{i}.jpg"))
    for i in range(text):
        (tmp_path / f"text{i}.png").write_text("no image")
    return str(tmp_path)


def test_files_that_are_not_images_are_left_out_at_the_start(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = ImageFolder(damaged_folder(tmp_path, cut=0, text=2), size=4)
    assert dataset.names == ["good0.png", "good1.png", "good2.png"]
    assert len(dataset.labels) == 3
    assert "text0.png" in caplog.text
    assert "text1.png" in caplog.text
    assert list(dataset.unreadable) == ["text0.png", "text1.png"]
    with pytest.raises(
        ValueError, match=r"2 unreadable images in .*, more than max_unreadable=1(?s:.*)text0.png(?s:.*)text1.png"
    ):
        ImageFolder(str(tmp_path), size=4, max_unreadable=1)


def test_truncated_jpeg_is_named_counted_and_replaced_by_the_next(tmp_path, caplog):
    dataset = ImageFolder(damaged_folder(tmp_path, cut=2), size=4)
    assert dataset.names[:2] == ["cut0.jpg", "cut1.jpg"]  # their headers are whole
    with caplog.at_level(logging.WARNING):
        first = dataset[0]["pixels"]
    assert torch.equal(first, dataset[2]["pixels"])
    assert torch.equal(first, dataset[1]["pixels"])
    assert [name in caplog.text for name in ("cut0.jpg", "cut1.jpg")] == [True, True]
    assert len(caplog.records) == 2  # named once each, however often they are asked for
    assert list(dataset.unreadable) == ["cut0.jpg", "cut1.jpg"]
    assert len(dataset) == 5


def test_replacement_wraps_round_and_takes_its_own_label(tmp_path):
    save(tmp_path / "a" / "1.png")
    truncate(noise(tmp_path / "b" / "1.jpg"))
    item = ImageFolder(str(tmp_path), size=4)[1]
    assert item["label"] == 0
    assert torch.allclose(item["pixels"], torch.tensor(GREY))


def test_more_than_max_unreadable_stops_and_lists_them(tmp_path):
    dataset = ImageFolder(damaged_folder(tmp_path, cut=2, text=1), size=4, max_unreadable=2)
    assert len(dataset) == 5
    with pytest.raises(
        ValueError, match=r"3 unreadable images in .*, more than max_unreadable=2; remove or replace"
    ) as caught:
        dataset[0]
    assert all(name in str(caught.value) for name in ("text0.png", "cut0.jpg", "cut1.jpg"))
    with pytest.raises(ValueError, match=r"1 unreadable images"):
        ImageFolder(str(tmp_path), size=4, max_unreadable=0)


def test_a_folder_of_which_nothing_can_be_read_is_refused(tmp_path):
    truncate(noise(tmp_path / "a.jpg"))
    with pytest.raises(ValueError, match=r"none of the 1 images in .* can be read"):
        ImageFolder(str(tmp_path), size=4)[0]
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(ValueError, match=r"none of the 1 images in .* can be read"):
        ImageFolder(str(tmp_path), size=4)


def test_headers_may_be_left_unchecked(tmp_path):
    dataset = ImageFolder(damaged_folder(tmp_path, cut=0, text=1), size=4, check_headers=False)
    assert len(dataset) == 4
    assert torch.equal(dataset[3]["pixels"], dataset[0]["pixels"])  # the last is text; the next readable is the first


def test_unreadable_images_are_counted_over_workers_and_epochs(tmp_path):
    dataset = ImageFolder(damaged_folder(tmp_path, cut=3), size=4, max_unreadable=3)
    loader = DataLoader(dataset, batch_size=1, num_workers=2)
    epochs = [torch.cat([batch["pixels"] for batch in loader]) for _ in range(2)]
    assert torch.equal(*epochs)
    assert int(dataset._tally._failed.sum()) == 3  # known here, though other processes met them
    dataset._tally.limit = 2
    truncate(noise(tmp_path / "good0.png"))
    with pytest.raises(ValueError, match=r"4 unreadable images(?s:.*)good0.png(?s:.*)cut0.jpg"):
        list(DataLoader(dataset, batch_size=1))


def zipped(folder):
    """The files of a folder in a .zip, in reverse, with a link to the first."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for file in reversed(files):
            archive.write(file, file.relative_to(folder).as_posix())
        link = zipfile.ZipInfo("a/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "1.png")
    return folder.with_suffix(".zip")


def test_a_zip_file_is_read_as_its_folder_also_by_workers_and_after_pickling(tmp_path):
    folder = tmp_path / "images"
    for name in ("b/1.png", "a/2.jpg", "a/deep/3.png", "__MACOSX/a/2.jpg", "a/._2.jpg"):
        noise(folder / name)
    truncate(noise(folder / "b" / "cut.jpg"))
    (folder / "l.csv").write_text("filename,label\nb/1.png,1\na/2.jpg,0\na/deep/3.png,1\nb/cut.jpg,0\n")
    own, zip_file = ImageFolder(str(folder), 4), ImageFolder(str(zipped(folder)), 4)
    assert zip_file.names == own.names == ["a/2.jpg", "a/deep/3.png", "b/1.png", "b/cut.jpg"]
    assert zip_file.class_names == own.class_names == ["a", "b"]
    assert zip_file.labels.tolist() == own.labels.tolist()
    expected = torch.stack([own[i]["pixels"] for i in range(4)])
    assert zip_file[3]["label"] == 0  # the next readable one
    assert "images.zip:b/cut.jpg" in zip_file.unreadable["b/cut.jpg"]
    copy = pickle.loads(pickle.dumps(zip_file))
    for dataset in (zip_file, copy):
        loader = DataLoader(dataset, batch_size=2, num_workers=2)
        assert torch.equal(torch.cat([batch["pixels"] for batch in loader]), expected)
    assert ImageFolder(str(folder.with_suffix(".zip")), 4, labels=str(folder / "l.csv")).labels.tolist() == [0, 1, 1, 0]


def test_a_member_of_a_zip_file_that_is_damaged_or_too_large_is_named(tmp_path, monkeypatch):
    noise(tmp_path / "images" / "a" / "1.png")
    noise(tmp_path / "images" / "a" / "2.png")
    file = zipped(tmp_path / "images")
    monkeypatch.setattr("maskgen.data.image_source.MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"images\.zip:a/1\.png: \d+ bytes are more than the 10 allowed"):
        ImageFolder(str(file), 4, max_unreadable=0)
    monkeypatch.undo()
    data = bytearray(file.read_bytes())
    data[100:120] = bytes(20)  # in the first member, a/2.png
    file.write_bytes(data)
    assert list(ImageFolder(str(file), 4).unreadable) == ["a/2.png"]
