"""What tests are given: generators, images and masks, in memory and in files, whole and damaged."""

import gzip
import struct

import numpy as np
import torch
from PIL import Image


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def an_image(width=8, height=8, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask(box=(2, 2, 6, 6), size=(8, 8)):
    made = Image.new("L", size)
    made.paste(255, box)
    return made


def array(image):
    """Of an image or its file."""
    return np.asarray(image if isinstance(image, Image.Image) else Image.open(image))


def coloured(n, classes=3, seed=0, size=8):
    """A data set in memory: one colour a class, with noise."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for i in range(n):
        colour = torch.full((3, size, size), -0.7)
        colour[i % classes % 3] = 0.7
        noise = 0.2 * torch.randn(3, size, size, generator=generator)
        items.append({"pixels": (colour + noise).clamp(-1, 1), "label": i % classes})

    class Set(list):
        labels = np.array([item["label"] for item in items])
        class_names = tuple(f"colour {k}" for k in range(classes))
        names = tuple(f"image {k}" for k in range(n))

    return Set(items)


def clip(batch=1, channels=2, size=(7, 8, 12), seed=0):
    """Noise (b, c, *size) from -1 to 1."""
    return torch.rand(batch, channels, *size, generator=seeded(seed)) * 2 - 1


def save(path, color=(100, 100, 100), size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def noise(path, size=(64, 64), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    an_image(*size).save(path, **options)
    return path


def truncate(path, keep=0.5):
    """Cut an image short: its header is whole, its pixels are not."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def write_idx(path, array):
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)
