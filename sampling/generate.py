"""Generate images and write one file each.

python sampling/generate.py                                   # the bundled emoji model, every class
python sampling/generate.py runs/mine --class flags --class 3 --count 4 --steps 16 --guidance 1.5
"""

import argparse
from pathlib import Path

import torch

from maskgen import MaskedImagePipeline

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="run, pipeline folder or Hub name; default: the bundled emoji model")
    parser.add_argument(
        "--class", dest="classes", action="append", help="name or number; repeat for more; default: all"
    )
    parser.add_argument("--count", type=int, default=4, help="images per class")
    parser.add_argument("--steps", type=int, help="number of decode steps; default: the model's")
    parser.add_argument(
        "--guidance", type=float, help="scale s in u + s (c - u), 1 is no guidance; default: the model's"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples"))
    arguments = parser.parse_args()

    pipeline = MaskedImagePipeline.from_pretrained(arguments.model)
    names = pipeline.class_names
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.classes or names or [None]:
        label = int(name) if name is not None and name.isdigit() and name not in names else name
        images = pipeline(
            label,
            num_images_per_prompt=arguments.count,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance,
            generator=torch.Generator().manual_seed(arguments.seed),
        ).images  # PIL images
        for i, image in enumerate(images):
            image.save(arguments.out / f"{name or 'sample'}_{i:03d}.png".replace("/", "-"))
    print(arguments.out)
