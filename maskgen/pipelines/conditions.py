"""Conditions as tokens: what training is given of its tasks, and what decoding begins with (MAGVIT's COMMIT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor

from maskgen.registry import build
from maskgen.tasks.conditions import TASK, Prompts, Task, condition_video
from maskgen.tasks.videos import video_token_mask
from maskgen.tokenizer.model import Tokenizer

Tasks = Sequence[Annotated[Any, TASK]]


def condition_region(tokenizer: Tokenizer, hidden: Bool[Tensor, "b T H W"]) -> Bool[Tensor, "b t h w"]:
    """Tokens of which any pixel is a condition pixel: the others hold padding alone."""
    grid: Any = tokenizer.grid(tuple(hidden.shape[1:]))
    return video_token_mask(~hidden, grid, tokenizer.temporal_downsampling)


class Conditions:
    """The tasks of a run, of which each row of a batch is given one.

    Args:
        tasks: names or mappings, see :data:`maskgen.tasks.conditions.TASKS`.
        classes: how many there are; 0 where the run has none.

    Raises:
        ValueError: what :class:`maskgen.tasks.conditions.Prompts` raises.
    """

    def __init__(self, tasks: Tasks, classes: int = 0):
        self.tasks: list[Task] = [build(TASK, task) for task in tasks]
        self.prompts = Prompts([task.prompt for task in self.tasks], classes)

    def drawn(self, rows: int, generator: Generator | None = None) -> list[int]:
        """A task a row, all equally likely."""
        return torch.randint(len(self.tasks), (rows,), generator=generator).tolist()

    def videos(
        self, pixels: Float[Tensor, "b c *size"], drawn: list[int]
    ) -> tuple[Float[Tensor, "b c *size"], Bool[Tensor, "b *size"]]:
        """The rows' conditions in pixels, and on the CPU what they hide.

        Raises:
            ValueError: images instead of videos; a task that does not fit their size.
        """
        if pixels.ndim != 5:
            raise ValueError(f"stage.tasks are tasks on videos (b, c, t, H, W), the data gives {tuple(pixels.shape)}")
        _, _, frames, height, width = pixels.shape
        masks = {i: self.tasks[i].hidden((frames, height, width)) for i in sorted(set(drawn))}
        videos = torch.empty_like(pixels)
        for i, mask in masks.items():
            rows = [row for row, task in enumerate(drawn) if task == i]
            videos[rows] = condition_video(self.tasks[i].name, pixels[rows], mask)
        return videos, torch.stack([masks[i] for i in drawn])

    def labels(self, drawn: list[int], classes: Int[Tensor, "b"] | None) -> Int[Tensor, "b"]:
        """The rows' prompts, on the device of the `classes`, which only tasks that take them look at."""
        first = torch.tensor([self.prompts.first[self.tasks[i].prompt] for i in drawn])
        if classes is None:
            return first
        takes = torch.tensor([self.tasks[i].classes for i in drawn]).to(classes.device)
        return first.to(classes.device) + classes * takes


def opened(
    tokenizer: Tokenizer,
    mode: str,
    task: str,
    pixels: Float[Tensor, "b c T H W"],
    hidden: Bool[Tensor, "b T H W"],
    device: torch.device,
) -> tuple[Shaped[Tensor, "b *tokens"], Bool[Tensor, "b t h w"], Bool[Tensor, "b t h w"] | None]:
    """Where the decode of a task begins.

    In mode ``cond_input`` every token is to be decided, and until it is, those of the region show their condition
    tokens (MAGVIT, algorithm 1). In the other modes the region is known: it is its condition tokens.

    Returns:
        The canvas, its mask, and the hidden places at which the canvas' token is seen, None where there are none.
    """
    video = torch.cat([condition_video(task, x[None], mask) for x, mask in zip(pixels, hidden)])
    tokens = tokenizer.eval().encode(video.to(device, tokenizer.dtype))
    region = condition_region(tokenizer, hidden).to(device)
    if mode != "cond_input":
        return tokens, ~region, None
    return tokens, torch.ones_like(region), region if region.any() else None
