"""Encode a data set once, so that the training of a transformer does not run the tokenizer.

python tokenizers/encode_dataset.py runs/emoji-tokenizer runs/emoji-tokens
python tokenizers/encode_dataset.py runs/mine runs/mine-tokens --data "shards/train-{000..012}.tar" --size 64 --flips
torchrun --nproc_per_node 8 tokenizers/encode_dataset.py runs/mine runs/mine-tokens --data my_images --size 256

The same command resumes a stopped run. Then train with `data: {type: tokens, path: runs/mine-tokens}`.
"""

import argparse

from maskgen.data.source import open_dataset
from maskgen.pipelines.encode import encode_dataset
from maskgen.pipelines.generate import pick_device
from maskgen.pipelines.store import load_tokenizer

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", help="run, pipeline or tokenizer folder")
    parser.add_argument("out", help="folder of the token cache")
    parser.add_argument("--data", help="emoji, folder, shards, .npz, run or YAML mapping; default: the run's data")
    parser.add_argument("--size", type=int, help="side of the images in pixels, for data without a fixed size")
    parser.add_argument("--flips", action="store_true", help="also encode the mirrored images, as further rows")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch")
    parser.add_argument("--workers", type=int, default=0, help="number of processes that read images")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    arguments = parser.parse_args()

    cache = encode_dataset(
        load_tokenizer(arguments.tokenizer).to(pick_device(arguments.device)),
        open_dataset(arguments.data or arguments.tokenizer, arguments.size),
        arguments.out,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        flips=arguments.flips,
    )
    print(cache)
