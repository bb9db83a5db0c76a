"""Watching a decode: each step's tokens and the confidence in them, and a moving image of it."""

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
from maskgen.tokenizer.model import Tokenizer

Tracer = Callable[[Tensor, Tensor, Tensor], None]


class Watch:
    """Tells a tracer of a canvas after every step, wherever in it a window is being decoded.

    Args:
        trace: called with tokens (b, *grid, ...) as the tokenizer has them, bool hidden (b, *grid) and float confidence
            (b, *grid): the probability that the model gave each token when it was last drawn, NaN where it was given
            (of densities, and where the scheduler ranks logits, their exponential, 1 at most). First with the canvas
            itself, then after each step.
        canvas, mask: what is to be completed.
        places: what a place holds.
    """

    def __init__(
        self, trace: Tracer, canvas: Shaped[Tensor, "b *tokens"], mask: Bool[Tensor, "b *grid"], places: TokenLayout
    ):
        self.trace, self.tokens, self.hidden, self.places = trace, canvas.clone(), mask.clone(), places
        self.confidence = torch.full(mask.shape, torch.nan, device=canvas.device)
        self._tell()

    def after(self, done: Trace, place: tuple[slice, ...]) -> None:
        """A step is done in the window at `place`."""
        window = (slice(None), *place)
        self.tokens[window] = self.places.canvas(done.tokens, self.tokens[window])
        self.hidden[window] = self.places.mask(done.hidden).view(self.hidden[window].shape)
        found = self.places.confidence(done.confidence).exp().clamp(max=1).view(self.confidence[window].shape)
        self.confidence[window] = torch.where(found.isnan(), self.confidence[window], found)
        self._tell()

    def _tell(self) -> None:
        self.trace(self.tokens.clone(), self.hidden.clone(), self.confidence.clone())


class DecodeTrace:
    """A tracer that keeps every step and draws them.

    Args:
        limit: so many images of the batch at most.
    """

    def __init__(self, limit: int = 8):
        self.limit = limit
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(
        self, tokens: Shaped[Tensor, "b *tokens"], hidden: Bool[Tensor, "b *grid"], confidence: Float[Tensor, "b *grid"]
    ) -> None:
        if not self.steps or self.steps[0][0].shape == tokens[: self.limit].shape:  # of several batches the first
            self.steps.append((tokens[: self.limit], hidden[: self.limit], confidence[: self.limit]))

    def frames(self, tokenizer: Tokenizer, side: int = 192) -> list[Image.Image]:
        """An image a step: what is decided so far with the hidden tokens grey, and beside it the confidence in each
        token from blue (0) to yellow (1), light grey where the token was given.

        Args:
            side: about so many pixels high is each image.

        Raises:
            ValueError: no step was seen, or tokens that have no place in the image.
        """
        if not self.steps:
            raise ValueError("no decode was traced; hand this object to a pipeline's call as trace=")
        last = len(self.steps) - 1
        return [self.frame(tokenizer, i, side, last) for i in range(len(self.steps))]

    def save(self, path: str | Path, tokenizer: Tokenizer, side: int = 192, seconds: float = 0.35) -> Path:
        """An animated GIF of :meth:`frames`, `seconds` each, the last one longer."""
        path = Path(path)
        frames = [np.asarray(frame) for frame in self.frames(tokenizer, side)]
        path.parent.mkdir(parents=True, exist_ok=True)
        durations = [int(1000 * seconds)] * (len(frames) - 1) + [int(5000 * seconds)]
        imageio.imwrite(path, frames, duration=durations, loop=0)
        return path

    @torch.no_grad()
    def frame(self, tokenizer: Tokenizer, number: int, side: int = 192, last: int | None = None) -> Image.Image:
        """One of :meth:`frames`: step `number` (0: before the first) of `last`, where that is known."""
        tokens, hidden, confidence = self.steps[number]
        if hidden.ndim != 3:
            raise ValueError("1-D tokens have no place in the image: their decode cannot be drawn")
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
    """What fills the file that was asked for, checked before anything is drawn.

    Raises:
        ValueError: its name does not end in .gif.
    """
    if path is not None and Path(path).suffix.lower() != ".gif":
        raise ValueError(f"the trace {path} must end in .gif")
    return None if path is None else DecodeTrace()


def heatmap(values: Float[Tensor, "b h w"]) -> Float[Tensor, "b 3 h w"]:
    """Values in [0, 1] as colours in [-1, 1] from blue to yellow (viridis); NaN is light grey."""
    colours = matplotlib.colormaps["viridis"](values.nan_to_num(0).numpy())[..., :3]
    pixels = torch.from_numpy(colours).float().permute(0, 3, 1, 2) * 2 - 1
    return torch.where(values.isnan()[:, None], 0.75, pixels)
