"""MaskTransformer: the bidirectional transformer that predicts masked tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from maskgen.conditioning import CONDITIONERS, Conditioners, Conditioning, take_rows
from maskgen.registry import Nested, Part, build, split
from maskgen.transformer.adaln import AdaLN
from maskgen.transformer.attention import Ragged, attention_probabilities
from maskgen.transformer.decoder import Decoder
from maskgen.transformer.embedding import token_embedding
from maskgen.transformer.heads import HEAD, LayerMix, MLMHead
from maskgen.transformer.kept import among_kept, kept_table, take
from maskgen.transformer.layers import Block, initialise, make_norm, modulate
from maskgen.transformer.positions import add_positions, rotary, with_positions
from maskgen.transformer.relative import RelativeBias, of_queries
from maskgen.transformer.several_codes import asked_positions, by_code
from maskgen.transformer.specs import (
    BlockSpec,
    BranchSpec,
    ConditioningSpec,
    DecoderSpec,
    PositionSpec,
    Specs,
    TokenSpec,
    check,
    is_flat,
    upgraded,
)
from maskgen.transformer.vectors import CodeVectors
from maskgen.transformer.windows import Windows, block_scores
from maskgen.upgrade import load_saved, rename_on_load


@dataclass
class TransformerOutput:
    """The output of a transformer.

    Args:
        predictions: (b, k, out_dim), logits or values at the k predicted tokens.
        features: (b, k, width), the features of the predicted tokens before the head; with a decoder (b, m, width), the
            encoder's features of the m tokens that it saw.
        prefix: (b, prefix, width), the encoder's features of the tokens without a position (registers, conditions).
        class_predictions: (b, out_dim), the predictions at the class token, with `cls_token_head`.
        branch: (b, k, ...), the predictions of the second branch.
        attention: (b, n), the attention of the class token to each token in the last block, averaged over heads.
    """

    predictions: Tensor
    features: Tensor
    prefix: Tensor
    class_predictions: Tensor | None = None
    branch: Tensor | None = None
    attention: Tensor | None = None


@dataclass(frozen=True)
class Prepared:
    """A `Conditioning` in the form that the network uses. Decoding prepares its conditions once for all steps.

    Args:
        modulation: (b, c, w) from :class:`maskgen.transformer.adaln.AdaLN`.
        prefix: (b, p, w), condition tokens in context.
        prefix_mask: bool (b, p), True at tokens of `prefix` that exist, or None.
        context: (b, m, w), condition tokens for cross-attention.
        context_mask: bool (b, m), True at tokens of `context` that exist, or None.
        features: (b, n, w), added to the tokens.
        shown, shown_at, keys: as in the `Conditioning`.
    """

    modulation: Tensor | None = None
    prefix: Tensor | None = None
    prefix_mask: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None
    features: Tensor | None = None
    shown: Tensor | None = None
    shown_at: Tensor | None = None
    keys: tuple[Any, ...] | None = None

    def rows(self, index: Tensor | slice) -> Prepared:
        """The rows at `index`."""
        return take_rows(self, index)


@dataclass
class Surroundings:
    """The inputs of the blocks in addition to the tokens.

    Args:
        table: (b or 1, prefix + m, head width), the rotary table of the tokens.
        kept: needed if rows see different numbers of positions.
        prefix: number of tokens without a position, which come first.
        modulations, scores, windows: of each block; see :func:`maskgen.transformer.windows.block_scores`.
        context: condition tokens for cross-attention, and their mask.
    """

    table: Tensor | None
    kept: Ragged | None
    prefix: int
    modulations: list[Any]
    scores: list[Tensor | None]
    windows: list[Windows | None]
    context: tuple[Tensor, Tensor | None] | None = None

    @cached_property
    def rows(self) -> Ragged | None:
        """`kept` for all tokens, including the prefix."""
        return None if self.kept is None else self.kept.after(self.prefix)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of version 0.1."""
    names = {
        "code_embedding.": "embedding.codes.",
        "token_embedding.code_embedding.": "embedding.codes.",
        "token_embedding.projection.": "embedding.projection.",
        "token_embedding.mask_token": "embedding.mask_token",
        "token_embedding.": "embedding.projection.",
        "embedded.": "embedding_norm.",
        "class_embedding.": "conditioner.label.embedding.",
        "action_embedding.": "conditioner.actions.embedding.",
        "modulations.": "adaln.blocks.",
        "offsets": "adaln.offsets",
        "final_modulation.": "adaln.final.",
    }
    made = {}
    for key, value in state.items():
        old = next((old for old in names if key.startswith(old)), None)
        made[key if old is None else names[old] + key[len(old) :]] = value
    return made


EARLIER_ORDER = (  # the order of the parameters in version 0.1, by which its optimizers number them
    ("mask_token", "register_tokens", "first_embedding", "position_embedding", "adaln.offsets"),
    ("embedding.", "conditioner.actions.", "embedding_norm.", "relative.", "conditioner.label.", "blocks.", "decoder."),
    ("encoder_norm.", "final_norm.", "adaln.blocks.", "adaln.final.", "head.", "second_decoder.", "bottleneck."),
    ("branch_norm.", "branch_head.", "code_vectors."),
)


class MaskTransformer(ModelMixin, ConfigMixin):
    """Predicts the logits of codes, or continuous values, from tokens of which some are masked.

    Tokens are codes, int64 (b, *grid), or several codes per position, int64 (b, *grid, codes_per_position), each of
    which is hidden and predicted separately in the order (position, code), or continuous, float (b, *grid, d), such as
    patches of pixels and latents.

    A network with a decoder is asymmetric, as in MAE (arXiv:2111.06377) and MAGE (arXiv:2211.09117): the encoder sees
    the kept tokens, and the decoder sees all positions and predicts.

    Args:
        grid: of the tokens in training, (h, w) for images. Position embeddings are resized for other grids.
        width: width of the tokens (in the encoder).
        depth: number of blocks (of the encoder).
        num_registers: number of extra tokens without a position (arXiv:2309.16588); the first is the class token.
        out_dim: values predicted per token; 0 is the number of codes, or the `dim` of continuous tokens.
        tokens, positions, block, conditioning, decoder, branch: nested specs, see :mod:`maskgen.transformer.specs`.
        head: ``linear``, ``mlm`` (BERT, tied to the code embeddings), ``projector`` to prototypes (iBOT), or
            ``layer_mix`` over all blocks (MaskAlign).
        cls_token_head: also predict at the class token.

    Raises:
        ValueError: options exclude each other; the message names the option to change.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        grid: tuple[int, ...] | list[int],
        width: int = 768,
        depth: int = 24,
        num_registers: int = 0,
        out_dim: int = 0,
        tokens: Annotated[Any, Nested(TokenSpec, ("codebook_size", "dim", "code_dim"))] = {},  # noqa: B006
        positions: Annotated[Any, Nested(PositionSpec)] = {},  # noqa: B006
        block: Annotated[Any, Nested(BlockSpec)] = {},  # noqa: B006
        conditioning: Annotated[Any, Nested(ConditioningSpec, ("inputs",))] = {},  # noqa: B006
        decoder: Annotated[Any, Nested(DecoderSpec)] = {},  # noqa: B006
        head: Annotated[Any, HEAD] = "linear",
        branch: Annotated[Any, Nested(BranchSpec)] = {},  # noqa: B006
        cls_token_head: bool = False,
    ):
        super().__init__()
        specs = Specs.of(
            tokens=tokens,
            positions=positions,
            block=block,
            conditioning=conditioning,
            decoder=decoder,
            branch=branch,
        )
        self.specs, self.grid = specs, tuple(grid)
        self.codebook_size, self.token_dim = specs.tokens.codebook_size, specs.tokens.dim
        self.codes_per_position = specs.tokens.codes_per_position
        self.heads = specs.block.heads
        self.grouped = self.codes_per_position > 1 or specs.tokens.embedding == "bits"
        self.positions, self.rope = specs.positions.embedding, specs.positions.rope
        conditioners = Conditioners(
            {
                name: build(Part(CONDITIONERS), part, width=width)
                for name, part in sorted(specs.conditioning.inputs.items())
            }
        )
        pooled = any(getattr(part, "pools", False) for part in conditioners.values())
        self.modulated = pooled and specs.conditioning.pooled != "in_context"
        kind = split(head, "linear")[0]
        check(width, depth, num_registers, kind, cls_token_head, specs, self.modulated)
        cross = specs.conditioning.tokens == "cross_attention"
        self.prefix = num_registers + int(pooled and not self.modulated)
        self.embedding = token_embedding(specs.tokens, width)
        if not self.grouped:
            self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_tokens = nn.Parameter(torch.zeros(num_registers, width))
        add_positions(self, width, self.grid)
        for window in specs.block.windows:
            Windows.of(self.grid, window)  # raises if the window does not tile the grid
        self.embedding_norm = nn.LayerNorm(width, eps=1e-6) if specs.tokens.norm else nn.Identity()
        all_tables = depth + (specs.branch.depth if specs.branch.kind == "class_bottleneck" else 0)
        tables = {"none": 0, "shared": 1, "block": all_tables}[specs.positions.relative_bias]
        self.relative = nn.ModuleList(RelativeBias(self.grid, self.heads) for _ in range(tables))
        self.conditioner = conditioners
        rates = [specs.block.stochastic_depth * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, specs.block, self.modulated, cross, rate) for rate in rates)
        last_width = specs.decoder.width or width if specs.decoder.depth else width

        def new_decoder() -> Decoder:
            plain = replace(specs.block, heads=specs.decoder.heads or self.heads, stochastic_depth=0.0)
            blocks = [Block(last_width, plain, self.modulated) for _ in range(specs.decoder.depth)]
            return Decoder(
                width, last_width, plain.heads, blocks, self.grid, self.positions, self.rope, specs.decoder.pad
            )

        self.decoder: Decoder | None = None
        if specs.decoder.depth:
            self.decoder = new_decoder()
            self.encoder_norm = make_norm(specs.block.norm, width)
        self.final_norm = make_norm(specs.block.norm, last_width, affine=not self.modulated)
        if self.modulated:
            self.adaln = AdaLN(width, depth + specs.decoder.depth, specs.conditioning.pooled == "adaln_shared")
        out = out_dim or self.codebook_size * self.codes_per_position or self.token_dim
        self.head: nn.Module = build(HEAD, head, width=width, last_width=last_width, depth=depth, out=out)
        if isinstance(self.head, LayerMix):
            self.final_norm = nn.Identity()  # layer_mix has no norm
        elif isinstance(self.head, MLMHead) and (last_width != width or out != self.codebook_size):
            raise ValueError("head.type: mlm is tied to the table of codes: set decoder.width: 0 and out_dim: 0")
        if specs.branch.kind == "decoder":
            self.second_decoder = new_decoder()
        elif specs.branch.kind == "class_bottleneck":
            self.bottleneck = nn.ModuleList(Block(width, specs.block) for _ in range(specs.branch.depth))
        if specs.branch.kind != "none" and specs.branch.out_dim:
            self.branch_norm = make_norm(specs.block.norm, last_width)
            self.branch_head = nn.Linear(last_width, specs.branch.out_dim)
        dim = specs.tokens.code_dim
        self.code_vectors = CodeVectors(self.codebook_size, dim, width, last_width) if dim else None
        zeros = [self.head] if isinstance(self.head, nn.Linear) else []
        initialise(self, zeros + ([*self.adaln.linears] if self.modulated else []))
        rename_on_load(self, renamed)

    def earlier_names(self) -> dict[str, list[str]]:
        """The parameters in the order of version 0.1, see :func:`maskgen.upgrade.upgrade_optimizer`."""
        prefixes = [prefix for row in EARLIER_ORDER for prefix in row]

        def rank(name: str) -> int:
            return next((i for i, prefix in enumerate(prefixes) if name.startswith(prefix)), len(prefixes))

        return {name: [name] for name in sorted((name for name, _ in self.named_parameters()), key=rank)}

    def __getattr__(self, name: str) -> Any:
        """Returns parts of the network; diffusers would return the options of the same names."""
        return nn.Module.__getattr__(self, name)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """See diffusers' ``ModelMixin.from_pretrained``. Folders of version 0.1 are translated."""
        path: str | Path = pretrained_model_name_or_path
        return load_saved(cls, super().from_pretrained, path, is_flat, upgraded, **options)

    def forward(
        self,
        tokens: Shaped[Tensor, "b *grid"],
        masked: Bool[Tensor, "b *grid2"],
        conditioning: Conditioning | Prepared | None = None,
        predict_at: Int[Tensor, "b k"] | None = None,
        keep: Int[Tensor, "b m"] | None = None,
        kept: Sequence[int] | None = None,
        attention: bool = False,
        headless: bool = False,
    ) -> TransformerOutput:
        """Predicts tokens.

        Args:
            tokens: codes, int64 in [0, codebook_size), or continuous tokens, float (b, *grid, d). The values at masked
                positions are ignored.
            masked: bool, True where the mask token replaces the token; (b, *grid), or (b, *grid, codes_per_position).
            conditioning: of the rows; None is the null condition for every row.
            predict_at: flat indices of the tokens to predict, int64 (b, k); None is the whole grid. The last block and
                the head run only there, with the same result.
            keep: flat positions that the network (or the encoder, if there is a decoder) sees, int64 (b, m); None is
                all. The other tokens are dropped. Without a decoder `predict_at` must be among them.
            kept: number of kept tokens of each row, if rows differ. The kept positions of a row are at the front of its
                row of `keep`; the padding may be any position.
            attention: also return the attention of the class token in the last block (of the encoder).
            headless: return the input of the head instead of the predictions, from which :meth:`predicted` computes
                them for a few positions at a time. It does not work with several codes per position.

        Raises:
            ValueError: a condition that cannot be left out is missing.
        """
        codes_per_position = self.codes_per_position
        grid = tuple(masked.shape[1:-1] if codes_per_position > 1 else masked.shape[1:])
        count = math.prod(grid)
        positions, index = None, None
        if predict_at is not None:
            positions, index = asked_positions(predict_at, codes_per_position, count)
        x, prepared = self._embed(tokens, masked, conditioning, grid)
        front = self._front(x, prepared)
        n = front.shape[1]
        around = self._surroundings(grid, prepared, keep, kept)
        if keep is not None:
            x = take(x, keep)
            if positions is not None and self.decoder is None:
                positions = among_kept(positions, keep, around.kept, count)
        queries = None if positions is None else positions + n

        made = [torch.cat([front, x], 1) if n else x]
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
            hidden = masked.all(-1) if codes_per_position > 1 else masked
            back = (prefix, features, hidden, keep, around.kept)
            bar = None if prepared.prefix_mask is None else self._bar(prepared.prefix_mask, count)
            h = self.decoder(*back, around.modulations[len(self.blocks) : -1], queries, bar)
        if isinstance(self.head, LayerMix):
            predictions = self.head([asked(layer) for layer in made[1:]])
        else:
            h = self.final_norm(h)
            if self.modulated:
                h = modulate(h, *around.modulations[-1][:, :, None].unbind(1))
            predictions = h if headless else by_code(self.predicted(h), codes_per_position, index)
        output = TransformerOutput(predictions, features, prefix, attention=looked)
        if self.config.cls_token_head:
            classes = [layer[:, :1] for layer in made[1:]] if isinstance(self.head, LayerMix) else None
            output.class_predictions = (
                self.predicted(self.final_norm(prefix[:, :1])) if classes is None else self.head(classes)
            )[:, 0]
        branch = self.specs.branch
        if branch.kind == "decoder":
            nothing = [None] * len(self.second_decoder.blocks)
            output.branch = self.branch_head(self.branch_norm(self.second_decoder(*back, nothing, queries, bar)))
        elif branch.kind == "class_bottleneck":
            early = torch.cat([x[:, :n], made[branch.layer][:, n:]], 1)
            h = asked(self._bottleneck(early, around))
            output.branch = (
                self.branch_head(self.branch_norm(h)) if branch.out_dim else self.predicted(self.final_norm(h))
            )
        return output

    @property
    def _last_alone(self) -> bool:
        """Whether only the predictions need the last block, so that it can run at the predicted tokens only."""
        whole = isinstance(self.head, LayerMix) or self.specs.branch.kind != "none"
        return not whole and not self.config.cls_token_head

    def predicted(self, h: Float[Tensor, "b k w"]) -> Float[Tensor, "b k p"]:
        """The predictions of the head from its input (see `headless`)."""
        if isinstance(self.head, MLMHead):
            table: Any = self.embedding.codes
            return self.head(h, table.weight)
        return self.head(h) if self.code_vectors is None else self.head(h) + self.code_vectors.logits(h)

    def prepare(self, conditioning: Conditioning | None, rows: int, grid: tuple[int, ...]) -> Prepared:
        """Computes the modulations, prefix tokens, context and features of the conditions.

        Args:
            conditioning: of the rows; None is the null condition for every row.
            rows: number of rows of the batch.
            grid: of the tokens.
        """
        if conditioning is None:
            conditioning = self.conditioner(None, rows, grid)
        if conditioning is None:
            return Prepared()
        c = conditioning
        modulation = self.adaln(c.pooled) if self.modulated and c.pooled is not None else None
        front = [] if self.modulated or c.pooled is None else [c.pooled[:, None]]
        in_context = self.specs.conditioning.tokens == "in_context"
        mask = None
        if c.tokens is not None and in_context:
            front.append(c.tokens)
            if c.mask is not None:
                mask = torch.nn.functional.pad(c.mask, (len(front[:-1]), 0), value=True)
        prefix = torch.cat(front, 1) if front else None
        context = (None, None) if in_context else (c.tokens, c.mask)
        return Prepared(modulation, prefix, mask, *context, c.features, c.shown, c.shown_at, c.keys)

    def _surroundings(
        self,
        grid: tuple[int, ...],
        prepared: Prepared,
        keep: Int[Tensor, "b m"] | None = None,
        kept: Sequence[int] | None = None,
    ) -> Surroundings:
        """The inputs of all blocks; those of the bottleneck come last."""
        n = len(self.register_tokens) + (0 if prepared.prefix is None else prepared.prefix.shape[1])
        each = [Windows.of(grid, window, n) for window in self.specs.block.windows] or [None]
        windows = [each[i % len(each)] for i in range(len(self.blocks))]
        if self.specs.branch.kind == "class_bottleneck":
            windows += [None] * len(self.bottleneck)
        like = self.register_tokens
        barred = prepared.prefix_mask is not None
        scores = block_scores(windows, self.relative, grid, n, self.heads, keep, like, barred)
        if prepared.prefix_mask is not None:
            tokens = math.prod(grid) if keep is None else keep.shape[1]
            bar = self._bar(prepared.prefix_mask, tokens)[:, None].expand(-1, self.heads, -1, -1)
            scores = [bar if bias is None else bias + bar for bias in scores]
        table = rotary(grid, n, like.shape[-1] // self.heads, like.device)[None] if self.rope else None
        return Surroundings(
            table if table is None or keep is None else kept_table(table, keep, n),
            None if kept is None else Ragged.of(kept, like.device),
            n,
            self._modulations(prepared.modulation),
            scores,
            [None if bias is not None else window for window, bias in zip(windows, scores)],
            None if prepared.context is None else (prepared.context, prepared.context_mask),
        )

    def _bar(self, mask: Bool[Tensor, "b p"], tokens: int) -> Float[Tensor, "b n n"]:
        """Scores of -inf at condition tokens in context that do not exist; `tokens` other tokens follow them."""
        there = torch.nn.functional.pad(mask, (len(self.register_tokens), tokens), value=True)
        bar = torch.zeros_like(there, dtype=self.register_tokens.dtype).masked_fill(~there, -torch.inf)
        return bar[:, None].expand(-1, there.shape[1], -1)

    def _block(self, i: int, x: Tensor, around: Surroundings, queries: Tensor | None = None) -> Tensor:
        modulation, bias, windows = around.modulations[i], around.scores[i], around.windows[i]
        return self.blocks[i](
            x, modulation, around.table, queries, around.rows, bias=bias, windows=windows, context=around.context
        )

    def _bottleneck(self, x: Tensor, around: Surroundings) -> Tensor:
        """Runs the blocks of the bottleneck on the class token of the last block and on tokens of an earlier block."""
        for block, bias in zip(self.bottleneck, around.scores[len(self.blocks) :]):
            x = block(x, None, around.table, None, around.rows, bias=bias)
        return x

    def _attention_of_class(self, x: Tensor, around: Surroundings) -> Float[Tensor, "b n"]:
        """The attention of the first prefix token to each token of the grid in the last block, averaged over heads.

        Args:
            x: the input of the last block.

        Raises:
            ValueError: there is no prefix token, or the blocks are modulated by a condition.
        """
        if not self.prefix or self.modulated:
            raise ValueError(
                "the attention of the class token needs a class token: set num_registers: 1 (and conditioning.pooled: "
                "in_context if the network has conditions)"
            )
        block: Any = self.blocks[-1]
        first = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        q, k, _ = block.attn.projected(block.norm1(x), around.table, first)
        bias = around.scores[len(self.blocks) - 1]
        bias = None if bias is None else of_queries(bias, first)
        return attention_probabilities(q, k, around.rows, bias).mean(1)[:, 0, around.prefix :]

    def layers(
        self, tokens: Shaped[Tensor, "b *grid"], conditioning: Conditioning | None = None
    ) -> list[Float[Tensor, "b n w"]]:
        """The output of each block (of the encoder) for unmasked tokens, for probes.

        The prefix comes first. The last output is normalised if the encoder ends with a norm.

        Raises:
            ValueError: a condition that cannot be left out is missing.
        """
        return self._walk(tokens, conditioning)[0][1:]

    def layers_and_attention(
        self, tokens: Shaped[Tensor, "b *grid"], conditioning: Conditioning | None = None
    ) -> tuple[list[Float[Tensor, "b n w"]], Float[Tensor, "b m"]]:
        """:meth:`layers`, and the attention of the first prefix token to each token in the last block, averaged over
        heads, for teachers."""
        made, around = self._walk(tokens, conditioning)
        return made[1:], self._attention_of_class(made[-2], around)

    def _walk(self, tokens: Tensor, conditioning: Conditioning | None) -> tuple[list[Tensor], Surroundings]:
        """The input of the first block, the output of each block, and the further inputs of the blocks."""
        grid = tuple(tokens.shape[1:-1] if self.codes_per_position > 1 or not self.codebook_size else tokens.shape[1:])
        x, prepared = self._embed(tokens, None, conditioning, grid)
        around, front = self._surroundings(grid, prepared), self._front(x, prepared)
        made = [torch.cat([front, x], 1) if front.shape[1] else x]
        for i in range(len(self.blocks)):
            made.append(self._block(i, made[-1], around))
        if self.decoder is not None:
            made[-1] = self.encoder_norm(made[-1])
        return made, around

    def _embed(
        self, tokens: Tensor, masked: Tensor | None, given: Conditioning | Prepared | None, grid: tuple[int, ...]
    ) -> tuple[Float[Tensor, "b n w"], Prepared]:
        """Embeds the tokens, with the mask token where `masked`, and adds condition features and positions."""
        single = self.codebook_size > 0 and self.codes_per_position == 1
        flat = (tokens[..., None] if single else tokens).flatten(1, -2)
        hidden = masked
        if masked is not None:
            hidden = (masked if self.codes_per_position > 1 else masked[..., None]).flatten(1, -2)
        shown = given if given is not None and given.shown is not None else None
        if shown is not None and hidden is not None:
            flat, hidden = _shown(flat, hidden, shown)
        if self.grouped:
            x = self.embedding(flat, hidden)
        else:
            x = self.embedding(flat)
            x = x if self.code_vectors is None else x + self.code_vectors.embed(flat[..., 0])
            x = x if hidden is None else torch.where(hidden, self.mask_token, x)
        prepared = given if isinstance(given, Prepared) else self.prepare(given, len(x), grid)
        if prepared.features is not None:
            x = x + prepared.features.to(x.dtype)
        return self.embedding_norm(with_positions(self, x, grid)), prepared

    def _front(self, x: Float[Tensor, "b n w"], prepared: Prepared) -> Float[Tensor, "b p w"]:
        """The tokens that precede those of the grid: registers and conditions in context."""
        front = [self.register_tokens.expand(len(x), -1, -1).to(x.dtype)]
        if prepared.prefix is not None:
            front.append(prepared.prefix.to(x.dtype))
        return torch.cat(front, 1) if len(front) > 1 else front[0]

    def _modulations(self, modulation: Float[Tensor, "b c w"] | None) -> list[Any]:
        """The modulations of each block (also of the decoder), (b, 6, w), and of the head, (b, 2, w); or Nones."""
        if modulation is None:
            return [None] * (len(self.blocks) + (len(self.decoder.blocks) if self.decoder else 0) + 1)
        return list(modulation.split(6, 1))


def _shown(
    flat: Tensor, hidden: Tensor, given: Conditioning | Prepared
) -> tuple[Shaped[Tensor, "b n c"], Bool[Tensor, "b n c"]]:
    """The tokens and the mask after shown tokens replace mask tokens (COMMIT)."""
    assert given.shown is not None
    assert given.shown_at is not None
    at = given.shown_at.view(hidden.shape)
    shown = given.shown.view(flat.shape)
    return torch.where(hidden & at, shown, flat), hidden & ~at


TRANSFORMERS = {"mask_transformer": MaskTransformer}
