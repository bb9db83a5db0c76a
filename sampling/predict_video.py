"""Predict the frames that follow a video; their number may exceed the trained length.

python sampling/predict_video.py clip.mp4 --model runs/moving-mnist --context 10 --frames 20 --out predicted.gif
"""

import argparse
from pathlib import Path

from maskgen.pipelines.video_jobs import predict_video

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help="video file, folder of frames, image, or FILE.npz:3")
    parser.add_argument("--model", required=True, help="run, pipeline folder or Hub name")
    parser.add_argument("--frames", type=int, default=16, help="number of frames to predict")
    parser.add_argument("--context", type=int, help="number of last frames that the model sees; default: its maximum")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th frame of the video")
    parser.add_argument("--count", type=int, default=1, help="number of results; several are numbered")
    parser.add_argument("--actions", help=".npy of shape (context + frames, a), for a model with actions")
    parser.add_argument("--steps", type=int, help="number of decode steps of a window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("predicted.mp4"), help=".mp4, .gif or .png")
    arguments = parser.parse_args()

    for path in predict_video(**vars(arguments)):
        print(path)
