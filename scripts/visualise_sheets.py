"""Make docs/images/visualise.png: MAE, BEiT on k-means codes and MaskFeat after a minute or two of training on emoji.

python scripts/visualise_sheets.py [FOLDER]    # default: runs/visualise; the same command resumes
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image

from maskgen.config import check
from maskgen.images import save
from maskgen.training.run import run
from maskgen.training.saved import load_learner

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "visualise.png"
PATCH, COUNT = 8, 6
ENCODER = {
    "width": 96,
    "depth": 3,
    "num_registers": 1,
    "positions": {"rope": False},
    "block": {"heads": 4, "mlp": "gelu", "qk_norm": "none"},
}
DECODER = {"decoder": {"depth": 1, "width": 64, "heads": 4}}
BLOCKS = {"ratio": {"type": "fixed", "ratio": 0.4}, "sampler": {"type": "block", "min_block": 4}}
DATA = {"type": "emoji", "size": 64}
TRAINING = {"batch_size": 64, "learning_rate": 2e-3, "warmup_steps": 50, "betas": [0.9, 0.95], "weight_decay": 0.05}


def trained(folder: Path, name: str, stage: dict[str, Any], steps: int, **training: Any) -> Path:
    """Train the run and return its folder."""
    settings = {"steps": steps, "checkpoint_every": steps, **training}
    config = {"name": name, "stage": stage, "data": DATA, "holdout": 64, "folder": str(folder), "training": settings}
    return run(**check(run, config, name))


def learners(folder: Path) -> list[Path]:
    """Train three methods with the same encoder."""

    def learner(name: str, steps: int, masking: dict[str, Any], **stage: Any) -> Path:
        own = {"type": "representation", "tokens": {"type": "patches", "patch": PATCH}, "model": ENCODER}
        return trained(folder, name, {**own, "masking": masking, **stage}, steps, **TRAINING)

    patch = {"type": "patch", "patch": PATCH}
    coder = {"encoder": patch, "quantizer": {"codebook_size": 512, "dim": 3 * PATCH**2}, "decoder": patch}
    codes = str(trained(folder, "centroids", {"type": "centroids", "tokenizer": coder}, 20))
    pixels = {"type": "pixels", "patch": PATCH, "normalise": "patch"}
    mae = {"ratio": {"type": "fixed", "ratio": 0.6}, "dropping": "all", "target": pixels, "objective": "mse"}
    beit = {**BLOCKS, "target": "codes", "objective": "cross_entropy"}
    maskfeat = {**BLOCKS, "target": {"type": "hog", "patch": PATCH, "cell": PATCH}, "objective": "mse"}
    return [
        learner("mae", 1400, mae, model={**ENCODER, **DECODER}),
        learner("beit", 500, beit, target_tokenizer=codes),
        learner("maskfeat", 1400, maskfeat),
    ]


def main(folder: str = "runs/visualise") -> None:
    """Write the three sheets, one below the other."""
    sheets = []
    for path in learners(Path(folder)):
        saved = load_learner(str(path))
        sheets.append(saved.visualise(saved.dataset, COUNT).draw())
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    print(save(whole, IMAGE))


if __name__ == "__main__":
    main(*sys.argv[1:])
