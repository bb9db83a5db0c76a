"""Encode and decode images: write originals above reconstructions, and print a table of metrics.

python tokenizers/reconstruct.py runs/emoji-tokenizer
python tokenizers/reconstruct.py runs/mine photo.jpg other.png --out mine.png
python tokenizers/reconstruct.py runs/mine --data my_images/ --size 256 --lpips download --inception download
"""

import argparse

from maskgen.data.source import open_files_or_dataset
from maskgen.evaluation.reconstruction.report import reconstruct
from maskgen.pipelines.generate import pick_device
from maskgen.pipelines.store import load_tokenizer

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", help="run, pipeline or tokenizer folder")
    parser.add_argument("images", nargs="*", help="image files; each keeps its own size")
    parser.add_argument("--data", help="emoji, folder, shards, .npz, run or YAML mapping; default: the run's data")
    parser.add_argument("--size", type=int, help="side of the images in pixels, for data without a fixed size")
    parser.add_argument("--limit", type=int, default=2048, help="number of images to measure, evenly spread")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch")
    parser.add_argument("--tile", type=int, default=0, help="side in pixels of the tiles for large images; 0: no tiles")
    parser.add_argument("--lpips", help="file of VGG-16's weights, or 'download'")
    parser.add_argument("--inception", help="for rFID: file of Inception's weights, or 'download'")
    parser.add_argument("--classifier", help="folder of a small classifier; adds a Fréchet distance of its features")
    parser.add_argument(
        "--out", default="reconstruction.png", help="image to write; metrics.json is written to the same folder"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    given = parser.parse_args()

    tokenizer = load_tokenizer(given.tokenizer).to(pick_device(given.device))
    report = reconstruct(
        tokenizer,
        open_files_or_dataset(given.images, given.data, given.tokenizer, given.size, tokenizer.channels),
        limit=given.limit,
        batch_size=given.batch_size,
        tile=given.tile,
        lpips=given.lpips,
        inception=given.inception,
        classifier=given.classifier,
    )
    report.save(given.out)
    print(report)
