"""A transformer as the `predict` of the decode loop: conditions, guidance and shared work."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.decoding.loop import Step
from maskgen.transformer.model import MaskTransformer


class Predictor:
    """Logits of `transformer` for rows of `labels`, guided as ``u + s (c - u)``.

    Conditional and unconditional rows go in one call; a step of scale 1 makes no unconditional pass; while the whole
    canvas is blank, rows of one class are computed once (exact: they are the same input).

    Args:
        transformer: the model.
        labels: a class a row, or None for an unconditional model (guidance then has no meaning).
        grid: of the tokens.
    """

    def __init__(self, transformer: MaskTransformer, labels: list[int] | None, grid: tuple[int, ...]):
        self.transformer, self.labels, self.grid = transformer, labels, grid

    def __call__(self, step: Step) -> Tensor:
        b = len(step.tokens)
        guided = self.labels is not None and step.guidance_scale != 1
        wanted = [(row, label) for row, label in enumerate(self.labels or [-1] * b)]
        if guided:
            wanted += [(row, self.transformer.null_class) for row in range(b)]
        if step.blank:
            distinct = list(dict.fromkeys(label for _, label in wanted))
            back = [distinct.index(label) for _, label in wanted]
            wanted = [(0, label) for label in distinct]
        logits = self._logits(step, wanted)
        if step.blank:
            logits = logits[torch.tensor(back, device=logits.device)]
        if not guided:
            return logits
        c, u = logits.chunk(2)
        return u + step.guidance_scale * (c - u)

    def _logits(self, step: Step, wanted: list[tuple[int, int]]) -> Tensor:
        """Logits of (row, label) pairs at their rows' positions."""
        device = step.tokens.device
        rows = torch.tensor([row for row, _ in wanted], device=device)
        labels = None if self.labels is None else torch.tensor([label for _, label in wanted], device=device)
        grid = (len(wanted), *self.grid)
        positions = None if step.blank else step.positions[rows]
        output = self.transformer(step.tokens[rows].view(grid), step.hidden[rows].view(grid), labels, positions)
        return output.predictions
