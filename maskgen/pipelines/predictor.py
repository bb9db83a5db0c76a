"""A transformer as the `predict` of the decode loop: conditions, guidance and shared work."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.decoding.loop import Step
from maskgen.transformer.autoregressive import CausalTransformer
from maskgen.transformer.model import MaskTransformer

CACHED = 2**18  # tokens x width whose activations the caches of a processor's core hold


class Predictor:
    """Logits of `transformer` for rows of `labels`, guided as ``u + s (c - u)``.

    Conditional and unconditional rows go together; a step of scale 1 makes no unconditional pass.
    Rows of one class on a blank canvas are computed once (exact: they are the same input).
    What the classes do to the network is computed once for all steps.

    Args:
        transformer: the model.
        labels: a class a row, or None for an unconditional model (guidance then has no meaning).
        grid: of the tokens.
        actions: float (rows, t, a), of a model that reads them.
        shown: tokens (rows, n) or (rows, n, d), and bool (rows, n) where they stand instead of the mask token as long
            as the place is hidden: a condition's (MAGVIT).
    """

    def __init__(
        self,
        transformer: MaskTransformer,
        labels: list[int] | None,
        grid: tuple[int, ...],
        actions: Tensor | None = None,
        shown: tuple[Tensor, Tensor] | None = None,
    ):
        self.transformer, self.grid, self.actions, self.shown = transformer, grid, actions, shown
        self.conditional = labels is not None
        self.conditions: Tensor | None = None
        if labels is not None:
            self.device = next(transformer.parameters()).device
            both = [*labels, *[transformer.null_class] * len(labels)]
            with torch.no_grad():  # they depend on the classes alone: once for all steps
                self.conditions = transformer.conditions(torch.tensor(both, device=self.device), len(both))
            self.distinct = {guided: self._distinct(both if guided else labels) for guided in (False, True)}

    def __call__(self, step: Step) -> Tensor:
        guided = self.conditional and step.guidance_scale != 1
        alike = step.blank and self.actions is None and self.shown is None
        logits = self._blank(step, guided) if alike else self._logits(step, guided)
        if not guided:
            return logits
        c, u = logits.chunk(2)
        return torch.lerp(u, c, step.guidance_scale)

    def _distinct(self, labels: list[int]) -> tuple[Tensor, Tensor]:
        """The first row of each class that occurs, and which of them each row is."""
        once = list(dict.fromkeys(labels))
        first, rows = [labels.index(label) for label in once], [once.index(label) for label in labels]
        return torch.tensor(first, device=self.device), torch.tensor(rows, device=self.device)

    def _blank(self, step: Step, guided: bool) -> Tensor:
        """Each class once, at all places; every row then takes its own, where it is asked."""
        conditions, rows = None, step.positions.new_zeros(len(step.tokens))
        if self.conditions is not None:
            first, rows = self.distinct[guided]
            conditions = self.conditions[first]
        hidden = step.hidden[:1].expand(1 if conditions is None else len(conditions), -1)
        tokens = step.tokens.new_zeros(len(hidden), *step.tokens.shape[1:])
        logits = by_rows(self.transformer, tokens, hidden, conditions, None, self.grid)
        return logits[rows[:, None], step.positions.repeat(len(rows) // len(step.positions), 1)]

    def _logits(self, step: Step, guided: bool) -> Tensor:
        """Every row at its hidden positions, and again without its class where guided."""
        copies = 2 if guided else 1
        tokens, hidden, positions = (torch.cat([x] * copies) for x in (*self._seen(step), step.positions))
        conditions = None if self.conditions is None else self.conditions[: len(tokens)]
        actions = None if self.actions is None else torch.cat([self.actions] * copies)
        return by_rows(self.transformer, tokens, hidden, conditions, positions, self.grid, actions)

    def _seen(self, step: Step) -> tuple[Tensor, Tensor]:
        """What stands at each place, and where the mask token does."""
        if self.shown is None:
            return step.tokens, step.hidden
        shown, where = self.shown
        stands = (step.hidden & where).view(step.hidden.shape + (1,) * (shown.ndim - 2))
        return torch.where(stands, shown, step.tokens), step.hidden & ~where


def by_rows(
    transformer: MaskTransformer,
    tokens: Tensor,
    hidden: Tensor,
    conditions: Tensor | None,
    positions: Tensor | None,
    grid: tuple[int, ...],
    actions: Tensor | None = None,
) -> Tensor:
    """Predictions; on a processor a few rows at a time, so that what they make stays in its caches."""

    def some(rows: slice) -> Tensor:
        return transformer(
            tokens[rows].unflatten(1, grid),
            hidden[rows].unflatten(1, grid),
            predict_at=None if positions is None else positions[rows],
            conditions=None if conditions is None else conditions[rows],
            actions=None if actions is None else actions[rows],
        ).predictions

    size = tokens.shape[1] * transformer.config.width
    count = max(1, CACHED * torch.get_num_threads() // size) if tokens.device.type == "cpu" else len(tokens)
    return torch.cat([some(slice(i, i + count)) for i in range(0, len(tokens), count)])


class CriticScores:
    """A transformer of one prediction a token as the `critic` of the decode loop: how real each token looks, a logit.

    Args:
        network: trained by :class:`maskgen.training.stages.critic.CriticStage`.
        labels: a class a row, or None for an unconditional one.
        grid: of the tokens.
    """

    def __init__(self, network: MaskTransformer, labels: list[int] | None, grid: tuple[int, ...]):
        self.network, self.grid, self.conditions = network, grid, None
        if labels is not None:
            with torch.no_grad():
                given = torch.tensor(labels, device=next(network.parameters()).device)
                self.conditions = network.conditions(given, len(labels))

    def __call__(self, tokens: Tensor, drawn: Tensor) -> Tensor:
        """Scores (b, n); which tokens were drawn just now it does not look at."""
        return by_rows(self.network, tokens, torch.zeros_like(drawn), self.conditions, None, self.grid)[..., 0]


class NextPredictor:
    """A causal transformer as the `predict` of :func:`maskgen.decoding.autoregressive.decode_raster`, for one decode.

    Args:
        transformer: the model.
        labels: a class a row, or None for an unconditional model.
        guided: keep unconditional rows beside, which a guidance scale other than 1 needs from the first token on.
        rows: how many, where `labels` is None.
    """

    def __init__(
        self, transformer: CausalTransformer, labels: list[int] | None = None, guided: bool = False, rows: int = 1
    ):
        self.transformer, self.guided = transformer, guided and labels is not None
        device = next(transformer.parameters()).device
        both = None
        if labels is not None:
            none = [transformer.null_class] * len(labels) if self.guided else []
            both, rows = torch.tensor([*labels, *none], device=device), len(labels) + len(none)
        with torch.no_grad():
            self.conditions = transformer.conditions(both, rows)
        self.past = transformer.room(rows)

    def __call__(self, codes: Tensor | None, guidance_scale: float) -> Tensor:
        if codes is not None and self.guided:
            codes = codes.repeat(2)
        logits = self.transformer.step(codes, self.conditions, self.past).float()
        if not self.guided:
            return logits
        c, u = logits.chunk(2)
        return torch.lerp(u, c, guidance_scale)
