"""Conditioners turn the user's inputs into a `Conditioning`. They also own condition dropout and the null condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskgen.conditioning.conditioning import Conditioning, merge


class Conditioner(nn.Module):
    """Turns one input into a `Conditioning`.

    A subclass sets `reads`, the name of its input in a batch, and defines :meth:`embed` and :meth:`null`.
    :meth:`known` returns the constructor arguments that follow from the training data.

    Args:
        width: width of the network, the `w` of `Conditioning`.
        dropout: probability that a row gets the null condition in training, for classifier-free guidance
            (arXiv:2207.12598).
    """

    reads = ""
    pools = False  # whether it produces a pooled vector
    optional = True  # whether it can be left out

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.width, self.dropout = width, dropout

    @classmethod
    def known(cls, dataset: Any, example: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments that follow from the data set and from one example batch."""
        return {}

    def embed(self, given: Any, grid: tuple[int, ...], dropped: Tensor | None) -> Conditioning:
        """The conditioning of `given`. Rows where `dropped` (bool (b,) or None) is True get the null condition."""
        raise NotImplementedError

    def null(self, rows: int, grid: tuple[int, ...]) -> Conditioning:
        """The conditioning of `rows` rows without this condition, with the same fields as :meth:`embed`'s.

        Raises:
            ValueError: this condition cannot be left out.
        """
        raise NotImplementedError

    def forward(self, given: Any, grid: tuple[int, ...]) -> Conditioning:
        """The conditioning of `given`, a batch; in training each row is dropped with probability `dropout`."""
        dropped = None
        if self.training and self.dropout > 0:
            dropped = torch.rand(len(given), device=given.device) < self.dropout
        return self.embed(given, grid, dropped)


class LabelConditioner(Conditioner):
    """One learned vector per label, int64 (b,) in [0, count]; the label `count` is the null condition."""

    pools = True

    def __init__(self, width: int, count: int, dropout: float = 0.1):
        super().__init__(width, dropout)
        self.count = count
        self.embedding = nn.Embedding(count + 1, width)  # the last row is the null condition

    def embed(self, given: Int[Tensor, "b"], grid: tuple[int, ...], dropped: Tensor | None) -> Conditioning:
        labels = given if dropped is None else given.masked_fill(dropped, self.count)
        keys = None if self.training else tuple(labels.tolist())
        return Conditioning(pooled=self.embedding(labels), keys=keys)

    def null(self, rows: int, grid: tuple[int, ...]) -> Conditioning:
        labels = torch.full((rows,), self.count, device=self.embedding.weight.device)
        return self(labels, grid)


class ClassConditioner(LabelConditioner):
    """The class of an image, from the batch's `label`."""

    reads = "label"

    @classmethod
    def known(cls, dataset: Any, example: Mapping[str, Any]) -> dict[str, Any]:
        return {"count": len(dataset.class_names)}


class TaskConditioner(LabelConditioner):
    """A task and, if it has one, its class, from the batch's `label` (MAGVIT, arXiv:2212.05199, section 3.2)."""

    reads = "label"

    def __init__(self, width: int, count: int, dropout: float = 0.0):
        super().__init__(width, count, dropout)


class ActionConditioner(Conditioner):
    """One action per frame, float (b, t, dim), added to all tokens of the frame (the grid's first axis)."""

    reads = "actions"
    optional = False

    def __init__(self, width: int, dim: int):
        super().__init__(width)
        self.dim = dim
        self.embedding = nn.Linear(dim, width)

    @classmethod
    def known(cls, dataset: Any, example: Mapping[str, Any]) -> dict[str, Any]:
        return {"dim": example["actions"].shape[-1]}

    def embed(self, given: Float[Tensor, "b t a"], grid: tuple[int, ...], dropped: Tensor | None) -> Conditioning:
        if tuple(given.shape[1:]) != (grid[0], self.dim):
            raise ValueError(
                f"actions have the shape {tuple(given.shape)}; this network reads {self.dim} numbers for each of "
                f"{grid[0]} frames: give (batch, {grid[0]}, {self.dim})"
            )
        vectors = self.embedding(given.to(self.embedding.weight.dtype))
        keys = None if self.training else tuple(row.cpu().numpy().tobytes() for row in given.float())
        return Conditioning(features=vectors.repeat_interleave(math.prod(grid[1:]), 1), keys=keys)

    def null(self, rows: int, grid: tuple[int, ...]) -> Conditioning:
        raise ValueError("this network reads actions, one per frame of the tokens: give actions")


CONDITIONERS: dict[str, Any] = {"class": ClassConditioner, "task": TaskConditioner, "actions": ActionConditioner}


class Conditioners(nn.ModuleDict):
    """All conditioners of a network, by the name of what each reads."""

    def forward(self, given: Mapping[str, Any] | None, rows: int, grid: tuple[int, ...]) -> Conditioning | None:
        """The conditioning of a batch; None where the network has no conditioner.

        Args:
            given: inputs by name. An input that is missing or None becomes the null condition.
            rows: number of rows of the batch.
            grid: of the tokens.

        Raises:
            ValueError: no conditioner reads an input, or an input is missing that cannot be left out.
        """
        there = {name: value for name, value in (given or {}).items() if value is not None}
        unknown = set(there) - set(self.keys())
        if unknown:
            what = ", ".join(sorted(unknown))
            has = f"it reads {', '.join(self.keys())}" if len(self) else "it is unconditional"
            raise ValueError(f"this network takes no {what}: {has}; leave {what} out")
        if not len(self):
            return None
        parts: dict[str, Any] = dict(self.items())
        each = [p(there[name], grid) if name in there else p.null(rows, grid) for name, p in parts.items()]
        return merge(each)

    def null(self, given: Mapping[str, Any] | None, rows: int, grid: tuple[int, ...]) -> Conditioning | None:
        """The conditioning for the unconditional pass of guidance: optional conditions become null, the others stay."""
        kept = {name: value for name, value in (given or {}).items() if name not in self or not self._optional(name)}
        return self(kept, rows, grid)

    @property
    def guided(self) -> bool:
        """Whether there is a condition that guidance can leave out."""
        return any(self._optional(name) for name in self.keys())

    def _optional(self, name: str) -> bool:
        part: Any = self[name]
        return part.optional
