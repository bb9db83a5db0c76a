"""Generate variations of an image: a random share of its tokens is replaced.

python sampling/vary.py image.png --strength 0.3 0.6 0.9 --class cat-face
"""

import argparse
from pathlib import Path

import torch

from maskgen import MaskedImagePipeline

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--strength", type=float, nargs="+", default=[0.5], help="share replaced, 0 to 1")
    parser.add_argument("--class", dest="label", help="name of the class; default: no class")
    parser.add_argument("--model", help="run, pipeline folder or Hub name; default: the bundled emoji model")
    parser.add_argument("--count", type=int, default=4, help="number of images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("varied"))
    arguments = parser.parse_args()

    pipeline = MaskedImagePipeline.from_pretrained(arguments.model)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for strength in arguments.strength:
        images = pipeline.vary(
            arguments.image,
            strength,
            arguments.label,
            num_images_per_prompt=arguments.count,
            generator=torch.Generator().manual_seed(arguments.seed),
        ).images
        for i, image in enumerate(images):
            image.save(arguments.out / f"{strength}_{i:03d}.png")
    print(arguments.out)
