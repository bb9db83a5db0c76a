"""Copy a trained run into the package as the bundled pipeline, in float16 and at most 12 MB.

python scripts/bundle.py runs/emoji
"""

import sys
from pathlib import Path

import torch

from maskgen import MaskedImagePipeline
from maskgen.pipelines.store import replace_folder

LIMIT = 12_000_000

if __name__ == "__main__":
    pipeline = MaskedImagePipeline.from_pretrained(sys.argv[1])
    target = Path(__file__).parents[1] / "maskgen" / "pretrained" / "emoji"
    target.parent.mkdir(exist_ok=True)
    for part in (pipeline.vqvae, pipeline.transformer):
        part.to(torch.float16)
    replace_folder(target, pipeline.save_pretrained)
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    if size > LIMIT:
        sys.exit(f"{target} has {size:,} bytes; the limit is {LIMIT:,}: train a smaller model")
    print(f"{target}: {size:,} bytes")
