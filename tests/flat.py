"""Networks of tests, whose options are written flat and short."""

from typing import Any

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
