"""How much to hide: mask schedules gamma, and the ratios sampled from them in training.

gamma maps the progress r in [0, 1] to the share of hidden tokens, from 1 at r = 0 to 0 at r = 1 (MaskGIT, Chang et al.
2022, arXiv:2202.04200, section 3.3). Decoding uses the same functions. A ratio is called with the number of rows and a
generator, and returns one ratio per row, float32 (n,) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from maskgen.registry import choose

# Functions of the progress r and of the number of tokens n, which only the last two use.
SCHEDULES: dict[str, Callable[[float, int], float]] = {
    "cosine": lambda r, n: math.cos(math.pi / 2 * r),
    "arccos": lambda r, n: math.acos(r) * 2 / math.pi,
    "linear": lambda r, n: 1 - r,
    "square": lambda r, n: 1 - r**2,
    "cubic": lambda r, n: 1 - r**3,
    "sqrt": lambda r, n: 1 - math.sqrt(r),
    "exponential": lambda r, n: 1 - n ** (r - 1),  # from 1 - 1/n
    "logarithmic": lambda r, n: -math.log(max(r, 1 / n)) / math.log(n),  # 1 up to r = 1/n
}


def gamma(schedule: str, r: float, tokens: int = 256) -> float:
    """The share of `tokens` that is still hidden at progress `r` in [0, 1].

    Raises:
        ValueError: the schedule is unknown, or the progress is outside [0, 1].
    """
    if not 0 <= r <= 1:
        raise ValueError(f"progress is {r}; it must lie in [0, 1]")
    return min(1.0, max(0.0, choose(SCHEDULES, schedule, "mask schedule")(r, max(tokens, 2))))


class Fixed:
    """The same `ratio` for all rows (BEiT 0.4, SimMIM 0.6, MAE 0.75)."""

    def __init__(self, ratio: float = 0.75):
        self.ratio = _share("ratio", ratio)

    def __call__(self, n: int, generator: Generator | None = None) -> Float[Tensor, "n"]:
        return torch.full((n,), self.ratio)


class Uniform:
    """Uniform on [low, high) (MaskViT: 0.5 to 1)."""

    def __init__(self, low: float = 0.0, high: float = 1.0):
        if _share("low", low) > _share("high", high):
            raise ValueError(f"low {low} is above high {high}; give low <= high")
        self.low, self.high = low, high

    def __call__(self, n: int, generator: Generator | None = None) -> Float[Tensor, "n"]:
        return self.low + (self.high - self.low) * torch.rand(n, generator=generator)


class Mixture:
    """Uniform on [low, high) with `probability`, else 0.

    iBOT (arXiv:2111.07832, section 4.1) and AttMask hide nothing in half of the images and 0.3 +- 0.2 in the others.
    Set ``least: 0`` in the sampler; otherwise the ratio 0 hides one token.
    """

    def __init__(self, probability: float = 0.5, low: float = 0.1, high: float = 0.5):
        self.probability, self.uniform = _share("probability", probability), Uniform(low, high)

    def __call__(self, n: int, generator: Generator | None = None) -> Float[Tensor, "n"]:
        chosen = torch.rand(n, generator=generator) < self.probability
        return self.uniform(n, generator) * chosen


class TruncatedNormal:
    """A normal distribution truncated to [low, high] (MAGE, Li et al. 2023, arXiv:2211.09117, section 4.1)."""

    def __init__(self, mean: float = 0.55, std: float = 0.25, low: float = 0.5, high: float = 1.0):
        if _share("low", low) >= _share("high", high) or std <= 0:
            raise ValueError(f"low is {low}, high {high} and std {std}; give low < high and std > 0")
        self.mean, self.std, self.low, self.high = mean, std, low, high

    def __call__(self, n: int, generator: Generator | None = None) -> Float[Tensor, "n"]:
        """Samples by inversion of the cumulative distribution function."""
        low, high = (0.5 * (1 + math.erf((x - self.mean) / self.std / math.sqrt(2))) for x in (self.low, self.high))
        u = low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)
        return (self.mean + self.std * torch.special.ndtri(u)).clamp(self.low, self.high).float()


class Scheduled:
    """gamma(u) with u uniform on [0, 1): the ratios that occur in decoding (MaskGIT)."""

    def __init__(self, schedule: str = "cosine"):
        choose(SCHEDULES, schedule, "mask schedule")
        self.schedule = schedule

    def __call__(self, n: int, generator: Generator | None = None) -> Float[Tensor, "n"]:
        return torch.tensor([gamma(self.schedule, u) for u in torch.rand(n, generator=generator).tolist()])


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it must lie in [0, 1]")
    return value


RATIOS = {
    "fixed": Fixed,
    "uniform": Uniform,
    "mixture": Mixture,
    "truncated_normal": TruncatedNormal,
    **{name: partial(Scheduled, schedule=name) for name in SCHEDULES},
}
