"""A transformer as the `predict` of the decode loop: conditions, guidance and shared work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maskgen.conditioning import stack
from maskgen.decoding.loop import Step
from maskgen.decoding.slices import MOST, SlicedPredictions
from maskgen.transformer.autoregressive import CausalTransformer
from maskgen.transformer.model import MaskTransformer, Prepared

CACHED = 2**18  # tokens x width whose activations the caches of a processor's core hold


class Predictor:
    """Logits of `transformer` for rows under their conditions, guided as ``u + s (c - u)``.

    Conditional and unconditional rows go together; a step of scale 1 makes no unconditional pass. Rows of equal
    conditions on a blank canvas are computed once (this is exact: they are the same input). The conditions are prepared
    once for all steps.

    Args:
        transformer: the model.
        grid: of the tokens.
        given: the inputs of the model's conditioners by name, each with one entry per row; missing ones are null.
        rows: of the batch.
        shown: tokens (rows, n) or (rows, n, d), and bool (rows, n) where they replace the mask token while the position
            is hidden (COMMIT of MAGVIT).
    """

    def __init__(
        self,
        transformer: MaskTransformer,
        grid: tuple[int, ...],
        given: Mapping[str, Any] | None = None,
        rows: int = 1,
        shown: tuple[Tensor, Tensor] | None = None,
    ):
        self.transformer, self.grid = transformer, grid
        device = next(transformer.parameters()).device
        given = {name: value.to(device) for name, value in (given or {}).items() if value is not None}
        positions = grid[:-1] if transformer.codes_per_position > 1 else grid
        self.guided = transformer.conditioner.guided
        with torch.no_grad():
            both = [transformer.conditioner(given, rows, positions)]
            if self.guided:
                both.append(transformer.conditioner.null(given, rows, positions))
            there = [conditioning for conditioning in both if conditioning is not None]
            conditions = stack(there) if there else None
            self.conditions: Prepared | None = None
            if conditions is not None:
                self.conditions = transformer.prepare(conditions, rows * len(both), positions)
            if shown is not None:
                tokens, where = (torch.cat([part.to(device)] * len(both)) for part in shown)
                self.conditions = replace(self.conditions or Prepared(), shown=tokens, shown_at=where)
        self.keys: Any = [0] * rows if conditions is None else conditions.keys
        if shown is not None:
            self.keys = None  # the canvas of each row differs
        self.device = device

    def __call__(self, step: Step) -> Tensor | SlicedPredictions:
        guided = self.guided and step.guidance_scale != 1
        alike = step.blank and self.keys is not None
        each = self.transformer.codebook_size * len(step.tokens) * (2 if guided else 1)
        sliced = self.transformer.codes_per_position == 1 and each * step.positions.shape[1] > MOST
        made = self._blank(step, guided, sliced) if alike else self._logits(step, guided, sliced)

        def logits(made: Tensor) -> Tensor:
            if not guided:
                return made
            c, u = made.chunk(2)
            return torch.lerp(u, c, step.guidance_scale)

        if not sliced:
            return logits(made)
        head = self.transformer.predicted
        return SlicedPredictions(lambda some: logits(head(made[:, some])), made.shape[1], max(1, MOST // each))

    def _blank(self, step: Step, guided: bool, headless: bool) -> Tensor:
        """Each distinct condition once, at all positions; every row then takes its own, where it is asked."""
        assert self.keys is not None
        keys = self.keys[: len(step.tokens) * (2 if guided else 1)]
        once = list(dict.fromkeys(keys))
        first = torch.tensor([keys.index(key) for key in once], device=self.device)
        rows = torch.tensor([once.index(key) for key in keys], device=self.device)
        conditions = None if self.conditions is None else self.conditions.rows(first)
        hidden = step.hidden[:1].expand(len(once), -1)
        tokens = step.tokens.new_zeros(len(hidden), *step.tokens.shape[1:])
        logits = by_rows(self.transformer, tokens, hidden, conditions, None, self.grid, headless)
        return logits[rows[:, None], step.positions.repeat(len(rows) // len(step.positions), 1)]

    def _logits(self, step: Step, guided: bool, headless: bool) -> Tensor:
        """Every row at its hidden positions, and again without its optional conditions where guided."""
        copies = 2 if guided else 1
        tokens, hidden, positions = (torch.cat([x] * copies) for x in (step.tokens, step.hidden, step.positions))
        conditions = None if self.conditions is None else self.conditions.rows(slice(0, len(tokens)))
        return by_rows(self.transformer, tokens, hidden, conditions, positions, self.grid, headless)


def by_rows(
    transformer: MaskTransformer,
    tokens: Tensor,
    hidden: Tensor,
    conditions: Prepared | None,
    positions: Tensor | None,
    grid: tuple[int, ...],
    headless: bool = False,
) -> Tensor:
    """Predictions, or the head's input; on a CPU for a few rows at a time, so that activations stay in its caches."""

    def some(rows: slice) -> Tensor:
        return transformer(
            tokens[rows].unflatten(1, grid),
            hidden[rows].unflatten(1, grid),
            None if conditions is None else conditions.rows(rows),
            predict_at=None if positions is None else positions[rows],
            headless=headless,
        ).predictions

    size = tokens.shape[1] * transformer.config.width
    count = max(1, CACHED * torch.get_num_threads() // size) if tokens.device.type == "cpu" else len(tokens)
    return torch.cat([some(slice(i, i + count)) for i in range(0, len(tokens), count)])


class CriticScores:
    """A transformer of one prediction per token as the `critic` of the decode loop: how real each token looks, a logit.

    Args:
        network: trained by :class:`maskgen.training.stages.critic.CriticStage`.
        grid: of the tokens.
        given: the inputs of its conditioners by name.
        rows: of the batch.
    """

    def __init__(
        self, network: MaskTransformer, grid: tuple[int, ...], given: Mapping[str, Any] | None = None, rows: int = 1
    ):
        self.network, self.grid = network, grid
        device = next(network.parameters()).device
        positions = grid[:-1] if network.codes_per_position > 1 else grid
        read = {name: value.to(device) for name, value in (given or {}).items() if name in network.conditioner}
        with torch.no_grad():
            self.conditions = network.prepare(network.conditioner(read, rows, positions), rows, positions)

    def __call__(self, tokens: Tensor, drawn: Tensor) -> Tensor:
        """Scores (b, n) of all tokens; they do not depend on which tokens were sampled in this step (`drawn`)."""
        return by_rows(self.network, tokens, torch.zeros_like(drawn), self.conditions, None, self.grid)[..., 0]


class NextPredictor:
    """A causal transformer as the `predict` of :func:`maskgen.decoding.autoregressive.decode_raster`, for one decode.

    Args:
        transformer: the model.
        given: the inputs of its conditioners by name, each with one entry per row; missing ones are null.
        rows: of the batch.
        guided: also keep unconditional rows, which a guidance scale other than 1 needs from the first token on.
    """

    def __init__(
        self,
        transformer: CausalTransformer,
        given: Mapping[str, Any] | None = None,
        rows: int = 1,
        guided: bool = False,
    ):
        self.transformer, self.guided = transformer, guided and transformer.conditioner.guided
        device = next(transformer.parameters()).device
        given = {name: value.to(device) for name, value in (given or {}).items()}
        conditioner, grid = transformer.conditioner, transformer.grid
        with torch.no_grad():
            both = [conditioner(given, rows, grid)]
            both += [conditioner.null(given, rows, grid)] if self.guided else []
            there = [conditioning for conditioning in both if conditioning is not None]
            self.modulation = transformer.prepare(stack(there) if there else None, rows * len(both))
        self.past = transformer.room(rows * len(both))

    def __call__(self, codes: Tensor | None, guidance_scale: float) -> Tensor:
        if codes is not None and self.guided:
            codes = codes.repeat(2)
        logits = self.transformer.step(codes, self.modulation, self.past).float()
        if not self.guided:
            return logits
        c, u = logits.chunk(2)
        return torch.lerp(u, c, guidance_scale)
