"""Arrays: .npz of any layout, idx files, Fashion-MNIST."""

import numpy as np
import pytest
import torch
from PIL import Image

from given import truncate, write_idx
from maskgen.data import FashionMNIST, IdxFiles, NpzArrays
from maskgen.data.arrays import DEBIAN


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return str(tmp_path / "x.npz")


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
EXPECTED = torch.from_numpy(IMAGES.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize(
    ("array", "tolerance"),
    [
        (IMAGES, 0),
        (IMAGES.transpose(0, 3, 1, 2), 0),
        (IMAGES.astype(np.uint16) * np.uint16(257), 1e-6),
        ((IMAGES / 255), 1e-6),
        ((IMAGES / 127.5 - 1).astype(np.float32), 1e-6),
        ((IMAGES / 127.5 - 1).astype(np.float16), 2e-3),
    ],
    ids=["nhwc", "nchw", "uint16", "[0,1]", "[-1,1]", "float16"],
)
def test_npz_of_any_layout_and_type_gives_the_same_pixels(tmp_path, array, tolerance):
    dataset = NpzArrays(npz(tmp_path, arr_0=array, arr_1=np.array([3, 0, 1, 1])))
    assert dataset.labels.tolist() == [3, 0, 1, 1]
    assert dataset.class_names == ["0", "1", "2", "3"]
    assert (dataset.channels, dataset.size) == (3, (6, 5))
    pixels = torch.stack([dataset[i]["pixels"] for i in range(4)])
    assert torch.allclose(pixels, EXPECTED, rtol=0, atol=tolerance)


def test_npz_may_be_grey_of_bools_and_without_labels(tmp_path):
    dataset = NpzArrays(npz(tmp_path, anything=IMAGES[..., 0] > 127))
    assert (dataset.channels, dataset.size, dataset.class_names) == (1, (6, 5), ["0"])
    assert torch.equal(dataset[0]["pixels"] > 0, EXPECTED[0, :1] > 0)
    assert dataset[0]["pixels"].unique().tolist() == [-1, 1]


def test_npz_arrays_may_be_named_and_resized(tmp_path):
    path = npz(tmp_path, a=IMAGES, b=IMAGES[::-1], y=np.array([[1], [0], [2], [0]], np.uint8))
    dataset = NpzArrays(path, images="b", labels="y", size=12)
    assert dataset.labels.tolist() == [1, 0, 2, 0]
    square = Image.fromarray(IMAGES[3]).resize((12, 12), Image.Resampling.BICUBIC, box=(0, 0.5, 5, 5.5))
    assert torch.equal(dataset[0]["pixels"], torch.from_numpy(np.array(square)).permute(2, 0, 1) / 127.5 - 1)
    floats = NpzArrays(npz(tmp_path, x=IMAGES.astype(np.uint16) * np.uint16(257)), size=12)
    assert (floats[3]["pixels"] - dataset[0]["pixels"]).abs().mean() < 0.01  # 8 bits round and clip between passes
    assert floats[3]["pixels"].abs().max() <= 1


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        ({"a": IMAGES, "b": IMAGES}, {}, "no images found in .*x.npz: it has a, b; name one as `images`"),
        ({"a": IMAGES}, {"images": "c"}, "no images 'c' in .*x.npz; it has a"),
        ({"a": IMAGES}, {"labels": "c"}, "no labels 'c' in .*x.npz; it has a"),
        ({"images": IMAGES, "labels": np.zeros(3, int)}, {}, r"have shape \(3,\); 4 images need \(4,\)"),
        ({"images": IMAGES, "labels": np.zeros(4)}, {}, "have dtype float64; they must be integer"),
        ({"images": IMAGES, "labels": np.arange(4) - 1}, {}, "run from -1 to 2; give 0 to"),
        ({"images": np.zeros((2, 3, 8, 3), np.uint8)}, {}, r"\(2, 3, 8, 3\): axis 1 and axis 3 could both be channels"),
        ({"images": np.zeros((2, 4, 8, 4), np.uint8)}, {}, "neither axis 1 nor axis 3 has 1 or 3 channels"),
        ({"images": np.zeros((2, 8), np.uint8)}, {}, r"has shape \(2, 8\); images are \(n, h, w\), \(n, h, w, c\)"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, {}, r"has shape \(0, 8, 8\); images are"),
        ({"images": IMAGES.astype(np.float32)}, {}, r"floats from 0 to 255; they must lie in \[0, 1\] or \[-1, 1\]"),
        ({"images": np.full((1, 4, 4), np.nan)}, {}, "floats from nan to nan"),
        ({"images": IMAGES.astype(np.int64)}, {}, "dtype int64; save images as uint8, uint16, bool or floats"),
        ({"images": np.array([{"a": 1}])}, {}, "cannot read 'images' .*pickles are never loaded"),
    ],
)
def test_npz_arrays_that_are_no_images_or_labels_are_refused(tmp_path, arrays, arguments, message):
    path = npz(tmp_path, **arrays)
    with pytest.raises(ValueError, match=message):
        NpzArrays(path, **arguments)


def test_files_that_are_no_npz_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none.npz does not exist; give an .npz file"):
        NpzArrays(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match=r"text.npz is not an .npz file"):
        NpzArrays(str(tmp_path / "text.npz"))
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(ValueError, match=r"is one .npy array; save it as .npz"):
        NpzArrays(str(tmp_path / "one.npy"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_packed_or_not(tmp_path, suffix):
    images = write_idx(tmp_path / f"i{suffix}", IMAGES[..., 0])
    labels = write_idx(tmp_path / f"l{suffix}", np.array([1, 0, 2, 2], np.uint8))
    dataset = IdxFiles(images, labels)
    assert dataset.labels.tolist() == [1, 0, 2, 2]
    assert torch.equal(dataset[2]["pixels"], EXPECTED[2, :1])
    assert IdxFiles(images, labels, size=10)[0]["pixels"].shape == (1, 10, 10)


def test_idx_files_of_another_kind_or_cut_short_are_refused(tmp_path):
    images = write_idx(tmp_path / "i", IMAGES[..., 0])
    labels = write_idx(tmp_path / "l", np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"l begins with 00000801, not 00000803"):
        IdxFiles(labels, images)
    with pytest.raises(ValueError, match=r"labels in .*l have shape \(3,\); 4 images need \(4,\)"):
        IdxFiles(images, labels)
    with pytest.raises(ValueError, match=r"none does not exist; give an idx3-ubyte file"):
        IdxFiles(str(tmp_path / "none"), labels)
    truncate(tmp_path / "i", 0.9)
    with pytest.raises(ValueError, match=r"announces shape \(4, 6, 5\), 120 bytes, but holds"):
        IdxFiles(images, labels)
    packed = write_idx(tmp_path / "l.gz", np.zeros(300, np.uint8))
    truncate(tmp_path / "l.gz", 0.7)
    with pytest.raises(ValueError, match=r"l.gz is damaged"):
        IdxFiles(write_idx(tmp_path / "i", IMAGES[..., 0]), packed)


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


def test_fashion_mnist_says_how_to_get_it(tmp_path, monkeypatch):
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
def test_fashion_mnist_of_debian_is_whole():
    dataset = FashionMNIST(split="test")
    assert len(dataset) == 10_000
    assert np.bincount(dataset.labels).tolist() == [1000] * 10
    assert dataset.names[-1] == "9999"
