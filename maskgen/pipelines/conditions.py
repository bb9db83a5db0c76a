"""Conditions as tokens (MAGVIT's COMMIT): the tasks of a training batch, and the canvas with which decoding begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor

from maskgen.pipelines.base import MaskedPipeline
from maskgen.registry import build
from maskgen.tasks.conditions import TASK, Prompts, Task, condition_video
from maskgen.tasks.videos import video_token_mask
from maskgen.tokenizer.model import Tokenizer

Tasks = Sequence[Annotated[Any, TASK]]


def condition_region(tokenizer: Tokenizer, hidden: Bool[Tensor, "b T H W"]) -> Bool[Tensor, "b t h w"]:
    """True at the tokens that hold any known pixel; the other tokens hold padding alone."""
    grid: Any = tokenizer.grid(tuple(hidden.shape[1:]))
    return video_token_mask(~hidden, grid, tokenizer.temporal_downsampling)


class Conditions:
    """The tasks of a training run. Each row of a batch gets one of them.

    Args:
        tasks: names or mappings, see :data:`maskgen.tasks.conditions.TASKS`.
        classes: the number of classes; 0 if the run has none.

    Raises:
        ValueError: see :class:`maskgen.tasks.conditions.Prompts`.
    """

    def __init__(self, tasks: Tasks, classes: int = 0):
        self.tasks: list[Task] = [build(TASK, task) for task in tasks]
        self.prompts = Prompts([task.prompt for task in self.tasks], classes)

    def sample(self, rows: int, generator: Generator | None = None) -> list[int]:
        """One task per row, all equally likely."""
        return torch.randint(len(self.tasks), (rows,), generator=generator).tolist()

    def videos(
        self, pixels: Float[Tensor, "b c *size"], chosen: list[int]
    ) -> tuple[Float[Tensor, "b c *size"], Bool[Tensor, "b *size"]]:
        """The conditions of the rows in pixels, and a mask of what they hide, on the CPU.

        Raises:
            ValueError: the pixels are images, or a task does not fit the size of the videos.
        """
        if pixels.ndim != 5:
            raise ValueError(f"stage.tasks are tasks on videos (b, c, t, H, W), the data gives {tuple(pixels.shape)}")
        _, _, frames, height, width = pixels.shape
        masks = {i: self.tasks[i].hidden((frames, height, width)) for i in sorted(set(chosen))}
        videos = torch.empty_like(pixels)
        for i, mask in masks.items():
            rows = [row for row, task in enumerate(chosen) if task == i]
            videos[rows] = condition_video(self.tasks[i].name, pixels[rows], mask)
        return videos, torch.stack([masks[i] for i in chosen])

    def labels(self, chosen: list[int], classes: Int[Tensor, "b"] | None) -> Int[Tensor, "b"]:
        """The labels of the prompts of the rows, on the device of `classes`; only tasks with classes use these."""
        first = torch.tensor([self.prompts.first[self.tasks[i].prompt] for i in chosen])
        if classes is None:
            return first
        takes = torch.tensor([self.tasks[i].classes for i in chosen]).to(classes.device)
        return first.to(classes.device) + classes * takes


def opened(
    pipeline: MaskedPipeline,
    mode: str,
    task: str,
    pixels: Float[Tensor, "b c T H W"],
    hidden: Bool[Tensor, "b T H W"],
) -> tuple[Shaped[Tensor, "b *tokens"], Bool[Tensor, "b t h w"], Bool[Tensor, "b t h w"] | None]:
    """The canvas and the mask with which the decode of a task begins.

    In mode ``cond_input`` all tokens are hidden, and those of the region show the condition's tokens until they are
    decided (MAGVIT, algorithm 1). In the other modes the region is known and holds the condition's tokens.

    Returns:
        The canvas, its mask, and the hidden positions at which the transformer sees the canvas, or None.
    """
    tokens = pipeline.encode(torch.cat([condition_video(task, x[None], mask) for x, mask in zip(pixels, hidden)]))
    region = condition_region(pipeline.vqvae, hidden).to(tokens.device)
    if mode != "cond_input":
        return tokens, ~region, None
    return tokens, torch.ones_like(region), region if region.any() else None
