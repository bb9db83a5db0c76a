"""Watching a decode: each step's tokens and the confidence in them, and a moving picture of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maskgen.decoding.loop import Predict, Step
from maskgen.pictures import grid
from maskgen.tokenizer.model import Tokenizer

Tracer = Callable[[Tensor, Tensor, Tensor], None]


class Watch:
    """Tells a tracer of a canvas after every step, wherever in it a window is being decoded.

    Args:
        trace: called with int64 tokens (b, *grid), bool hidden (b, *grid) and float confidence (b, *grid): the
            probability that the model gave each token when it was last sampled, NaN where it was given. First with the
            canvas itself, then after each step.
    """

    def __init__(self, trace: Tracer, canvas: Int[Tensor, "b *grid"], mask: Bool[Tensor, "b *grid"]):
        self.trace, self.tokens, self.hidden = trace, canvas.clone(), mask.clone()
        self.confidence = torch.full(canvas.shape, torch.nan, device=canvas.device)
        self._tell()

    def asked(self, predict: Predict) -> Predict:
        """`predict`, its answers noted."""

        def noting(step: Step) -> Tensor:
            self.step, self.logits = step, predict(step)
            return self.logits

        return noting

    def after(self, tokens: Int[Tensor, "b n"], hidden: Bool[Tensor, "b n"], place: tuple[slice, ...]) -> None:
        """A step is done in the window at `place`."""
        at, window = self.step.positions, (slice(None), *place)
        p = self.logits.float().softmax(-1).gather(-1, tokens.gather(1, at)[..., None])[..., 0]
        confidence = self.confidence[window].flatten(1)
        asked = self.step.hidden.gather(1, at)  # the others fill up the row
        confidence = confidence.scatter(1, at, torch.where(asked, p, confidence.gather(1, at)))
        for whole, part in ((self.tokens, tokens), (self.hidden, hidden), (self.confidence, confidence)):
            whole[window] = part.view(whole[window].shape)
        self._tell()

    def _tell(self) -> None:
        self.trace(self.tokens.clone(), self.hidden.clone(), self.confidence.clone())


class DecodeTrace:
    """A tracer that keeps every step and draws them.

    Args:
        limit: so many pictures of the batch at most.
    """

    def __init__(self, limit: int = 8):
        self.limit = limit
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(
        self, tokens: Int[Tensor, "b *grid"], hidden: Bool[Tensor, "b *grid"], confidence: Float[Tensor, "b *grid"]
    ) -> None:
        if not self.steps or self.steps[0][0].shape == tokens[: self.limit].shape:  # of several batches the first
            self.steps.append((tokens[: self.limit], hidden[: self.limit], confidence[: self.limit]))

    def frames(self, tokenizer: Tokenizer, side: int = 192) -> list[Image.Image]:
        """A picture a step: what is decided so far with the hidden tokens grey, and beside it the confidence in each
        token from blue (0) to yellow (1), light grey where the token was given.

        Args:
            side: about so many pixels high is each picture.

        Raises:
            ValueError: no step was seen, or tokens that have no place in the picture.
        """
        if not self.steps:
            raise ValueError("no decode was traced; hand this object to a pipeline's call as trace=")
        if self.steps[0][0].ndim != 3:
            raise ValueError("1-D tokens have no place in the picture: their decode cannot be drawn")
        return [self._frame(tokenizer, i, side) for i in range(len(self.steps))]

    def save(self, path: str | Path, tokenizer: Tokenizer, side: int = 192, seconds: float = 0.35) -> Path:
        """An animated GIF of :meth:`frames`, `seconds` each, the last one longer."""
        path = Path(path)
        frames = [np.asarray(frame) for frame in self.frames(tokenizer, side)]
        path.parent.mkdir(parents=True, exist_ok=True)
        durations = [int(1000 * seconds)] * (len(frames) - 1) + [int(5000 * seconds)]
        imageio.imwrite(path, frames, duration=durations, loop=0)
        return path

    @torch.no_grad()
    def _frame(self, tokenizer: Tokenizer, number: int, side: int) -> Image.Image:
        tokens, hidden, confidence = self.steps[number]
        made = tokenizer.decode(tokens).float().cpu().clamp(-1, 1).expand(-1, 3, -1, -1)
        size = (made.shape[2], made.shape[3])
        hole = F.interpolate(hidden[:, None].float().cpu(), size, mode="nearest") > 0
        heat = F.interpolate(heatmap(confidence.cpu()), size, mode="nearest")
        pairs = torch.stack([made.masked_fill(hole, 0.0), heat], 1).flatten(0, 1)
        columns = 2 * min(len(made), max(1, round(len(made) ** 0.5)))
        sheet = grid(pairs, columns, scale=max(1, round(side / size[0])))
        done = Image.new("RGB", (max(sheet.width, 260), sheet.height + 24), "white")
        done.paste(sheet, (0, 24))
        text = f"step {number}/{len(self.steps) - 1}    {int(hidden[0].sum())} tokens hidden"
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
