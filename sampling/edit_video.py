"""Interpolate between two videos, replace a part of a video, or extend a video in space or time.

python sampling/edit_video.py interpolate first.png last.png --model runs/magvit --out between.gif
python sampling/edit_video.py inpaint clip.mp4 --box 16 16 48 48 --model runs/magvit
python sampling/edit_video.py outpaint clip.mp4 --sides 16 0 16 0 --model runs/magvit
"""

import argparse
from pathlib import Path

from maskgen.pipelines.video_jobs import edit_video

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["interpolate", "inpaint", "outpaint"])
    parser.add_argument("video", help="video file, folder of frames, image, or FILE.npz:3")
    parser.add_argument("video_2", nargs="?", help="interpolate: the video or image at the end")
    parser.add_argument("--model", required=True, help="run, pipeline folder or Hub name")
    parser.add_argument("--mask", help="inpaint: mask image of the video's size; white is replaced")
    parser.add_argument("--box", type=int, nargs=4, help="inpaint: left, top, right, bottom")
    parser.add_argument("--sides", type=int, nargs=4, default=(0, 0, 0, 0), help="outpaint: left, top, right, bottom")
    parser.add_argument("--before", type=int, default=0, help="outpaint: frames to add before")
    parser.add_argument("--after", type=int, default=0, help="outpaint: frames to add after")
    parser.add_argument("--frames", type=int, help="interpolate: frames between; else: first frames to take")
    parser.add_argument("--count", type=int, default=1, help="number of results; several are numbered")
    parser.add_argument("--steps", type=int, help="number of decode steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("edited.mp4"), help=".mp4, .gif or .png")
    arguments = parser.parse_args()

    for path in edit_video(**vars(arguments)):
        print(path)
