"""Converts a video to the size for a CPU: pedestrians in a street, filmed by a fixed camera.

    apt-get download opencv-doc && dpkg-deb -x opencv-doc_*.deb opencv
    python benchmarks/street.py opencv/usr/share/doc/opencv-doc/examples/data/vtest.avi data/street.npz

All frames of a video are scaled to 64 x 96 pixels (h x w) and saved as one video in an .npz file, so that the video is
decoded only once.
"""

import argparse
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

from maskgen.data.pixels import fit

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=[64, 96], metavar=("H", "W"))
    options = parser.parse_args()
    frames = [np.asarray(fit(Image.fromarray(x), tuple(options.size))) for x in imageio.imiter(options.video)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, videos=np.stack(frames)[None])
    print(f"{options.out}: {len(frames)} frames of {options.size[0]}x{options.size[1]}")
