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
        self.transformer, self.grid = transformer, grid
        self.conditional = labels is not None
        if labels is not None:
            self.device = next(transformer.parameters()).device
            both = [*labels, *[transformer.null_class] * len(labels)]
            self.labels = torch.tensor(both, device=self.device)
            self.distinct = {guided: self._distinct(both if guided else labels) for guided in (False, True)}

    def __call__(self, step: Step) -> Tensor:
        guided = self.conditional and step.guidance_scale != 1
        logits = self._blank(step, guided) if step.blank else self._logits(step, guided)
        if not guided:
            return logits
        c, u = logits.chunk(2)
        return u + step.guidance_scale * (c - u)

    def _distinct(self, labels: list[int]) -> tuple[Tensor, Tensor]:
        """The classes that occur, and which of them each row has."""
        once = list(dict.fromkeys(labels))
        rows = [once.index(label) for label in labels]
        return torch.tensor(once, device=self.device), torch.tensor(rows, device=self.device)

    def _blank(self, step: Step, guided: bool) -> Tensor:
        """Each class once, at all places; every row then takes its own."""
        labels, rows = self.distinct[guided] if self.conditional else (None, step.tokens.new_zeros(len(step.tokens)))
        hidden = step.hidden[:1].expand(1 if labels is None else len(labels), -1).unflatten(1, self.grid)
        return self.transformer(torch.zeros_like(hidden, dtype=torch.long), hidden, labels).predictions[rows]

    def _logits(self, step: Step, guided: bool) -> Tensor:
        """Every row at its hidden positions, and again without its class where guided."""
        copies = 2 if guided else 1
        tokens, hidden, positions = (x.repeat(copies, 1) for x in (step.tokens, step.hidden, step.positions))
        labels = self.labels[: len(tokens)] if self.conditional else None
        tokens, hidden = tokens.unflatten(1, self.grid), hidden.unflatten(1, self.grid)
        return self.transformer(tokens, hidden, labels, positions).predictions
