"""Position embeddings for grids in 1 to 3 dimensions: rotary, sine-cosine and learned."""

from __future__ import annotations

from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Positions = Literal["learned", "learned_sum", "sincos", "none"]


def coordinates(grid: tuple[int, ...], device: torch.device | None = None) -> Float[Tensor, "n axes"]:
    """The integer coordinates of the tokens of `grid` in row-major order, as float32."""
    axes = [torch.arange(s, device=device, dtype=torch.float32) for s in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def _angles(positions: Float[Tensor, "n axes"], dim: int, base: float) -> Float[Tensor, "n half"]:
    """`dim` // 2 angles per position, split evenly over the axes; any remainder has the angle 0."""
    axes = positions.shape[1]
    each = dim // 2 // axes
    frequency = base ** (-torch.arange(each, device=positions.device, dtype=torch.float32) / each)
    angles = rearrange(positions[:, :, None] * frequency, "n a f -> n (a f)")
    return torch.nn.functional.pad(angles, (0, dim // 2 - axes * each))


def rotary(grid: tuple[int, ...], prefix: int, dim: int, device: torch.device | None = None) -> Float[Tensor, "n dim"]:
    """The rotary table of `prefix` unrotated tokens and of a grid: cosines, then sines (RoFormer, arXiv:2104.09864).

    The frequencies go from 1 down to 1/100, because grids are short compared with sentences.
    """
    angles = torch.nn.functional.pad(_angles(coordinates(grid, device), dim, base=100.0), (0, 0, prefix, 0))
    return torch.cat([angles.cos(), angles.sin()], -1)


def rotate(x: Float[Tensor, "b h n d"], table: Float[Tensor, "*b n d"]) -> Float[Tensor, "b h n d"]:
    """Rotates each pair (x[i], x[i + d/2]) by its angle in a `table` from :func:`rotary`."""
    cos, sin = table.to(x.dtype).unsqueeze(-3).chunk(2, -1)
    a, b = x.chunk(2, -1)
    return torch.addcmul(x * torch.cat([cos, cos], -1), torch.cat([b, a], -1), torch.cat([-sin, sin], -1))


def sine_cosine(grid: tuple[int, ...], dim: int, device: torch.device | None = None) -> Float[Tensor, "n dim"]:
    """Fixed position embeddings, sines and cosines of each axis (MAE, arXiv:2111.06377, appendix A)."""
    angles = _angles(coordinates(grid, device), dim, base=10000.0)
    return torch.cat([angles.sin(), angles.cos()], -1)


def stretched(table: Float[Tensor, "w *grid"], grid: tuple[int, ...]) -> Float[Tensor, "n w"]:
    """A learned table, resized linearly from its grid to `grid`."""
    if tuple(table.shape[1:]) != grid:
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(grid)]
        table = torch.nn.functional.interpolate(table[None], grid, mode=mode, align_corners=False)[0]
    return table.flatten(1).T


def add_positions(module: Any, width: int, grid: tuple[int, ...]) -> None:
    """Adds to `module` the tables that :func:`with_positions` reads.

    Raises:
        ValueError: ``learned_sum`` with a grid of one axis.
    """
    if module.positions == "learned":
        module.position_embedding = nn.Parameter(torch.zeros(width, *grid))
    elif module.positions == "learned_sum":
        if len(grid) < 2:
            raise ValueError(f"positions: learned_sum needs a grid of 2 axes or more, got {grid}; set learned")
        module.first_embedding = nn.Parameter(torch.zeros(width, grid[0]))
        module.position_embedding = nn.Parameter(torch.zeros(width, *grid[1:]))


def with_positions(module: Any, x: Float[Tensor, "b n w"], grid: tuple[int, ...]) -> Float[Tensor, "b n w"]:
    """`x` plus the position embeddings of the module, resized to `grid`."""
    if module.positions == "learned":
        x = x + stretched(module.position_embedding, grid)
    elif module.positions == "learned_sum":
        first, others = stretched(module.first_embedding, grid[:1]), stretched(module.position_embedding, grid[1:])
        x = x + (first[:, None] + others).flatten(0, 1)
    elif module.positions == "sincos":
        x = x + sine_cosine(grid, x.shape[-1], x.device).to(x.dtype)
    return x
