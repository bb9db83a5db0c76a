"""Features: pooled as they say, kept with their facts, refused in words; raw pixels are features too."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from given import coloured
from maskgen.data.emoji import Emoji
from maskgen.evaluation.probes.features import Features, extract, load_features, raw_pixels


def tokens_of(pixels):
    """Two tokens of prefix, then 4 x 4 patches of 3 numbers."""
    patches = F.avg_pool2d(pixels, pixels.shape[-1] // 4).flatten(2).mT
    prefix = torch.stack([torch.full((len(pixels), 3), 7.0), torch.full((len(pixels), 3), 9.0)], dim=1)
    return torch.cat([prefix, patches], dim=1)


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("mean", "mean without prefix (2 tokens left out)"),
        ("mean_all", "mean of all tokens, with 2 of the prefix"),
        ("cls", "prefix token 0 of 2"),
        ("token_1", "prefix token 1 of 2"),
        ("cls_mean", "prefix token 0 of 2, and mean without prefix (2 tokens left out)"),
    ],
)
def test_pools_take_the_tokens_they_say(pool, words):
    data = coloured(5)
    features = extract(tokens_of, data, pool, prefix=2, batch_size=2, progress=False)
    mean = torch.stack([item["pixels"].mean(dim=(1, 2)) for item in data])
    seven, nine = torch.full((5, 3), 7.0), torch.full((5, 3), 9.0)
    wanted = {
        "mean": mean,
        "mean_all": (16 * mean + seven + nine) / 18,
        "cls": seven,
        "token_1": nine,
        "cls_mean": torch.cat([seven, mean], dim=1),
    }[pool]
    assert torch.allclose(features.values, wanted, atol=1e-6)
    assert features.facts["pool"] == words
    assert features.facts["tokens"] == [18]
    assert features.labels.tolist() == [0, 1, 2, 0, 1]
    assert features.names == list(data.names)


def test_extract_takes_vectors_half_precision_and_spread_images():
    data = coloured(10)
    features = extract(
        lambda x: x.flatten(1).bfloat16(), data, "none", limit=5, batch_size=3, facts={"run": "r"}, progress=False
    )
    assert features.values.dtype == torch.float32
    assert features.names == [f"image {i}" for i in (0, 2, 4, 6, 8)]
    assert torch.equal(features.values[1], data[2]["pixels"].flatten().bfloat16().float())
    assert (features.facts["run"], features.facts["images"]) == ("r", "5 of 10, evenly spread")


def test_extract_says_what_is_wrong():
    data, go = coloured(4), partial(extract, progress=False)
    with pytest.raises(ValueError, match=r"unknown pool 'max'; choose one of mean, mean_all, cls"):
        go(tokens_of, data, "max")
    with pytest.raises(ValueError, match=r"'token_2' reads prefix token 2, but there are 2; choose 'mean'"):
        go(tokens_of, data, "token_2", prefix=2)
    with pytest.raises(ValueError, match=r"reads prefix token 0, but there are 0"):
        go(tokens_of, data, "cls")
    with pytest.raises(ValueError, match=r"\(4, 18, 3\); pool 'none' is for one vector"):
        go(tokens_of, data, "none")
    with pytest.raises(ValueError, match=r"pool 'mean' needs float \(b, tokens, d\)"):
        go(lambda x: x.flatten(1), data)
    with pytest.raises(ValueError, match=r"18 tokens; with prefix=18 none is left"):
        go(tokens_of, data, prefix=18)
    with pytest.raises(ValueError, match=r"of 4 of 4 images are NaN or infinite \(first at index 0\)"):
        go(lambda x: x.flatten(1) / 0, data, "none")
    with pytest.raises(ValueError, match=r"in training mode.*call \.eval\(\)"):
        go(nn.Flatten(), data, "none")
    with pytest.raises(ValueError, match=r"the data set has no images"):
        go(tokens_of, coloured(0))
    codes = coloured(0)
    codes.append({"codes": 0, "label": 0})
    with pytest.raises(ValueError, match=r"items have codes, label but no pixels"):
        go(tokens_of, codes)


def test_features_return_from_their_file(tmp_path):
    data = Emoji(classes=["flags", "symbols"])
    features = raw_pixels(data, 4, limit=30, progress=False)
    back = load_features(features.save(tmp_path / "deep" / "features.npz"))
    assert torch.equal(back.values, features.values)
    assert torch.equal(back.labels, features.labels)
    assert (back.facts, back.names, back.class_names) == (features.facts, features.names, features.class_names)
    assert back.class_names == ["flags", "symbols"]
    with np.load(tmp_path / "deep" / "features.npz", allow_pickle=False) as file:
        assert {file[key].dtype.kind for key in file} == {"f", "i", "U"}
    none = Features(torch.zeros(2, 1), torch.tensor([0, 1]))
    assert load_features(none.save(tmp_path / "none.npz")).names == []
    with pytest.raises(ValueError, match=r"'f.pt'; give f.npz"):
        features.save(tmp_path / "f.pt")
    with pytest.raises(ValueError, match=r"facts must be JSON"):
        Features(torch.zeros(2, 1), torch.tensor([0, 1]), {"x": object()}).save(tmp_path / "x.npz")


def test_files_of_something_else_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; write features there"):
        load_features(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", values=np.zeros((2, 2), np.float32))
    np.savez(tmp_path / "pickle.npz", values=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("hello")
    for name in ("other", "pickle", "text"):
        with pytest.raises(ValueError, match=rf"{name}.npz was not written by Features.save"):
            load_features(tmp_path / f"{name}.npz")
    np.savez(
        tmp_path / "label.npz",
        values=np.zeros((2, 2), np.float32),
        labels=np.array([0, 5]),
        names=np.array([], np.str_),
        class_names=np.array(["a", "b"]),
        facts=np.array("{}"),
    )
    with pytest.raises(ValueError, match=r"labels run from 0 to 5, but there are 2 classes"):
        load_features(tmp_path / "label.npz")


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (torch.zeros(2, 3, 1), [0, 1], r"must be float32 \(images, features\), got torch.float32 \(2, 3, 1\)"),
        (torch.zeros(2, 3).half(), [0, 1], r"got torch.float16 \(2, 3\)"),
        (torch.zeros(0, 3), [], r"got torch.float32 \(0, 3\)"),
        (torch.zeros(3, 3), [0, 1], r"3 features need as many int64 labels; got torch.int64 \(2,\)"),
        (torch.tensor([[0.0], [math.nan]]), [0, 1], r"1 of 2 images are NaN or infinite \(first at index 1\)"),
        (torch.zeros(2, 3), [-1, 1], r"labels run from -1 to 1"),
    ],
)
def test_features_check_themselves(values, labels, message):
    with pytest.raises(ValueError, match=message):
        Features(values, torch.tensor(labels, dtype=torch.int64))


def test_raw_pixels_are_flattened_and_say_their_resize():
    data = coloured(6)
    stored = raw_pixels(data, progress=False)
    assert torch.equal(stored.values[2], data[2]["pixels"].flatten())
    small = raw_pixels(data, 2, progress=False)
    assert small.values.shape == (6, 12)
    assert small.facts["resize"] == "to 2x2, bilinear, antialiased"
    mixed = coloured(2)
    mixed.append({"pixels": torch.zeros(3, 4, 4), "label": 0})
    with pytest.raises(ValueError, match=r"several sizes \[\(4, 4\), \(8, 8\)\]; give a `size`"):
        raw_pixels(mixed, progress=False)
    mixed.append(data[2])
    both = raw_pixels(mixed, 2, progress=False)
    assert both.labels.tolist() == [0, 1, 0, 2]
    assert torch.equal(both.values[2], torch.zeros(12))
    assert torch.allclose(both.values[3], small.values[2])
