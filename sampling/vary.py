"""Images like a given one: a random share of its tokens is drawn anew.

python sampling/vary.py image.png --strength 0.3 0.6 0.9 --class cat-face
"""

import argparse
from pathlib import Path

import torch

from maskgen import MaskedImagePipeline

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--strength", type=float, nargs="+", default=[0.5], help="share drawn anew, 0 to 1")
    parser.add_argument("--class", dest="label", help="name of what to draw; without a class if none")
    parser.add_argument("--model", help="run, pipeline folder or Hub name; the bundled emoji model if none")
    parser.add_argument("--count", type=int, default=4)
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
