"""Measure samples of the bundled pipeline: docs/images/emoji.png and docs/results/emoji.json.

python scripts/measure_bundled.py
Samples are requested by subcategory; the classifier that assigns them to a class has the nine categories.
"""

import json
import platform
import time
from pathlib import Path

import torch

from maskgen import MaskedImagePipeline
from maskgen.data.emoji import Emoji
from maskgen.evaluation.reconstruction.measures import measure
from maskgen.pipelines.generate import generate, load
from maskgen.quickstart import judge

DOCS = Path(__file__).parents[1] / "docs"

if __name__ == "__main__":
    start = time.perf_counter()
    sheet = generate(load(None, "auto"), count=10, out="runs/bundled-samples")
    seconds = time.perf_counter() - start
    (DOCS / "images").mkdir(exist_ok=True)
    sheet.rename(DOCS / "images" / "emoji.png")
    pipeline = MaskedImagePipeline.from_pretrained()
    report = {
        "command": "python scripts/measure_bundled.py",
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "scheduler": {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")},
        "seconds_to_load_and_draw_160_images": round(seconds, 1),
        "tokenizer": measure(pipeline.vqvae, Emoji()),
        "generator": judge(pipeline, Emoji(), Emoji(groups="subcategory").labels),
    }
    (DOCS / "results").mkdir(exist_ok=True)
    (DOCS / "results" / "emoji.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
