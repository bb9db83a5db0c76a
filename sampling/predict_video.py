"""Go on from the last frames of a video, beyond the trained length too.

python sampling/predict_video.py clip.mp4 --model runs/moving-mnist --context 10 --frames 20 --out predicted.gif
"""

import argparse
from pathlib import Path

from maskgen.pipelines.video_jobs import predict_video

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help="its file, a folder of frames, an image, or FILE.npz:3")
    parser.add_argument("--model", required=True, help="run, pipeline folder or Hub name")
    parser.add_argument("--frames", type=int, default=16, help="to predict")
    parser.add_argument("--context", type=int, help="last frames to see; as many as the model holds if none")
    parser.add_argument("--stride", type=int, default=1, help="every which frame of the video to take")
    parser.add_argument("--count", type=int, default=1, help="results, numbered where there are several")
    parser.add_argument("--actions", help=".npy of (context + frames, a), where the model reads them")
    parser.add_argument("--steps", type=int, help="decode steps of a window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("predicted.mp4"), help=".mp4, .gif or .png")
    arguments = parser.parse_args()

    for path in predict_video(**vars(arguments)):
        print(path)
