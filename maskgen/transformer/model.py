"""MaskTransformer: the bidirectional transformer of all our own training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from maskgen.transformer.attention import Backend, Ragged
from maskgen.transformer.layers import Block, Norm, make_norm, modulate, take
from maskgen.transformer.positions import rotary, sine_cosine, stretched
from maskgen.transformer.relative import RelativeBias, biases


@dataclass
class TransformerOutput:
    """What the transformer makes.

    predictions: (b, k, predictions) logits or values at the k tokens asked for.
    features: (b, k, width) there, before the head; with a decoder (b, m, width), the encoder's at the m tokens it saw.
    prefix: (b, prefix, width) of the tokens without a place (registers, a class in context), the encoder's.
    """

    predictions: Tensor
    features: Tensor
    prefix: Tensor


class MaskTransformer(ModelMixin, ConfigMixin):
    """Tokens, some of them masked, to logits of every code, or to values.

    Tokens are codes, or continuous: float vectors (patches as they are, bits).

    With a decoder it is asymmetric, as MAE (arXiv:2111.06377) and MAGE (arXiv:2211.09117): the encoder sees the tokens
    kept; the decoder sees all places, `pad` where the encoder saw none or saw a mask token, and predicts.

    Args:
        codebook_size: number of codes; 0 where tokens are continuous.
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
        relative_bias: learned biases of the (encoder's) attention scores by the offset of query and key (BEiT,
            arXiv:2106.08254): one ``shared`` by all blocks, or each ``block`` its own; resized to other grids.
        embedding_norm: a LayerNorm on tokens and positions together, before the blocks (BERT, MAGE).
        condition: ``adaln`` (adaLN-zero, each block its own modulation), ``adaln_shared`` (one modulation for all
            blocks plus a learned offset a block, PixArt-alpha, arXiv:2310.00426) or ``in_context`` (a class token).
        class_dropout: probability that a class is DROPPED in training, for classifier-free guidance.
        registers: extra tokens without a place (arXiv:2309.16588); the first is the class token where one is pooled.
        decoder_depth, decoder_width, decoder_heads: of the decoder; depth 0 is none, a width or heads of 0 is the
            encoder's. An adaLN condition needs the encoder's width.
        pad: what the decoder sees at hidden places: a learned ``mask_token`` (MAE), or the encoder's ``class_token``
            (MAGE), which needs a register.
        token_dim: of continuous tokens; 0 where tokens are codes.
        predictions: values predicted a token; 0 is as many as codes, or as a token has numbers.
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
        decoder_depth: int = 0,
        decoder_width: int = 0,
        decoder_heads: int = 0,
        pad: Literal["mask_token", "class_token"] = "mask_token",
        token_dim: int = 0,
        predictions: int = 0,
        relative_bias: Literal["none", "shared", "block"] = "none",
        embedding_norm: bool = False,
    ):
        super().__init__()
        decoder_width, decoder_heads = decoder_width or width, decoder_heads or heads
        for w, h, what in ((width, heads, ""), (decoder_width, decoder_heads, "decoder_")):
            if w % h or (rope and (w // h) % 4):
                raise ValueError(f"{what}width {w} over heads {h} must be whole, with rope also a multiple of 4")
        if (codebook_size > 0) == (token_dim > 0):
            raise ValueError(f"tokens are codes or continuous: codebook_size {codebook_size}, token_dim {token_dim}")
        self.codebook_size, self.grid, self.num_classes = codebook_size, tuple(grid), num_classes
        self.positions, self.rope, self.heads, self.class_dropout = positions, rope, heads, class_dropout
        conditional = num_classes is not None
        self.modulated = conditional and condition != "in_context"
        self.prefix = registers + int(conditional and not self.modulated)
        if decoder_depth and self.modulated and decoder_width != width:
            raise ValueError("an adaLN condition needs decoder_width 0, the encoder's; or set condition: in_context")
        if decoder_depth and pad == "class_token" and not registers:
            raise ValueError("pad: class_token needs a register; set registers: 1")

        if token_dim:
            self.token_embedding = nn.Linear(token_dim, width)
        else:
            self.code_embedding = nn.Embedding(codebook_size, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_tokens = nn.Parameter(torch.zeros(registers, width))
        if positions == "learned":
            self.position_embedding = nn.Parameter(torch.zeros(width, *self.grid))
        self.embedded = nn.LayerNorm(width, eps=1e-6) if embedding_norm else nn.Identity()
        tables = {"none": 0, "shared": 1, "block": depth}[relative_bias]
        self.relative = nn.ModuleList(RelativeBias(self.grid, heads) for _ in range(tables))
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, width)  # the last row: no class
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, norm, mlp, qk_norm, dropout, self.modulated, backend) for _ in range(depth)
        )
        self.decoder: Decoder | None = None
        if decoder_depth:
            decoder_blocks = [
                Block(decoder_width, decoder_heads, mlp_ratio, norm, mlp, qk_norm, dropout, self.modulated, backend)
                for _ in range(decoder_depth)
            ]
            self.decoder = Decoder(width, decoder_width, decoder_heads, decoder_blocks, self.grid, positions, rope, pad)
            self.encoder_norm = make_norm(norm, width)
        last_width = decoder_width if decoder_depth else width
        self.final_norm = make_norm(norm, last_width, affine=not self.modulated)
        if self.modulated:
            own, all_blocks = condition == "adaln", depth + decoder_depth
            self.modulations = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(all_blocks if own else 1))
            self.offsets = None if own else nn.Parameter(torch.zeros(all_blocks, 6, width))
            self.final_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(last_width, predictions or codebook_size or token_dim)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal 0.02, zero biases; adaLN-zero's modulations and the head start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.split(".")[-1] in ("mask_token", "register_tokens", "position_embedding"):
                nn.init.trunc_normal_(parameter, std=0.02)
        for blocks in (self.blocks, *([self.decoder.blocks] if self.decoder else [])):
            for name, parameter in blocks.named_parameters():
                if name.endswith(("attention.out.weight", "mlp.down.weight")):  # GPT-2's scaling of residual branches
                    parameter.data.mul_((2 * len(blocks)) ** -0.5)
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
        tokens: Shaped[Tensor, "b *grid"],
        masked: Bool[Tensor, "b *grid2"],
        labels: Int[Tensor, "b"] | None = None,
        predict_at: Int[Tensor, "b k"] | None = None,
        keep: Int[Tensor, "b m"] | None = None,
        conditions: Float[Tensor, "b c w"] | None = None,
        kept: Sequence[int] | None = None,
    ) -> TransformerOutput:
        """Predict tokens.

        Args:
            tokens: codes, int64 in [0, codebook_size), or continuous (b, *grid, d); what stands at masked places is
                ignored.
            masked: bool (b, *grid), True where the mask token stands instead.
            labels: int64 classes in [0, num_classes], num_classes meaning none; None is none for every row.
                In training a class is replaced by none with probability `class_dropout`.
            predict_at: flat token positions to predict, the whole grid when None. The last block and the head run
                at these only; the result is the same.
            keep: flat token positions that the network (with a decoder: the encoder) sees, all when None; the others
                are dropped. Without a decoder `predict_at` must be among them.
            conditions: what :meth:`conditions` made of the labels, in their stead.
            kept: where rows keep different numbers of tokens, how many each; each row's stand at the front of `keep`,
                which is padded with any positions.

        Raises:
            ValueError: labels given to an unconditional model.
        """
        grid = tuple(masked.shape[1:])
        ragged = None if kept is None else Ragged.of(kept, masked.device)
        x = torch.where(masked.flatten(1)[..., None], self.mask_token, self._embed(tokens))
        x, table = placed(self, x, grid, self.prefix)
        x, scores = self.embedded(x), biases(self.relative, len(self.blocks), grid, self.prefix, keep)
        if conditions is None:
            conditions = self.conditions(labels, len(x))
        if keep is not None:
            at = predict_at if self.decoder is None else None
            x, table, at = self._drop(x, table, keep, ragged, at)
            predict_at = at if self.decoder is None else predict_at
        x = self._with_prefix(x, conditions)
        rows = None if ragged is None else ragged.after(self.prefix)
        queries = None if predict_at is None else predict_at + self.prefix
        *modulations, last = self._modulations(conditions)
        count = len(self.blocks) - (self.decoder is None)
        for block, modulation, bias in zip(self.blocks[:count], modulations, scores):
            x = block(x, modulation, table, None, rows, bias)
        if self.decoder is None:
            before, x = x, self.blocks[-1](x, modulations[-1], table, queries, rows, scores[-1])
            features = x[:, self.prefix :] if queries is None else x
            prefix = (x if queries is None else before)[:, : self.prefix]
            h = features
        else:
            x = self.encoder_norm(x)
            prefix, features = x[:, : self.prefix], x[:, self.prefix :]
            h = self.decoder(prefix, features, masked, keep, ragged, modulations[count:], queries)
        h = self.final_norm(h)
        if last is not None:
            h = modulate(h, *last[:, :, None].unbind(1))
        return TransformerOutput(self.head(h), features, prefix)

    def layers(
        self, tokens: Shaped[Tensor, "b *grid"], labels: Int[Tensor, "b"] | None = None
    ) -> list[Float[Tensor, "b n w"]]:
        """What each of the (encoder's) blocks makes of unmasked tokens, prefix first; normed where the encoder ends in
        a norm. For probes, which choose a layer."""
        grid = tuple(tokens.shape[1:]) if self.codebook_size else tuple(tokens.shape[1:-1])
        x, table = placed(self, self._embed(tokens), grid, self.prefix)
        conditions, scores = self.conditions(labels, len(x)), biases(self.relative, len(self.blocks), grid, self.prefix)
        x, made = self._with_prefix(self.embedded(x), conditions), []
        for block, modulation, bias in zip(self.blocks, self._modulations(conditions), scores):
            x = block(x, modulation, table, None, None, bias)
            made.append(x)
        if self.decoder is not None:
            made[-1] = self.encoder_norm(x)
        return made

    def _embed(self, tokens: Tensor) -> Float[Tensor, "b n w"]:
        if self.codebook_size:
            return self.code_embedding(tokens.flatten(1))
        return self.token_embedding(tokens.flatten(1, -2))

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
        self, x: Tensor, table: Tensor | None, keep: Tensor, kept: Ragged | None, predict_at: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Only the tokens at `keep`; `predict_at` becomes positions among them."""
        if table is not None:
            places = torch.cat(
                [torch.arange(self.prefix, device=keep.device).expand(len(keep), -1), keep + self.prefix], 1
            )
            table = take(table.expand(len(keep), -1, -1), places)
        if predict_at is not None:
            n = x.shape[1]
            places = keep if kept is None else keep.masked_fill(~kept.valid, n)  # padding: behind the last
            order = keep.new_full((len(keep), n + 1), -1)
            order = order.scatter(1, places, torch.arange(keep.shape[1], device=keep.device).expand_as(keep))
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
            return [None] * (len(self.blocks) + (len(self.decoder.blocks) if self.decoder else 0) + 1)
        return list(conditions.split(6, 1))


class Decoder(nn.Module):
    """From the encoder's tokens to features at all places, or at those asked for."""

    def __init__(
        self,
        encoder_width: int,
        width: int,
        heads: int,
        blocks: list[Block],
        grid: tuple[int, ...],
        positions: Literal["learned", "sincos", "none"],
        rope: bool,
        pad: Literal["mask_token", "class_token"],
    ):
        super().__init__()
        self.heads, self.positions, self.rope, self.pad = heads, positions, rope, pad
        self.embed = nn.Linear(encoder_width, width)
        if pad == "mask_token":
            self.mask_token = nn.Parameter(torch.zeros(width))
        if positions == "learned":
            self.position_embedding = nn.Parameter(torch.zeros(width, *grid))
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self,
        prefix: Float[Tensor, "b p w"],
        features: Float[Tensor, "b m w"],
        masked: Bool[Tensor, "b *grid"],
        keep: Int[Tensor, "b m"] | None,
        kept: Ragged | None,
        modulations: Sequence[Float[Tensor, "b 6 d"] | None],
        queries: Int[Tensor, "b k"] | None,
    ) -> Float[Tensor, "b k d"]:
        """`features` go back to their places, except where a mask token stood; `pad` stands elsewhere."""
        grid, n = tuple(masked.shape[1:]), masked[0].numel()
        prefix, x = self.embed(prefix), self.embed(features)
        pad = (prefix[:, :1] if self.pad == "class_token" else self.mask_token.to(x.dtype)).expand(len(x), n, -1)
        if keep is not None:
            if kept is not None:  # padded tokens go to a place behind the last, which is cut off
                keep = keep.masked_fill(~kept.valid, n)
            room = torch.cat([pad, pad[:, :1]], 1)
            x = room.scatter(1, keep[..., None].expand_as(x), x)[:, :n]
            seen = torch.zeros(len(x), n + 1, dtype=torch.bool, device=x.device).scatter(1, keep, True)[:, :n]
            x = torch.where((seen & ~masked.flatten(1))[..., None], x, pad)
        else:
            x = torch.where(masked.flatten(1)[..., None], pad, x)
        skipped = prefix.shape[1]
        x, table = placed(self, x, grid, skipped)
        x = torch.cat([prefix, x], 1)
        for block, modulation in zip(self.blocks[:-1], modulations):
            x = block(x, modulation, table)
        x = self.blocks[-1](x, modulations[-1], table, queries)
        return x[:, skipped:] if queries is None else x


def placed(
    module: MaskTransformer | Decoder, x: Float[Tensor, "b n w"], grid: tuple[int, ...], prefix: int
) -> tuple[Tensor, Tensor | None]:
    """`x` with the module's position embeddings, and its rotary table (1, prefix + n, head width), if it has one."""
    if module.positions == "learned":
        x = x + stretched(module.position_embedding, grid)
    elif module.positions == "sincos":
        x = x + sine_cosine(grid, x.shape[-1], x.device).to(x.dtype)
    return x, rotary(grid, prefix, x.shape[-1] // module.heads, x.device)[None] if module.rope else None


TRANSFORMERS = {"mask_transformer": MaskTransformer}
