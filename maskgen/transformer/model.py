"""MaskTransformer: the bidirectional transformer of all our own training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from maskgen.transformer.attention import Backend
from maskgen.transformer.layers import Block, Norm, make_norm, modulate, take
from maskgen.transformer.positions import rotary, sine_cosine


@dataclass
class TransformerOutput:
    """predictions: (b, k, codebook_size) logits at the k tokens asked for; features: (b, k, width) before the head."""

    predictions: Tensor
    features: Tensor


class MaskTransformer(ModelMixin, ConfigMixin):
    """Codes, some of them masked, to logits of every code.

    Args:
        codebook_size: number of codes.
        grid: of the trained token grid, (h, w) for pictures; rotary and sine-cosine positions take other sizes too.
        num_classes: of the class condition; None is unconditional.
        width, depth, heads: of the transformer; `heads` must divide `width`.
        mlp_ratio: hidden width of the MLP over `width` (SwiGLU: at equal weights).
        mlp: ``swiglu`` or ``gelu``.
        norm: ``layer`` or ``rms``; query-key normalisation uses the same.
        qk_norm: normalise queries and keys a head (arXiv:2302.05442).
        positions: added to the tokens: ``learned`` (resized to other grids), ``sincos``, or ``none``. On a blank canvas
            all tokens are alike, so without these no model can tell one place from another.
        rope: also rotate queries and keys by their place, axis by axis: distances, for any grid.
        condition: ``adaln`` (adaLN-zero, each block its own modulation), ``adaln_shared`` (one modulation for all
            blocks plus a learned offset a block, PixArt-alpha, arXiv:2310.00426) or ``in_context`` (a class token).
        class_dropout: probability that a class is DROPPED in training, for classifier-free guidance.
        registers: extra tokens without a place (arXiv:2309.16588).
        dropout: in the residual branches.
        backend: of attention, see :mod:`maskgen.transformer.attention`.
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
        positions: Literal["learned", "sincos", "none"] = "learned",
        rope: bool = True,
        condition: Literal["adaln", "adaln_shared", "in_context"] = "adaln",
        class_dropout: float = 0.1,
        registers: int = 0,
        dropout: float = 0.0,
        backend: Backend = "auto",
    ):
        super().__init__()
        if width % heads or (width // heads) % 4:
            raise ValueError(f"width {width} over heads {heads} must be a multiple of 4, for rotary positions too")
        self.codebook_size, self.grid, self.num_classes = codebook_size, tuple(grid), num_classes
        self.positions, self.rope, self.heads, self.class_dropout = positions, rope, heads, class_dropout
        conditional = num_classes is not None
        self.modulated = conditional and condition != "in_context"
        self.prefix = registers + int(conditional and not self.modulated)

        self.code_embedding = nn.Embedding(codebook_size, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_tokens = nn.Parameter(torch.zeros(registers, width))
        if positions == "learned":
            self.position_embedding = nn.Parameter(torch.zeros(width, *self.grid))
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, width)  # the last row: no class
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, norm, mlp, qk_norm, dropout, self.modulated, backend) for _ in range(depth)
        )
        self.final_norm = make_norm(norm, width, affine=not self.modulated)
        if self.modulated:
            own = condition == "adaln"
            self.modulations = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(depth if own else 1))
            self.offsets = None if own else nn.Parameter(torch.zeros(depth, 6, width))
            self.final_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, codebook_size)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal 0.02, zero biases; adaLN-zero's modulations and the head start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        for parameter in (
            self.mask_token,
            self.register_tokens,
            *([self.position_embedding] if self.positions == "learned" else []),
        ):
            nn.init.trunc_normal_(parameter, std=0.02)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.down.weight")):  # GPT-2's scaling of the residual branches
                parameter.data.mul_((2 * len(self.blocks)) ** -0.5)
        zeros = [self.head] + ([*self.modulations, self.final_modulation] if self.modulated else [])
        for linear in zeros:
            nn.init.zeros_(linear.weight)

    @property
    def null_class(self) -> int:
        """The label that means no class."""
        if self.num_classes is None:
            raise ValueError("this transformer is unconditional: it has no classes")
        return self.num_classes

    def forward(
        self,
        codes: Int[Tensor, "b *grid"],
        masked: Bool[Tensor, "b *grid"],
        labels: Int[Tensor, "b"] | None = None,
        predict_at: Int[Tensor, "b k"] | None = None,
        keep: Int[Tensor, "b m"] | None = None,
        conditions: Float[Tensor, "b c w"] | None = None,
    ) -> TransformerOutput:
        """Predict codes.

        Args:
            codes: int64, in [0, codebook_size); what stands at masked places is ignored.
            masked: True where the mask token stands instead.
            labels: int64 classes in [0, num_classes], num_classes meaning none; None is none for every row.
                In training a class is replaced by none with probability `class_dropout`.
            predict_at: flat token positions to predict, the whole grid when None. The last block and the head run
                at these only; the result is the same.
            keep: flat token positions that the network sees, all when None; the others are dropped. `predict_at`
                must be among them.
            conditions: what :meth:`conditions` made of the labels, in their stead.

        Raises:
            ValueError: labels given to an unconditional model.
        """
        grid = tuple(codes.shape[1:])
        x = torch.where(masked.flatten(1)[..., None], self.mask_token, self.code_embedding(codes.flatten(1)))
        x, table = self._place(x, grid)
        if conditions is None:
            conditions = self.conditions(labels, len(x))
        if keep is not None:
            x, table, predict_at = self._drop(x, table, keep, predict_at)
        x = self._with_prefix(x, conditions)
        queries = None if predict_at is None else predict_at + self.prefix
        *modulations, last = self._modulations(conditions)
        for block, modulation in zip(self.blocks[:-1], modulations):
            x = block(x, modulation, table)
        x = self.blocks[-1](x, modulations[-1], table, queries)
        features = x[:, self.prefix :] if queries is None else x
        h = self.final_norm(features)
        if last is not None:
            h = modulate(h, *last[:, :, None].unbind(1))
        return TransformerOutput(self.head(h), features)

    def _place(self, x: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Add position embeddings; make the rotary table (1, prefix + n, head width)."""
        if self.positions == "learned":
            x = x + self._learned(grid)
        elif self.positions == "sincos":
            x = x + sine_cosine(grid, x.shape[-1], x.device).to(x.dtype)
        return x, rotary(grid, self.prefix, x.shape[-1] // self.heads, x.device)[None] if self.rope else None

    def _learned(self, grid: tuple[int, ...]) -> Float[Tensor, "n w"]:
        """The learned positions, resized linearly to another grid."""
        table: Tensor = self.position_embedding
        if grid != self.grid:
            mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(grid)]
            table = nn.functional.interpolate(table[None], grid, mode=mode, align_corners=False)[0]
        return table.flatten(1).T

    def conditions(self, labels: Int[Tensor, "b"] | None, batch: int) -> Float[Tensor, "b c w"] | None:
        """What the classes do to the network: nothing, a token (in_context), or six modulations a block, (scale, shift,
        gate) of attention and of the MLP, and two before the head. A decode makes them once for all steps."""
        condition = self._condition(labels, batch, self.mask_token.device)
        if condition is None or not self.modulated:
            return None if condition is None else condition[:, None]
        h = nn.functional.silu(condition)
        each = [m(h).unflatten(-1, (6, -1)) for m in self.modulations]
        if self.offsets is not None:
            each = [each[0] + offset for offset in self.offsets]
        return torch.cat([*each, self.final_modulation(h).unflatten(-1, (2, -1))], 1)

    def _condition(self, labels: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
        if self.num_classes is None:
            if labels is not None:
                raise ValueError("class labels given to an unconditional transformer")
            return None
        if labels is None:
            labels = torch.full((batch,), self.null_class, device=device)
        if self.training and self.class_dropout > 0:
            dropped = torch.rand(batch, device=device) < self.class_dropout
            labels = labels.masked_fill(dropped, self.null_class)
        return self.class_embedding(labels)

    def _drop(
        self, x: Tensor, table: Tensor | None, keep: Tensor, predict_at: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Only the tokens at `keep`; `predict_at` becomes positions among them."""
        if table is not None:
            places = torch.cat(
                [torch.arange(self.prefix, device=keep.device).expand(len(keep), -1), keep + self.prefix], 1
            )
            table = take(table.expand(len(keep), -1, -1), places)
        if predict_at is not None:
            order = torch.full(x.shape[:2], -1, device=keep.device).scatter(
                1, keep, torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
            )
            predict_at = order.gather(1, predict_at)
        return take(x, keep), table, predict_at

    def _with_prefix(self, x: Tensor, conditions: Tensor | None) -> Tensor:
        prefix = [self.register_tokens.expand(len(x), -1, -1)] if len(self.register_tokens) else []
        if conditions is not None and not self.modulated:
            prefix.append(conditions)
        return torch.cat([*(p.to(x.dtype) for p in prefix), x], 1) if prefix else x

    def _modulations(self, conditions: Float[Tensor, "b c w"] | None) -> list[Float[Tensor, "b m w"]] | list[None]:
        """Six a block, two before the head."""
        if not self.modulated or conditions is None:
            return [None] * (len(self.blocks) + 1)
        return list(conditions.split(6, 1))


TRANSFORMERS = {"mask_transformer": MaskTransformer}
