"""Data sets: every kind keeps one contract, and a token cache gives back what was written."""

import inspect
import tarfile
import typing

import numpy as np
import pytest
import torch

from given import save, write_idx
from maskgen.data import DATASETS, Emoji, FashionMNIST, IdxFiles, ImageFolder, NpzArrays
from maskgen.data.shards import TarShards
from maskgen.data.tokens import TokenCache, write_token_cache


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
def test_every_dataset_of_images_keeps_the_contract(kind, tmp_path):
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
