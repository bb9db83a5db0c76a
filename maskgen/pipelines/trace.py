"""Traces of a decode: the tokens and their confidence after each step, and an animation of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maskgen.decoding.loop import Trace
from maskgen.images import grid
from maskgen.pipelines.tokens import TokenLayout
from maskgen.tasks.windows import Window
from maskgen.tokenizer.model import Tokenizer

Tracer = Callable[[Tensor, Tensor, Tensor], None]


class Watch:
    """Calls a tracer with the whole canvas after every step of any window.

    Args:
        trace: called before the first step and after each step, with the tokens (b, *grid, ...) as the tokenizer gives
            them, bool hidden (b, *grid), and float confidence (b, *grid). The confidence is the probability with which
            the model sampled the token last, and NaN if the canvas gave it. For densities, and if the scheduler ranks
            logits, it is their exponential, at most 1.
        canvas, mask: the tokens to complete and their mask.
        layout: the layout of the tokens.
    """

    def __init__(
        self, trace: Tracer, canvas: Shaped[Tensor, "b *tokens"], mask: Bool[Tensor, "b *grid"], layout: TokenLayout
    ):
        self.trace, self.tokens, self.hidden, self.layout = trace, canvas.clone(), mask.clone(), layout
        self.confidence = torch.full(mask.shape, torch.nan, device=canvas.device)
        self._report()

    def after(self, done: Trace, window: Window) -> None:
        """Take over the result of a step in a window."""
        at = (slice(None), *window)
        self.tokens[at] = self.layout.canvas(done.tokens, self.tokens[at])
        self.hidden[at] = self.layout.mask(done.hidden, self.hidden[at])
        found = self.layout.confidence(done.confidence, self.hidden[at]).exp().clamp(max=1)
        self.confidence[at] = torch.where(found.isnan(), self.confidence[at], found)
        self._report()

    def _report(self) -> None:
        self.trace(self.tokens.clone(), self.hidden.clone(), self.confidence.clone())


class DecodeTrace:
    """A tracer that keeps every step and renders the steps as images.

    Args:
        limit: the largest number of images of the batch that it keeps.
    """

    def __init__(self, limit: int = 8):
        self.limit = limit
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(
        self, tokens: Shaped[Tensor, "b *tokens"], hidden: Bool[Tensor, "b *grid"], confidence: Float[Tensor, "b *grid"]
    ) -> None:
        if not self.steps or self.steps[0][0].shape == tokens[: self.limit].shape:  # only the first of several batches
            self.steps.append((tokens[: self.limit], hidden[: self.limit], confidence[: self.limit]))

    def frames(self, tokenizer: Tokenizer, side: int = 192) -> list[Image.Image]:
        """One image per step: the decoded tokens with hidden ones in grey, and to the right the confidence of each
        token from blue (0) to yellow (1), in light grey if the canvas gave the token.

        Args:
            side: the approximate height of each image in pixels.

        Raises:
            ValueError: no step was traced, or the tokens have no position in the image.
        """
        if not self.steps:
            raise ValueError("no decode was traced; give this object to a task of a pipeline as trace=")
        last = len(self.steps) - 1
        return [self.frame(tokenizer, i, side, last) for i in range(len(self.steps))]

    def save(self, path: str | Path, tokenizer: Tokenizer, side: int = 192, seconds: float = 0.35) -> Path:
        """Write an animated GIF of :meth:`frames`; each one lasts `seconds`, and the last one longer."""
        path = Path(path)
        frames = [np.asarray(frame) for frame in self.frames(tokenizer, side)]
        path.parent.mkdir(parents=True, exist_ok=True)
        durations = [int(1000 * seconds)] * (len(frames) - 1) + [int(5000 * seconds)]
        imageio.imwrite(path, frames, duration=durations, loop=0)
        return path

    @torch.no_grad()
    def frame(self, tokenizer: Tokenizer, number: int, side: int = 192, last: int | None = None) -> Image.Image:
        """One of :meth:`frames`: step `number` (0 is before the first step) of `last`, if that is known."""
        tokens, hidden, confidence = self.steps[number]
        if hidden.ndim != 3:
            raise ValueError("1-D tokens have no position in the image: their decode cannot be shown")
        made = tokenizer.decode(tokens).float().cpu().clamp(-1, 1).expand(-1, 3, -1, -1)
        size = (made.shape[2], made.shape[3])
        hole = F.interpolate(hidden[:, None].float().cpu(), size, mode="nearest") > 0
        heat = F.interpolate(heatmap(confidence.cpu()), size, mode="nearest")
        pairs = torch.stack([made.masked_fill(hole, 0.0), heat], 1).flatten(0, 1)
        columns = 2 * min(len(made), max(1, round(len(made) ** 0.5)))
        sheet = grid(pairs, columns, scale=max(1, round(side / size[0])))
        done = Image.new("RGB", (max(sheet.width, 260), sheet.height + 24), "white")
        done.paste(sheet, (0, 24))
        most = int(hidden.flatten(1).sum(1).max())  # the first and last frame of an interpolation hide none
        text = f"step {number}{'' if last is None else f'/{last}'}    {most} tokens hidden"
        ImageDraw.Draw(done).text((6, 12), text, fill="black", font=ImageFont.load_default(size=14), anchor="lm")
        return done


def film_for(path: str | Path | None) -> DecodeTrace | None:
    """A trace for the file `path`, or None without a file; the name is checked before any work is done.

    Raises:
        ValueError: the name does not end in .gif.
    """
    if path is not None and Path(path).suffix.lower() != ".gif":
        raise ValueError(f"the trace {path} must end in .gif")
    return None if path is None else DecodeTrace()


def heatmap(values: Float[Tensor, "b h w"]) -> Float[Tensor, "b 3 h w"]:
    """Values in [0, 1] as colours in [-1, 1] from blue to yellow (viridis); NaN is light grey."""
    colours = matplotlib.colormaps["viridis"](values.nan_to_num(0).numpy())[..., :3]
    pixels = torch.from_numpy(colours).float().permute(0, 3, 1, 2) * 2 - 1
    return torch.where(values.isnan()[:, None], 0.75, pixels)
