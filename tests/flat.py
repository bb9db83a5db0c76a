"""Networks of tests, whose options are written flat and short."""

from typing import Any

import torch

from maskgen.conditioning import Conditioning
from maskgen.transformer.autoregressive import CausalTransformer, from_flat
from maskgen.transformer.model import MaskTransformer
from maskgen.transformer.specs import upgraded


def transformer(
    codebook_size: int = 0, grid: Any = (4, 4), num_classes: int | None = None, **options: Any
) -> MaskTransformer:
    """A MaskTransformer from the flat options that :func:`maskgen.transformer.specs.upgraded` knows."""
    return MaskTransformer(
        **upgraded({"codebook_size": codebook_size, "grid": grid, "num_classes": num_classes, **options})
    )


def causal(codebook_size: int, grid: Any, num_classes: int | None = None, **options: Any) -> CausalTransformer:
    """A CausalTransformer from flat options."""
    return CausalTransformer(
        **from_flat({"codebook_size": codebook_size, "grid": grid, "num_classes": num_classes, **options})
    )


def spec(**options: Any) -> dict[str, Any]:
    """The nested spec of ``stage.model`` from flat options."""
    made = upgraded(options)
    if "head_type" not in options:
        del made["head"]
    return made


def labelled(model: Any, labels: torch.Tensor | None, grid: Any = None) -> Conditioning | None:
    """What `model` takes for these classes, on its own grid or another."""
    rows = 1 if labels is None else len(labels)
    return model.conditioner({"label": labels}, rows, tuple(grid or model.grid))


def merged(*specs: Any) -> dict[str, Any]:
    """Nested specs, the later ones over the earlier."""
    made: dict[str, Any] = {}
    for each in specs:
        for key, value in each.items():
            both = isinstance(value, dict) and isinstance(made.get(key), dict)
            made[key] = merged(made[key], value) if both else value
    return made
