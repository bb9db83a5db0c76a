"""What the network sees in the place of a replaced token; at a substituted one it is its own learned mask token."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Shaped
from torch import Generator, Tensor

from maskgen.mim.plan import MaskPlan


class Corruption:
    """A subclass says what stands at replaced tokens.

    `source` names what it is made of beside the tokens, None where nothing. `replaces` tells a corruption that needs
    replaced tokens (droppings ``replace_more``, ``replace_all``) from the mask token, which has no use for them.
    """

    source: str | None = None
    replaces = True

    def __call__(
        self, tokens: Tensor, plan: MaskPlan, generator: Generator | None = None, other: Tensor | None = None
    ) -> tuple[Tensor, Bool[Tensor, "b *grid"]]:
        """The tokens that the network sees, and the places where its mask token stands instead.

        Args:
            tokens: codes (b, *grid) or continuous (b, *grid, d).
            plan: on the device of the tokens.
            generator: CPU generator of all random choices.
            other: the tensor of `source`, like the tokens.
        """
        where = plan.replaced[..., None] if tokens.is_floating_point() else plan.replaced
        made = self.content(tokens, generator, other)
        return (tokens if made is None else torch.where(where, made, tokens)), plan.substituted

    def content(
        self, tokens: Shaped[Tensor, "b *n"], generator: Generator | None, other: Tensor | None
    ) -> Tensor | None:
        """What stands at the replaced tokens, like `tokens`; None where nothing may be replaced."""
        raise NotImplementedError


class MaskToken(Corruption):
    """Nothing is replaced: the learned mask token alone (BERT, MaskGIT, BEiT)."""

    replaces = False

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> None:
        return None


class Noise(Corruption):
    """Random codes, or Gaussian noise of standard deviation `std` in the tokens' units (GMML, arXiv:2205.14986).

    Args:
        codebook_size: of random codes; 0 for continuous tokens.
    """

    def __init__(self, std: float = 1.0, codebook_size: int = 0):
        self.std, self.codebook_size = std, codebook_size

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> Tensor:
        if tokens.is_floating_point():
            return self.std * torch.randn(tokens.shape, generator=generator).to(tokens)
        if not self.codebook_size:
            raise ValueError("corruption noise replaces codes by random ones: set its codebook_size")
        return torch.randint(self.codebook_size, tokens.shape, generator=generator).to(tokens)


class Foreign(Corruption):
    """The same place of another picture of the batch (GMML, SiT, arXiv:2104.03602, "alien" patches)."""

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> Tensor:
        return tokens.roll(1, 0)


class Centroids(Corruption):
    """The patch's nearest centroid (CCViT, arXiv:2303.04664): the reconstruction by the target tokenizer."""

    source = "reconstruction"

    def content(self, tokens: Tensor, generator: Generator | None, other: Tensor | None) -> Tensor:
        if other is None:
            raise ValueError("corruption centroids needs a reconstruction; set stage.target_tokenizer")
        return other


CORRUPTIONS = {"mask_token": MaskToken, "noise": Noise, "foreign": Foreign, "centroids": Centroids}
