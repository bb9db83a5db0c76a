"""CausalTransformer: the autoregressive baseline, with the blocks of MaskTransformer and causal attention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskgen.conditioning import CONDITIONERS, Conditioners, Conditioning
from maskgen.registry import Nested, Part, build, build_spec
from maskgen.transformer.adaln import AdaLN
from maskgen.transformer.layers import Block, Past, initialise, make_norm, modulate
from maskgen.transformer.model import renamed
from maskgen.transformer.positions import rotary
from maskgen.transformer.specs import BlockSpec, ConditioningSpec, check_sides, is_flat, upgraded
from maskgen.upgrade import load_saved, rename_on_load


def from_flat(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the flat arguments of version 0.1 into those of CausalTransformer."""
    given = dict(flat)
    size = given.pop("codebook_size")
    made = upgraded(given)
    made.pop("head")
    return {"codebook_size": size, **made}


def is_old(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` was saved by version 0.1."""
    return is_flat({key: value for key, value in config.items() if key != "codebook_size"})


class CausalTransformer(ModelMixin, ConfigMixin):
    """Predicts each code from the codes before it in raster order (VQGAN, arXiv:2012.09841; LlamaGen,
    arXiv:2406.06525).

    The input at position i is the code of position i - 1 (at position 0 a learned start vector) plus the embedding of
    position i. Pooled conditions use adaLN-zero. Apart from the mask token, the network has the same weights as a
    MaskTransformer with the same options.

    Args:
        codebook_size: number of codes.
        grid: of the tokens.
        width: width of the tokens.
        depth: number of blocks.
        block, conditioning: see :mod:`maskgen.transformer.specs`; of `conditioning` only ``inputs`` is used.

    Raises:
        ValueError: the heads do not divide the width, or an option is unknown.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        codebook_size: int,
        grid: tuple[int, ...] | list[int],
        width: int = 768,
        depth: int = 24,
        block: Annotated[Any, Nested(BlockSpec, ("windows",))] = {},  # noqa: B006
        conditioning: Annotated[Any, Nested(ConditioningSpec, ("inputs", "pooled", "tokens"))] = {},  # noqa: B006
    ):
        super().__init__()
        spec = build_spec(BlockSpec, block, "block")
        inputs = build_spec(ConditioningSpec, conditioning, "conditioning").inputs
        check_sides(width, spec.heads, True, "block")
        self.codebook_size, self.grid, self.heads = codebook_size, tuple(grid), spec.heads
        conditioners = Conditioners(
            {name: build(Part(CONDITIONERS), part, width=width) for name, part in sorted(inputs.items())}
        )
        self.modulated = bool(len(conditioners))
        if self.modulated and spec.norm_position == "post":
            raise ValueError("block.norm_position: post does not go with adaLN; set block.norm_position: pre")
        self.code_embedding = nn.Embedding(codebook_size, width)
        self.start = nn.Parameter(torch.zeros(width))
        self.position_embedding = nn.Parameter(torch.zeros(self.tokens, width))
        rates = [spec.stochastic_depth * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, spec, self.modulated, left_out=rate) for rate in rates)
        self.final_norm = make_norm(spec.norm, width, affine=not self.modulated)
        self.head = nn.Linear(width, codebook_size)
        self.conditioner = conditioners
        if self.modulated:
            self.adaln = AdaLN(width, depth, shared=False)
        initialise(self, [self.head, *(self.adaln.linears if self.modulated else [])])
        rename_on_load(self, _renamed)

    def __getattr__(self, name: str) -> Any:
        """Returns parts of the network; diffusers would return the options of the same names."""
        return nn.Module.__getattr__(self, name)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """See diffusers' ``ModelMixin.from_pretrained``. Folders of version 0.1 are translated."""
        path: str | Path = pretrained_model_name_or_path
        return load_saved(cls, super().from_pretrained, path, is_old, from_flat, **options)

    @property
    def tokens(self) -> int:
        """The number of positions of the grid."""
        return int(torch.Size(self.grid).numel())

    def forward(
        self, codes: Int[Tensor, "b *grid"], conditioning: Conditioning | None = None
    ) -> Float[Tensor, "b n v"]:
        """The logits of every code given the codes before it (teacher forcing).

        Args:
            codes: int64 in [0, codebook_size).
            conditioning: of the rows; None is the null condition for every row.

        Raises:
            ValueError: the grid of `codes` is not the trained one.
        """
        if tuple(codes.shape[1:]) != self.grid:
            raise ValueError(f"codes have the grid {tuple(codes.shape[1:])}, this model was made for {self.grid}")
        before = self.code_embedding(codes.flatten(1)[:, :-1])
        x = torch.cat([self.start.expand(len(codes), 1, -1), before], 1) + self.position_embedding
        return self._blocks(x, self.prepare(conditioning, len(codes)), self._table(), None)

    def step(
        self, codes: Int[Tensor, "b"] | None, conditions: Float[Tensor, "b c w"] | None, past: list[Past]
    ) -> Float[Tensor, "b v"]:
        """The logits at the next position, equal to those of :meth:`forward`.

        Args:
            codes: codes at the previous position; None at the first position.
            conditions: from :meth:`prepare`.
            past: keys and values from :meth:`room`; those of this position are added to it.
        """
        i = past[0].length
        x = self.start.expand(past[0].room.shape[1], -1) if codes is None else self.code_embedding(codes)
        x = (x + self.position_embedding[i])[:, None]
        return self._blocks(x, conditions, self._table()[:, i : i + 1], past)[:, 0]

    def room(self, rows: int) -> list[Past]:
        """Empty memory for the keys and values of `rows` rows, one per block."""
        width = self.start.shape[0]
        shape = (2, rows, self.heads, self.tokens, width // self.heads)
        return [Past(self.start.new_zeros(shape).detach()) for _ in self.blocks]

    def prepare(self, conditioning: Conditioning | None, rows: int) -> Float[Tensor, "b c w"] | None:
        """The modulations of the blocks, or None if the network is unconditional. A `conditioning` of None is the null
        condition."""
        if conditioning is None:
            conditioning = self.conditioner(None, rows, self.grid)
        return None if conditioning is None or conditioning.pooled is None else self.adaln(conditioning.pooled)

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


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of version 0.1."""
    kept = {key: value for key, value in state.items() if key.startswith("code_embedding.")}
    return kept | renamed({key: value for key, value in state.items() if key not in kept})
