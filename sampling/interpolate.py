"""Generate frames between two images, whose tokens come from both. With --gap, join the images: the model generates the
part between them.

python sampling/interpolate.py a.png b.png --frames 12
python sampling/interpolate.py a.png b.png --gap 16 --keep 8
"""

import argparse
from pathlib import Path

import torch

from maskgen import MaskedImagePipeline

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs=2)
    parser.add_argument("--frames", type=int, default=8, help="number of frames")
    parser.add_argument("--strength", type=float, default=0.5, help="share of the tokens replaced half-way, 0 to 1")
    parser.add_argument("--gap", type=int, help="join the images instead, with this many pixels between")
    parser.add_argument("--keep", type=int, help="pixels to keep of each image; default: all")
    parser.add_argument("--class", dest="label", help="name of the class; default: no class")
    parser.add_argument("--model", help="run, pipeline folder or Hub name; default: the bundled emoji model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("interpolated"))
    arguments = parser.parse_args()

    pipeline = MaskedImagePipeline.from_pretrained(arguments.model)
    common = {"class_labels": arguments.label, "generator": torch.Generator().manual_seed(arguments.seed)}
    if arguments.gap is None:
        images = pipeline.interpolate(
            *arguments.images, num_frames=arguments.frames, strength=arguments.strength, **common
        ).images
    else:
        images = pipeline.join(*arguments.images, gap=arguments.gap, keep=arguments.keep, **common).images
    arguments.out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image.save(arguments.out / f"{i:03d}.png")
    print(arguments.out)
