"""CausalTransformer: the same blocks as MaskTransformer's, each token seeing those before it; the baseline."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskgen.transformer.attention import Backend
from maskgen.transformer.layers import Block, Norm, Past, class_vectors, initialise, make_norm, modulate
from maskgen.transformer.positions import rotary


class CausalTransformer(ModelMixin, ConfigMixin):
    """Codes in raster order to logits of the next one (VQGAN's GPT, arXiv:2012.09841, and LlamaGen, arXiv:2406.06525).

    Place i is fed the code of place i - 1, a learned start at place 0, with the position of place i; classes work by
    adaLN-zero. Width, depth, heads and the other arguments are :class:`maskgen.transformer.model.MaskTransformer`'s,
    and so is the number of weights but for the mask token.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        codebook_size: int,
        grid: tuple[int, ...] | list[int],
        num_classes: int | None = None,
        width: int = 768,
        depth: int = 24,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        mlp: Literal["swiglu", "gelu"] = "swiglu",
        norm: Norm = "layer",
        qk_norm: bool = True,
        class_dropout: float = 0.1,
        dropout: float = 0.0,
        backend: Backend = "auto",
    ):
        super().__init__()
        if width % heads or (width // heads) % 4:
            raise ValueError(f"width {width} over heads {heads} must be a multiple of 4, for rotary positions too")
        self.codebook_size, self.grid, self.num_classes = codebook_size, tuple(grid), num_classes
        self.heads, self.class_dropout = heads, class_dropout
        modulated = num_classes is not None
        self.code_embedding = nn.Embedding(codebook_size, width)
        self.start = nn.Parameter(torch.zeros(width))
        self.position_embedding = nn.Parameter(torch.zeros(self.tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, norm, mlp, qk_norm, dropout, modulated, backend) for _ in range(depth)
        )
        self.final_norm = make_norm(norm, width, affine=not modulated)
        self.head = nn.Linear(width, codebook_size)
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, width)  # the last row: no class
            self.modulations = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(depth))
            self.final_modulation = nn.Linear(width, 2 * width)
        initialise(self, [self.head, *([*self.modulations, self.final_modulation] if modulated else [])])

    @property
    def tokens(self) -> int:
        """n, the places of the grid."""
        return int(torch.Size(self.grid).numel())

    @property
    def null_class(self) -> int:
        """The label that means no class."""
        if self.num_classes is None:
            raise ValueError("this transformer is unconditional: it has no classes")
        return self.num_classes

    def forward(self, codes: Int[Tensor, "b *grid"], labels: Int[Tensor, "b"] | None = None) -> Float[Tensor, "b n v"]:
        """Logits of every code from those before it (teacher forcing): what the cross-entropy is taken of.

        Raises:
            ValueError: labels given to an unconditional model, or codes of another grid than the trained one.
        """
        if tuple(codes.shape[1:]) != self.grid:
            raise ValueError(f"codes have the grid {tuple(codes.shape[1:])}, this model was made for {self.grid}")
        before = self.code_embedding(codes.flatten(1)[:, :-1])
        x = torch.cat([self.start.expand(len(codes), 1, -1), before], 1) + self.position_embedding
        return self._blocks(x, self.conditions(labels, len(codes)), self._table(), None)

    def step(
        self, codes: Int[Tensor, "b"] | None, conditions: Float[Tensor, "b c w"] | None, past: list[Past]
    ) -> Float[Tensor, "b v"]:
        """Logits of the next place, its past's keys and values being kept in `past`; equal to :meth:`forward`'s.

        Args:
            codes: of the place before; None at the first.
            conditions: of :meth:`conditions`; past: of :meth:`room`, filled with one more token.
        """
        i = past[0].length
        x = self.start.expand(past[0].room.shape[1], -1) if codes is None else self.code_embedding(codes)
        x = (x + self.position_embedding[i])[:, None]
        return self._blocks(x, conditions, self._table()[:, i : i + 1], past)[:, 0]

    def room(self, rows: int) -> list[Past]:
        """Empty room for the keys and values of `rows` rows, a layer each."""
        width = self.start.shape[0]
        shape = (2, rows, self.heads, self.tokens, width // self.heads)
        return [Past(self.start.new_zeros(shape).detach()) for _ in self.blocks]

    def conditions(self, labels: Int[Tensor, "b"] | None, batch: int) -> Float[Tensor, "b c w"] | None:
        """What the classes do: six modulations a block and two before the head, or nothing. No labels: no class.

        Raises:
            ValueError: labels given to an unconditional model.
        """
        vectors = class_vectors(self, labels, batch)
        if vectors is None:
            return None
        h = nn.functional.silu(vectors)
        each = [linear(h).unflatten(-1, (-1, h.shape[-1])) for linear in [*self.modulations, self.final_modulation]]
        return torch.cat(each, 1)

    def _table(self) -> Float[Tensor, "1 n d"]:
        return rotary(self.grid, 0, self.start.shape[0] // self.heads, self.start.device)[None]

    def _blocks(
        self,
        x: Float[Tensor, "b n w"],
        conditions: Float[Tensor, "b c w"] | None,
        table: Float[Tensor, "1 n d"],
        past: list[Past] | None,
    ) -> Float[Tensor, "b n v"]:
        parts = [None] * (len(self.blocks) + 1) if conditions is None else conditions.split(6, 1)
        for i, block in enumerate(self.blocks):
            x = block(x, parts[i], table, past=None if past is None else past[i], causal=past is None)
        x = self.final_norm(x)
        if parts[-1] is not None:
            x = modulate(x, *parts[-1][:, :, None].unbind(1))
        return self.head(x)
