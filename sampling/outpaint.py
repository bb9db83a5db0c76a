"""Extend an image on any side. Beyond the trained size, windows of that size slide over the canvas.

python sampling/outpaint.py image.png --left 16 --right 64 --class transport-ground
"""

import argparse
from pathlib import Path

import torch

from maskgen import MaskedImagePipeline

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    for side in ("left", "top", "right", "bottom"):
        parser.add_argument(f"--{side}", type=int, default=0, help="pixels to add")
    parser.add_argument("--model", help="run, pipeline folder or Hub name; default: the bundled emoji model")
    parser.add_argument("--class", dest="label", help="name of the class; default: no class")
    parser.add_argument("--overlap", type=int, help="tokens that neighbouring windows share; default: half")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outpainted.png"))
    arguments = parser.parse_args()

    pipeline = MaskedImagePipeline.from_pretrained(arguments.model)
    (image,) = pipeline.outpaint(
        arguments.image,
        arguments.left,
        arguments.top,
        arguments.right,
        arguments.bottom,
        class_labels=arguments.label,
        overlap=arguments.overlap,
        generator=torch.Generator().manual_seed(arguments.seed),
    ).images
    image.save(arguments.out)
    print(arguments.out)
