"""Plan actions that bring a video to a goal, by predicting the outcome of many candidates (visual foresight).

Each round predicts all candidates in one batch. The cost is the distance of the last frame to the goal image.

python sampling/plan_video.py clip.npy goal.png --past past.npy --model runs/pendulum --horizon 6

benchmarks/video_world.py trains a model of the simulated pendulum; so does a generator stage with `actions: true` on
data of `maskgen make-data simulator`. This code writes the other files from such data (episode 0: two frames, and the
eighth frame as the goal):

    data = numpy.load("test.npz")
    clip = data["videos"][0].transpose(3, 0, 1, 2) / 127.5 - 1  # (t, h, w, c) to (c, t, h, w)
    numpy.save("clip.npy", clip[:, :2])
    numpy.save("past.npy", data["actions"][0, :1])  # one fewer than frames: those between them
    PIL.Image.fromarray(data["videos"][0, 7]).save("goal.png")
"""

import argparse

import numpy as np
import torch

from maskgen import MaskedVideoPipeline
from maskgen.pipelines.inputs import images_of
from maskgen.tasks.planning import cross_entropy_plan, rollout_cost

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help=".npy of the known frames, float (c, t, h, w) in [-1, 1] at the model's size")
    parser.add_argument("goal", help="image of the model's size")
    parser.add_argument("--model", required=True, help="run or pipeline folder of a model with actions")
    parser.add_argument("--past", help=".npy of the actions between these frames (t - 1, a); default: zeros")
    parser.add_argument("--horizon", type=int, default=6, help="number of actions to plan and of frames to predict")
    parser.add_argument("--low", type=float, default=-1.0, help="lower bound of an action")
    parser.add_argument("--high", type=float, default=1.0, help="upper bound of an action")
    parser.add_argument("--samples", type=int, default=64, help="candidates per round")
    parser.add_argument("--iterations", type=int, default=3, help="number of rounds; 1 is random shooting")
    parser.add_argument("--steps", type=int, help="number of decode steps; default: the model's")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    pipeline = MaskedVideoPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    known = torch.from_numpy(np.load(arguments.video)).float()
    (goal,) = images_of(arguments.goal, pipeline.vqvae.channels)
    if "actions" not in pipeline.transformer.conditioner:
        raise SystemExit(
            f"{arguments.model} has no actions, so it cannot plan; train a model with `conditioning: [actions]`"
        )
    numbers = pipeline.transformer.conditioner["actions"].dim // pipeline.factor
    past = torch.zeros(known.shape[1] - 1, numbers)
    if arguments.past:
        past = torch.from_numpy(np.load(arguments.past)).float()
    box = torch.ones(arguments.horizon, numbers)
    plan, least = cross_entropy_plan(
        rollout_cost(pipeline, known, past, goal, arguments.seed, num_inference_steps=arguments.steps),
        arguments.low * box,
        arguments.high * box,
        arguments.samples,
        max(2, arguments.samples // 8),
        arguments.iterations,
        torch.Generator().manual_seed(arguments.seed),
    )
    print(f"distance to the goal {least:.4f}; actions:")
    for action in plan.tolist():
        print(" ".join(f"{number:+.3f}" for number in action))
