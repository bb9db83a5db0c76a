"""What tests are given: generators, pictures and masks, in memory and in files, whole and damaged."""

import gzip
import struct

import numpy as np
from PIL import Image


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


def write_idx(path, array):
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)
