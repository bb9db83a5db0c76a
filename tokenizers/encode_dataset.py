"""Encode a data set once, so that training a transformer never runs the tokenizer.

python tokenizers/encode_dataset.py runs/emoji-tokenizer runs/emoji-tokens
Then train with `data: {type: tokens, path: runs/emoji-tokens}`.
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
    parser.add_argument("--data", help="emoji, a folder, an .npz, a run, a YAML mapping; else the tokenizer's own")
    parser.add_argument("--size", type=int, help="side of the pictures, where the data leaves it open")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    arguments = parser.parse_args()

    tokenizer = load_tokenizer(arguments.tokenizer).to(pick_device("auto"))
    dataset = open_dataset(arguments.data or arguments.tokenizer, arguments.size)
    print(encode_dataset(tokenizer, dataset, arguments.out, workers=arguments.workers))
