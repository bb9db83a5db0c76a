"""A small run of each stage for tests of training: its configuration, its images, its folder."""

import numpy as np
import torch

TOKENIZER = {
    "name": "tokenizer",
    "stage": {
        "type": "tokenizer",
        "tokenizer": {
            "encoder": {"width": 8, "multipliers": [1, 2], "blocks": 1},
            "quantizer": {"codebook_size": 16, "dim": 4},
            "decoder": {"width": 8, "multipliers": [1, 2], "blocks": 1},
        },
        "l2": 1.0,
    },
    "data": {"type": "npz", "path": "data.npz"},
    "training": {
        "steps": 12, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2, "precision": "fp32", "log_every": 1,
        "checkpoint_every": 4,
    },
}  # fmt: skip
GENERATOR = {
    "name": "generator",
    "stage": {
        "type": "generator",
        "tokenizer": "runs/tokenizer",
        "model": {"width": 16, "depth": 2, "block": {"heads": 2, "dropout": 0.1}},
        "conditioning": [{"type": "class", "dropout": 0.3}],
        "scheduler": {"num_inference_steps": 2},
    },
    "data": {"type": "npz", "path": "data.npz"},
    "augment": {"flip": 0.5, "crop": 0.6},
    "training": {**TOKENIZER["training"], "ema": 0.9},
}


def images(n=48, size=8, classes=3):
    """A coloured square somewhere on a grey ground."""
    rng = np.random.default_rng(0)
    images = np.full((n, size, size, 3), 230, np.uint8)
    for image in images:
        y, x = rng.integers(0, size // 2, 2)
        image[y : y + size // 2, x : x + size // 2] = rng.integers(0, 255, 3)
    return images, np.arange(n) % classes


class Images:
    """The same as a data set in memory; item `broken`, if any, is NaN."""

    def __init__(self, n=48, size=8, broken=None):
        array, self.labels = images(n, size)
        self.pixels = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
        self.class_names = ["a", "b", "c"]
        if broken is not None:
            self.pixels[broken] = torch.nan

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixels": self.pixels[index], "label": int(self.labels[index])}


def scaled_on_cpu(monkeypatch):
    """Let training in fp16 scale its gradients on the CPU, where accelerate refuses fp16."""
    from maskgen.training import loop

    def make(precision, trackers, folder):
        accelerator = accelerate("fp32" if precision == "fp16" else precision, trackers, folder)
        if precision == "fp16":
            accelerator.state._mixed_precision, accelerator.native_amp = precision, True
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=3)
        return accelerator

    accelerate = loop._accelerator
    monkeypatch.setattr(loop, "_accelerator", make)
