"""Change the class of a box: class-conditional editing. The box grows by a token, which prevents a visible rim.

python sampling/edit.py image.png --box 8 8 24 24 --class cat-face
"""

import argparse
from pathlib import Path

import torch

from maskgen import MaskedImagePipeline

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--box", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), required=True)
    parser.add_argument("--class", dest="label", required=True, help="name of the new class")
    parser.add_argument("--grow", type=int, default=1, help="tokens by which the box grows")
    parser.add_argument("--model", help="run, pipeline folder or Hub name; default: the bundled emoji model")
    parser.add_argument(
        "--guidance", type=float, help="scale s in u + s (c - u), 1 is no guidance; default: the model's"
    )
    parser.add_argument("--count", type=int, default=4, help="number of images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("edited"))
    arguments = parser.parse_args()

    pipeline = MaskedImagePipeline.from_pretrained(arguments.model)
    images = pipeline.edit(
        arguments.image,
        arguments.label,
        box=arguments.box,
        grow=arguments.grow,
        num_images_per_prompt=arguments.count,
        guidance_scale=arguments.guidance,
        generator=torch.Generator().manual_seed(arguments.seed),
    ).images
    arguments.out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image.save(arguments.out / f"{i:03d}.png")
    print(arguments.out)
