"""What is to be predicted."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor


class Codes:
    """The tokenizer's codes themselves (BEiT, MaskGIT, MAGE)."""

    def __call__(self, tokens: Int[Tensor, "b *grid"]) -> Int[Tensor, "b *grid"]:
        return tokens


TARGETS = {"codes": Codes}
