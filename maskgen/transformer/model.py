"""MaskTransformer: the bidirectional transformer of all our own training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from maskgen.transformer.attention import Backend, Ragged, attention_probabilities
from maskgen.transformer.decoder import Decoder
from maskgen.transformer.groups import BitEmbedding, CodeEmbedding, asked_places, by_code
from maskgen.transformer.heads import LayerMix, Projector
from maskgen.transformer.kept import among_kept, kept_table, take
from maskgen.transformer.layers import Block, Norm, class_vectors, initialise, make_norm, modulate
from maskgen.transformer.options import check
from maskgen.transformer.positions import Positions, add_positions, rotary, with_positions
from maskgen.transformer.relative import RelativeBias, of_queries
from maskgen.transformer.vectors import CodeVectors
from maskgen.transformer.windows import Windows, block_scores


@dataclass
class TransformerOutput:
    """What the transformer makes.

    predictions: (b, k, predictions) logits or values at the k tokens asked for.
    features: (b, k, width) there, before the head; with a decoder (b, m, width), the encoder's at the m tokens it saw.
    prefix: (b, prefix, width) of the tokens without a place (registers, a class in context), the encoder's.
    class_predictions: (b, predictions), the head at the class token, where the model has it.
    branch: (b, k, ...) what the second branch predicts, where there is one.
    attention: (b, n), of the class token to each token it sees in the last block, mean over heads, where asked for.
    """

    predictions: Tensor
    features: Tensor
    prefix: Tensor
    class_predictions: Tensor | None = None
    branch: Tensor | None = None
    attention: Tensor | None = None


@dataclass
class Surroundings:
    """What the blocks are given beside the tokens.

    table: (b or 1, prefix + m, head width), rotary, of the tokens seen.
    kept: where rows see different numbers of places, which; `prefix` tokens stand before these.
    modulations, scores, windows: of each block; see :func:`maskgen.transformer.windows.block_scores`.
    """

    table: Tensor | None
    kept: Ragged | None
    prefix: int
    modulations: list[Any]
    scores: list[Tensor | None]
    windows: list[Windows | None]

    @cached_property
    def rows(self) -> Ragged | None:
        """Of the tokens, the prefix too."""
        return None if self.kept is None else self.kept.after(self.prefix)


class MaskTransformer(ModelMixin, ConfigMixin):
    """Tokens, some of them masked, to logits of every code, or to values.

    Tokens are codes, several codes a place (`groups`: codes (b, *grid, groups), each hidden by itself and predicted in
    the order places, groups), or continuous: float vectors (patches as they are, latents).

    With a decoder it is asymmetric, as MAE (arXiv:2111.06377) and MAGE (arXiv:2211.09117): the encoder sees the tokens
    kept; the decoder sees all places, `pad` where the encoder saw none or saw a mask token, and predicts.

    Args:
        codebook_size: number of codes; 0 where tokens are continuous.
        grid: of the trained token grid, (h, w) for images; rotary and sine-cosine positions take other sizes too.
        num_classes: of the class condition; None is unconditional.
        width, depth, heads: of the transformer; `heads` must divide `width`.
        mlp_ratio: hidden width of the MLP over `width` (SwiGLU: at equal weights).
        mlp: ``swiglu`` or ``gelu``.
        norm: ``layer`` or ``rms``; query-key normalisation uses the same.
        qk_norm: normalise queries and keys a head (arXiv:2302.05442).
        positions: added to the tokens: ``learned`` (resized to other grids), ``learned_sum`` of a vector for the first
            axis and one for the others (time and space: MaskViT), ``sincos``, or ``none``. On a blank canvas all tokens
            are alike, so without these no model can tell one place from another.
        rope: also rotate queries and keys by their place, axis by axis: distances, for any grid.
        relative_bias: learned biases of the (encoder's) attention scores by the offset of query and key (BEiT,
            arXiv:2106.08254): one ``shared`` by all blocks, or each ``block`` its own; resized to other grids.
        windows: attention of block i is within windows ``windows[i % len(windows)]``, a side for each axis of the grid,
            0 for the whole axis; none is full attention. ``[[1, 0, 0], [0, 4, 4]]`` alternates frames and columns of 4
            x 4 tokens through all frames (MaskViT, arXiv:2206.11894, section 3.2), ``[[1, 0, 0], [0, 1, 1]]`` is
            factorised space and time. Prefix tokens see all and are seen by all. A decoder's attention is full.
        action_dim: numbers of an action; above 0 each frame (first axis of the grid) has one, which is embedded and
            added to its tokens.
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
        groups: codes a place, of `codebook_size` each (bit groups of MaskBit, levels of a multichannel tokenizer).
        embedding: of codes: a ``table``, or their ``bits`` through a linear layer (MaskBit).
        head_type: ``linear``, a ``projector`` to prototypes (iBOT), or ``layer_mix`` over all blocks (MaskAlign).
        head_hidden, head_bottleneck: of the projector.
        head_mixtures: of the layer mix.
        class_predictions: the head also speaks at the class token (the first register).
        branch_type: a second way to the target. ``class_bottleneck``: `branch_depth` blocks see the class token of the
            last block and the other tokens of block `branch_layer`, so that the class token must carry the image
            (BEiT v2, arXiv:2208.06366, section 2.3). ``decoder``: a second decoder (HPM, arXiv:2304.05919).
        branch_predictions: values that the branch predicts a token; 0 shares norm and head with the main path.
        code_dim: numbers of the tokenizer's code vectors, by which codes are then seen and predicted too
            (:class:`maskgen.transformer.vectors.CodeVectors`, given by the stage); 0 is without.
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
        positions: Positions = "learned",
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
        groups: int = 1,
        embedding: Literal["table", "bits"] = "table",
        head_type: Literal["linear", "projector", "layer_mix"] = "linear",
        head_hidden: int = 2048,
        head_bottleneck: int = 256,
        head_mixtures: int = 5,
        class_predictions: bool = False,
        branch_type: Literal["none", "class_bottleneck", "decoder"] = "none",
        branch_depth: int = 2,
        branch_layer: int = 9,
        branch_predictions: int = 0,
        relative_bias: Literal["none", "shared", "block"] = "none",
        embedding_norm: bool = False,
        windows: list[list[int]] = [],  # noqa: B006
        action_dim: int = 0,
        code_dim: int = 0,
    ):
        super().__init__()
        check(self.config)
        decoder_width, decoder_heads = decoder_width or width, decoder_heads or heads
        self.codebook_size, self.grid, self.num_classes, self.groups = codebook_size, tuple(grid), num_classes, groups
        self.grouped = groups > 1 or embedding == "bits"
        self.positions, self.rope, self.heads, self.class_dropout = positions, rope, heads, class_dropout
        conditional = num_classes is not None
        self.modulated = conditional and condition != "in_context"
        self.prefix = registers + int(conditional and not self.modulated)
        if token_dim:
            self.token_embedding: nn.Module = nn.Linear(token_dim, width)
        elif self.grouped:
            kind = BitEmbedding if embedding == "bits" else CodeEmbedding
            self.token_embedding = kind(codebook_size, groups, width)
        else:
            self.code_embedding = nn.Embedding(codebook_size, width)
        if not self.grouped:
            self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_tokens = nn.Parameter(torch.zeros(registers, width))
        add_positions(self, width, self.grid)
        if action_dim:
            self.action_embedding = nn.Linear(action_dim, width)
        for window in windows:
            Windows.of(self.grid, window)  # refuses what does not tile
        self.embedded = nn.LayerNorm(width, eps=1e-6) if embedding_norm else nn.Identity()
        all_tables = depth + (branch_depth if branch_type == "class_bottleneck" else 0)
        tables = {"none": 0, "shared": 1, "block": all_tables}[relative_bias]
        self.relative = nn.ModuleList(RelativeBias(self.grid, heads) for _ in range(tables))
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, width)  # the last row: no class
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, norm, mlp, qk_norm, dropout, self.modulated, backend) for _ in range(depth)
        )

        def decoder() -> Decoder:
            blocks = [
                Block(decoder_width, decoder_heads, mlp_ratio, norm, mlp, qk_norm, dropout, self.modulated, backend)
                for _ in range(decoder_depth)
            ]
            return Decoder(width, decoder_width, decoder_heads, blocks, self.grid, positions, rope, pad)

        self.decoder: Decoder | None = None
        if decoder_depth:
            self.decoder = decoder()
            self.encoder_norm = make_norm(norm, width)
        last_width = decoder_width if decoder_depth else width
        self.final_norm = make_norm(norm, last_width, affine=not self.modulated)
        if self.modulated:
            own, all_blocks = condition == "adaln", depth + decoder_depth
            self.modulations = nn.ModuleList(nn.Linear(width, 6 * width) for _ in range(all_blocks if own else 1))
            self.offsets = None if own else nn.Parameter(torch.zeros(all_blocks, 6, width))
            self.final_modulation = nn.Linear(width, 2 * width)
        out = predictions or codebook_size * groups or token_dim
        if head_type == "layer_mix":
            self.head: nn.Module = LayerMix(width, depth, head_mixtures, out)
            self.final_norm = nn.Identity()  # the blocks' outputs are mixed as they are
        elif head_type == "projector":
            self.head = Projector(last_width, head_hidden, head_bottleneck, out)
        else:
            self.head = nn.Linear(last_width, out)
        if branch_type == "decoder":
            self.second_decoder = decoder()
        elif branch_type == "class_bottleneck":
            self.bottleneck = nn.ModuleList(
                Block(width, heads, mlp_ratio, norm, mlp, qk_norm, dropout, False, backend) for _ in range(branch_depth)
            )
        if branch_type != "none" and branch_predictions:
            self.branch_norm = make_norm(norm, last_width)
            self.branch_head = nn.Linear(last_width, branch_predictions)
        self.code_vectors = CodeVectors(codebook_size, code_dim, width, last_width) if code_dim else None
        zeros = [self.head] if isinstance(self.head, nn.Linear) else []
        initialise(self, zeros + ([*self.modulations, self.final_modulation] if self.modulated else []))

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
        attention: bool = False,
        actions: Float[Tensor, "b t a"] | None = None,
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
            keep: flat positions of the places that the network (with a decoder: the encoder) sees, all when None; the
                others are dropped. Without a decoder `predict_at` must be among them.
            conditions: what :meth:`conditions` made of the labels, in their stead.
            kept: where rows keep different numbers of tokens, how many each; each row's stand at the front of `keep`,
                which is padded with any positions.
            attention: also give the class token's attention in the (encoder's) last block.
            actions: one a frame, where the model reads them.

        Raises:
            ValueError: labels given to an unconditional model; actions missing, of another shape, or not read.
        """
        grid = tuple(masked.shape[1:-1] if self.groups > 1 else masked.shape[1:])
        count, n = math.prod(grid), self.prefix
        places, group = (None, None) if predict_at is None else asked_places(predict_at, self.groups, count)
        x = self._embed(tokens, masked, actions, grid)
        if conditions is None:
            conditions = self.conditions(labels, len(x))
        around = self._surroundings(grid, conditions, keep, kept)
        if keep is not None:
            x = take(x, keep)
            if places is not None and self.decoder is None:
                places = among_kept(places, keep, around.kept, count)
        queries = None if places is None else places + n

        made = [self._with_prefix(x, conditions)]
        for i in range(len(self.blocks) - 1):
            made.append(self._block(i, made[-1], around))
        looked = self._attention_of_class(made[-1], around) if attention else None
        alone = queries if self.decoder is None and self._last_alone else None
        x = self._block(len(self.blocks) - 1, made[-1], around, alone)
        made.append(x)

        def asked(x: Tensor) -> Tensor:
            return x[:, n:] if queries is None else x if alone is not None else take(x, queries)

        if self.decoder is None:
            prefix, features = made[-1 if alone is None else -2][:, :n], asked(x)
            h = features
        else:
            x = self.encoder_norm(x)
            prefix, features = x[:, :n], x[:, n:]
            hidden = masked.all(-1) if self.groups > 1 else masked
            back = (prefix, features, hidden, keep, around.kept)
            h = self.decoder(*back, around.modulations[len(self.blocks) : -1], queries)
        if isinstance(self.head, LayerMix):
            predictions = self.head([asked(layer) for layer in made[1:]])
        else:
            h = self.final_norm(h)
            if self.modulated:
                h = modulate(h, *around.modulations[-1][:, :, None].unbind(1))
            predictions = self.head(h) if self.code_vectors is None else self.head(h) + self.code_vectors.logits(h)
            predictions = by_code(predictions, self.groups, group)
        output = TransformerOutput(predictions, features, prefix, attention=looked)
        if self.config.class_predictions:
            classes = [layer[:, :1] for layer in made[1:]] if isinstance(self.head, LayerMix) else None
            output.class_predictions = self.head(classes or self.final_norm(prefix[:, :1]))[:, 0]
        if self.config.branch_type == "decoder":
            nothing = [None] * len(self.second_decoder.blocks)
            output.branch = self.branch_head(self.branch_norm(self.second_decoder(*back, nothing, queries)))
        elif self.config.branch_type == "class_bottleneck":
            early = torch.cat([x[:, :n], made[self.config.branch_layer][:, n:]], 1)
            branch = asked(self._bottleneck(early, around))
            own = self.config.branch_predictions
            output.branch = self.branch_head(self.branch_norm(branch)) if own else self.head(self.final_norm(branch))
        return output

    @property
    def _last_alone(self) -> bool:
        """Whether nothing but the predictions needs the last block: then it runs at the tokens asked for alone."""
        c = self.config
        return c.head_type != "layer_mix" and c.branch_type == "none" and not c.class_predictions

    def _surroundings(
        self,
        grid: tuple[int, ...],
        conditions: Float[Tensor, "b c w"] | None,
        keep: Int[Tensor, "b m"] | None = None,
        kept: Sequence[int] | None = None,
    ) -> Surroundings:
        """Of all blocks, the bottleneck's last."""
        each = [Windows.of(grid, window, self.prefix) for window in self.config.windows] or [None]
        windows = [each[i % len(each)] for i in range(len(self.blocks))]
        if self.config.branch_type == "class_bottleneck":
            windows += [None] * len(self.bottleneck)
        like = self.register_tokens
        scores = block_scores(windows, self.relative, grid, self.prefix, self.heads, keep, like)
        table = rotary(grid, self.prefix, like.shape[-1] // self.heads, like.device)[None] if self.rope else None
        return Surroundings(
            table if table is None or keep is None else kept_table(table, keep, self.prefix),
            None if kept is None else Ragged.of(kept, like.device),
            self.prefix,
            self._modulations(conditions),
            scores,
            [None if bias is not None else window for window, bias in zip(windows, scores)],
        )

    def _block(self, i: int, x: Tensor, around: Surroundings, queries: Tensor | None = None) -> Tensor:
        modulation, bias, windows = around.modulations[i], around.scores[i], around.windows[i]
        return self.blocks[i](x, modulation, around.table, queries, around.rows, bias=bias, windows=windows)

    def _bottleneck(self, x: Tensor, around: Surroundings) -> Tensor:
        """Early tokens and the last class token through a few more blocks."""
        for block, bias in zip(self.bottleneck, around.scores[len(self.blocks) :]):
            x = block(x, None, around.table, None, around.rows, bias=bias)
        return x

    def _attention_of_class(self, x: Tensor, around: Surroundings) -> Float[Tensor, "b n"]:
        """Of the first prefix token to each of the others in the last block, mean over heads; `x` is its input.

        Raises:
            ValueError: no prefix token, or a block modulated by a class.
        """
        if not self.prefix or self.modulated:
            raise ValueError("attention is the class token's: set registers: 1 (and condition: in_context, if any)")
        block: Any = self.blocks[-1]
        first = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        q, k, _ = block.attention.projected(block.norm1(x), around.table, first)
        bias = around.scores[len(self.blocks) - 1]
        bias = None if bias is None else of_queries(bias, first)
        return attention_probabilities(q, k, around.rows, bias).mean(1)[:, 0, self.prefix :]

    def layers(
        self,
        tokens: Shaped[Tensor, "b *grid"],
        labels: Int[Tensor, "b"] | None = None,
        actions: Float[Tensor, "b t a"] | None = None,
    ) -> list[Float[Tensor, "b n w"]]:
        """What each of the (encoder's) blocks makes of unmasked tokens, prefix first; normed where the encoder ends in
        a norm. For probes, which choose a layer.

        Raises:
            ValueError: no actions for a model that reads them, or actions for one that does not.
        """
        return self._walk(tokens, labels, actions)[0][1:]

    def layers_and_attention(
        self,
        tokens: Shaped[Tensor, "b *grid"],
        labels: Int[Tensor, "b"] | None = None,
        actions: Float[Tensor, "b t a"] | None = None,
    ) -> tuple[list[Float[Tensor, "b n w"]], Float[Tensor, "b m"]]:
        """:meth:`layers`, and the first prefix token's attention to each token in the last block, mean over heads. For
        teachers."""
        made, around = self._walk(tokens, labels, actions)
        return made[1:], self._attention_of_class(made[-2], around)

    def _walk(self, tokens: Tensor, labels: Tensor | None, actions: Tensor | None) -> tuple[list[Tensor], Surroundings]:
        """What the first block sees and what each makes, and what they had beside it."""
        grid = tuple(tokens.shape[1:-1] if self.groups > 1 or not self.codebook_size else tokens.shape[1:])
        conditions = self.conditions(labels, len(tokens))
        around = self._surroundings(grid, conditions)
        made = [self._with_prefix(self._embed(tokens, None, actions, grid), conditions)]
        for i in range(len(self.blocks)):
            made.append(self._block(i, made[-1], around))
        if self.decoder is not None:
            made[-1] = self.encoder_norm(made[-1])
        return made, around

    def _embed(
        self, tokens: Tensor, masked: Tensor | None, actions: Tensor | None, grid: tuple[int, ...]
    ) -> Float[Tensor, "b n w"]:
        """Tokens, the mask token where `masked`, with their frames' actions and their positions."""
        x = with_positions(self, self._acted(self._seen(tokens, masked), actions, grid), grid)
        return self.embedded(x)

    def _seen(self, tokens: Tensor, masked: Tensor | None) -> Float[Tensor, "b n w"]:
        if self.grouped:
            codes = tokens if self.groups > 1 else tokens[..., None]
            hidden = masked if masked is None or self.groups > 1 else masked[..., None]
            flat = None if hidden is None else hidden.flatten(1, -2)
            return self.token_embedding(codes.flatten(1, -2), flat)
        if self.codebook_size:
            x = self.code_embedding(tokens.flatten(1))
            if self.code_vectors is not None:
                x = x + self.code_vectors.embed(tokens.flatten(1))
        else:
            x = self.token_embedding(tokens.flatten(1, -2).to(self.mask_token.dtype))
        return x if masked is None else torch.where(masked.flatten(1)[..., None], self.mask_token, x)

    def _acted(
        self, x: Float[Tensor, "b n w"], actions: Float[Tensor, "b t a"] | None, grid: tuple[int, ...]
    ) -> Float[Tensor, "b n w"]:
        wanted = (len(x), grid[0], self.config.action_dim) if self.config.action_dim else None
        if wanted != (None if actions is None else tuple(actions.shape)):
            given = "none" if actions is None else f"{tuple(actions.shape)}"
            raise ValueError(f"this transformer reads actions {wanted or 'of no frame: action_dim is 0'}; got {given}")
        if actions is None:
            return x
        each = self.action_embedding(actions.to(self.action_embedding.weight.dtype)).to(x.dtype)
        return x + each.repeat_interleave(x.shape[1] // grid[0], 1)

    def conditions(self, labels: Int[Tensor, "b"] | None, batch: int) -> Float[Tensor, "b c w"] | None:
        """What the classes do to the network: nothing, a token (in_context), or six modulations a block, (scale, shift,
        gate) of attention and of the MLP, and two before the head. A decode makes them once for all steps."""
        condition = class_vectors(self, labels, batch)
        if condition is None or not self.modulated:
            return None if condition is None else condition[:, None]
        h = nn.functional.silu(condition)
        each = [m(h).unflatten(-1, (6, -1)) for m in self.modulations]
        if self.offsets is not None:
            each = [each[0] + offset for offset in self.offsets]
        return torch.cat([*each, self.final_modulation(h).unflatten(-1, (2, -1))], 1)

    def _with_prefix(self, x: Tensor, conditions: Tensor | None) -> Tensor:
        prefix = [self.register_tokens.expand(len(x), -1, -1)] if len(self.register_tokens) else []
        if conditions is not None and not self.modulated:
            prefix.append(conditions)
        return torch.cat([*(p.to(x.dtype) for p in prefix), x], 1) if prefix else x

    def _modulations(self, conditions: Float[Tensor, "b c w"] | None) -> list[Any]:
        """(b, 6, w) of each block, the decoder's too, and (b, 2, w) before the head; or None as often."""
        if not self.modulated or conditions is None:
            return [None] * (len(self.blocks) + (len(self.decoder.blocks) if self.decoder else 0) + 1)
        return list(conditions.split(6, 1))


TRANSFORMERS = {"mask_transformer": MaskTransformer}
