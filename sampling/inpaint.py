"""Replace what a mask hides. The mask has the image's size, and white pixels are replaced; the others do not change.

python sampling/inpaint.py image.png mask.png --class heart
python sampling/inpaint.py image.png mask.png --model runs/mine --dilation 1 --crop 32 --count 4
"""

import argparse
from pathlib import Path

import torch

from maskgen import MaskedImagePipeline

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("mask")
    parser.add_argument("--model", help="run, pipeline folder or Hub name; default: the bundled emoji model")
    parser.add_argument("--class", dest="label", help="name of the class; default: no class")
    parser.add_argument("--count", type=int, default=4, help="number of images")
    parser.add_argument("--dilation", type=int, default=0, help="tokens around the hole that are also hidden")
    parser.add_argument("--crop", type=int, help="show the model only the hole and this many pixels around it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("inpainted"))
    arguments = parser.parse_args()

    pipeline = MaskedImagePipeline.from_pretrained(arguments.model)
    images = pipeline.inpaint(
        arguments.image,
        arguments.mask,
        arguments.label,
        padding_mask_crop=arguments.crop,
        dilation=arguments.dilation,
        num_images_per_prompt=arguments.count,
        generator=torch.Generator().manual_seed(arguments.seed),
    ).images  # PIL images of the image's own size
    arguments.out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        image.save(arguments.out / f"{i:03d}.png")
    print(arguments.out)
