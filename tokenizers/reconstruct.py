"""Encode and decode pictures: originals above reconstructions, PSNR, codebook use.

python tokenizers/reconstruct.py runs/emoji-tokenizer --data emoji
python tokenizers/reconstruct.py runs/emoji-tokenizer --data my_pictures/ --size 32 --out mine.png
"""

import argparse

from maskgen.data.source import open_dataset
from maskgen.evaluation.reconstruction import measure, spread
from maskgen.pictures import save, side_by_side
from maskgen.pipelines.store import load_tokenizer

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", help="run, pipeline or tokenizer folder")
    parser.add_argument("--data", help="emoji, a folder, an .npz, a run, a YAML mapping; else the tokenizer's own")
    parser.add_argument("--size", type=int, help="side of the pictures, where the data leaves it open")
    parser.add_argument("--out", default="reconstruction.png")
    arguments = parser.parse_args()

    tokenizer = load_tokenizer(arguments.tokenizer)
    dataset = open_dataset(arguments.data or arguments.tokenizer, arguments.size)
    pixels = next(spread(dataset, 32))  # float (32, c, h, w) in [-1, 1]
    codes = tokenizer.encode(pixels)  # int64 (32, *grid)
    save(side_by_side(pixels, tokenizer.decode(codes)), arguments.out)
    for name, value in measure(tokenizer, dataset).items():
        print(f"{name}: {value:.3f}")
