"""Actions that bring a video to a goal, by predicting what each of many candidates leads to (visual foresight).

Every round predicts all candidates in one batch; the cost is how far the last frame is from the goal's picture.

python sampling/plan_video.py clip.npy goal.png --model runs/simulator --horizon 6 --low -1 --high 1
"""

import argparse

import numpy as np
import torch

from maskgen import MaskedVideoPipeline
from maskgen.pipelines.inputs import pictures_of
from maskgen.tasks.planning import cross_entropy_plan

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help=".npy of frames so far, float (c, t, h, w) in [-1, 1] at the model's size")
    parser.add_argument("goal", help="picture of the model's size")
    parser.add_argument("--model", required=True, help="run or pipeline folder of a model that reads actions")
    parser.add_argument("--past", help=".npy of the actions so far (t, a); zeros if none")
    parser.add_argument("--horizon", type=int, default=6, help="frames to look ahead")
    parser.add_argument("--low", type=float, default=-1.0, help="of an action")
    parser.add_argument("--high", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=3, help="1 is random shooting")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    pipeline = MaskedVideoPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    known = torch.from_numpy(np.load(arguments.video)).float()
    (goal,) = pictures_of(arguments.goal, pipeline.tokenizer.channels)
    numbers = pipeline.transformer.config.action_dim // pipeline.factor
    past = torch.zeros(known.shape[1], numbers)
    if arguments.past:
        past = torch.from_numpy(np.load(arguments.past)).float()

    def cost(actions: torch.Tensor) -> torch.Tensor:
        everything = torch.cat([past.expand(len(actions), -1, -1), actions], 1)
        videos = known.expand(len(actions), -1, -1, -1, -1)
        noise = [torch.Generator().manual_seed(arguments.seed) for _ in actions]
        made = pipeline.predict(videos, arguments.horizon, actions=everything, generator=noise, output_type="pt")
        return (made.frames[:, -1].cpu() * 2 - 1 - goal).square().mean((1, 2, 3))

    box = torch.ones(arguments.horizon, numbers)
    plan, least = cross_entropy_plan(
        cost,
        arguments.low * box,
        arguments.high * box,
        arguments.samples,
        max(2, arguments.samples // 8),
        arguments.iterations,
        torch.Generator().manual_seed(arguments.seed),
    )
    print(f"mean squared distance to the goal {least:.4f}; actions:\n{plan}")
