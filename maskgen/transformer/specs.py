"""The nested specs of a transformer, and the check of which options go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from maskgen.registry import build_spec
from maskgen.transformer.attention import Backend
from maskgen.transformer.positions import Positions

Norm = Literal["layer", "rms"]


@dataclass(frozen=True)
class TokenSpec:
    """The tokens of a network.

    Args:
        codebook_size: number of codes; 0 for continuous tokens.
        dim: dimension of a continuous token; 0 for codes.
        codes_per_position: number of codes at each position, each of `codebook_size` (bit groups of MaskBit, or the
            codes of a residual or multichannel tokenizer). Each code is hidden and predicted separately.
        embedding: of codes: a ``table``, or a linear layer on their ``bits`` (MaskBit, arXiv:2409.16211, section 3.3).
        code_dim: dimension of the tokenizer's code vectors if codes are also embedded and predicted through them
            (:class:`maskgen.transformer.vectors.CodeVectors`), else 0.
        norm: apply a LayerNorm to the sum of token and position embeddings (BERT, MAGE).
    """

    codebook_size: int = 0
    dim: int = 0
    codes_per_position: int = 1
    embedding: Literal["table", "bits"] = "table"
    code_dim: int = 0
    norm: bool = False


@dataclass(frozen=True)
class PositionSpec:
    """The positions of tokens. Generators need an absolute one, as the tokens of a blank canvas are equal.

    Args:
        embedding: added to the tokens: ``learned`` (resized to other grids), ``learned_sum`` of a vector for the first
            axis and one for the other axes (time and space in MaskViT), ``sincos``, or ``none``.
        rope: rotate queries and keys by their position along each axis (arXiv:2104.09864).
        relative_bias: learned biases of the attention scores by the offset of query and key (BEiT, arXiv:2106.08254):
            one table ``shared`` by all blocks, or one for each ``block``.
    """

    embedding: Positions = "learned"
    rope: bool = True
    relative_bias: Literal["none", "shared", "block"] = "none"


@dataclass(frozen=True)
class BlockSpec:
    """A transformer block.

    Args:
        heads: attention heads; they must divide the width.
        mlp_ratio: ratio of the MLP's hidden width to the width (SwiGLU: of a plain MLP with as many weights).
        mlp: ``swiglu`` (arXiv:2002.05202) or ``gelu``.
        norm: ``layer`` or ``rms``.
        norm_position: ``pre``, before attention and MLP, or ``post``, after the residual sum (BERT, arXiv:1810.04805).
        qk_norm: normalise queries and keys per ``head`` (arXiv:2302.05442), over the ``full`` width, or ``none``.
        dropout: dropout rate of the residual branches.
        attention_dropout: dropout rate of the attention probabilities.
        layer_scale: initial value of a learned factor per channel on each branch (arXiv:2103.17239); 0 disables it.
        sub_norm: add norms before the output projections of attention and MLP (Magneto, arXiv:2210.06423).
        stochastic_depth: probability of leaving out a branch of the last block; it grows linearly with depth from 0
            (arXiv:1603.09382).
        windows: block i attends within windows of ``windows[i % len(windows)]`` tokens along each axis of the grid,
            where 0 is the whole axis; an empty list is full attention. ``[[1, 0, 0], [0, 4, 4]]`` alternates between
            frames, and 4 x 4 tokens of all frames (MaskViT, arXiv:2206.11894, section 3.2). Prefix tokens attend to all
            tokens, and all tokens attend to them. A decoder has full attention.
        backend: see :mod:`maskgen.transformer.attention`.
    """

    heads: int = 12
    mlp_ratio: float = 4.0
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    norm: Norm = "layer"
    norm_position: Literal["pre", "post"] = "pre"
    qk_norm: Literal["head", "full", "none"] = "head"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_scale: float = 0.0
    sub_norm: bool = False
    stochastic_depth: float = 0.0
    windows: list[list[int]] = field(default_factory=list)
    backend: Backend = "auto"


@dataclass(frozen=True)
class ConditioningSpec:
    """How the network uses each field of a `Conditioning`. Features per position are always added to the tokens.

    Args:
        inputs: the conditioners by the name of their input: ``{label: {type: class, count: 1000}}``.
        pooled: ``adaln`` (adaLN-zero, arXiv:2212.09748: each block has its own modulation), ``adaln_shared`` (one
            modulation for all blocks plus a learned offset per block, PixArt-alpha, arXiv:2310.00426), or
            ``in_context`` (one more prefix token).
        tokens: ``in_context`` (prefix tokens) or ``cross_attention`` (in each block, between attention and MLP).
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    pooled: Literal["adaln", "adaln_shared", "in_context"] = "adaln"
    tokens: Literal["in_context", "cross_attention"] = "in_context"


@dataclass(frozen=True)
class DecoderSpec:
    """The decoder of an asymmetric network (MAE, MAGE): the encoder sees the kept tokens, the decoder all positions.

    Args:
        depth: number of blocks; 0 is no decoder.
        width, heads: 0 takes those of the encoder. AdaLN needs the width of the encoder.
        pad: the decoder's input at hidden positions: a learned ``mask_token`` (MAE), or the encoder's ``class_token``
            (MAGE), which needs a register.
    """

    depth: int = 0
    width: int = 0
    heads: int = 0
    pad: Literal["mask_token", "class_token"] = "mask_token"


@dataclass(frozen=True)
class BranchSpec:
    """A second branch that predicts.

    Args:
        kind: ``class_bottleneck`` adds `depth` blocks that see the class token of the last block and the other tokens
            of block `layer`, so that the class token must represent the image (BEiT v2, arXiv:2208.06366, section 2.3).
            ``decoder`` is a second decoder (HPM, arXiv:2304.05919). ``none`` is no branch.
        depth, layer: of the bottleneck.
        out_dim: values that the branch predicts per token; 0 shares the norm and the head of the main path.
    """

    kind: Literal["none", "class_bottleneck", "decoder"] = "none"
    depth: int = 2
    layer: int = 9
    out_dim: int = 0


@dataclass(frozen=True)
class Specs:
    """All specs of a network."""

    tokens: TokenSpec
    positions: PositionSpec
    block: BlockSpec
    conditioning: ConditioningSpec
    decoder: DecoderSpec
    branch: BranchSpec

    @classmethod
    def of(cls, **given: Any) -> Specs:
        """Builds the specs from mappings or specs.

        Raises:
            ValueError: an option is unknown.
        """
        kinds = {
            "tokens": TokenSpec,
            "positions": PositionSpec,
            "block": BlockSpec,
            "conditioning": ConditioningSpec,
            "decoder": DecoderSpec,
            "branch": BranchSpec,
        }
        return cls(**{name: build_spec(kind, given.get(name), name) for name, kind in kinds.items()})


def check_sides(width: int, heads: int, rope: bool, what: str) -> None:
    """Checks that the heads divide the width.

    Raises:
        ValueError: they do not, or, with `rope`, the width of a head is not a multiple of 4.
    """
    if width % heads or (rope and (width // heads) % 4):
        raise ValueError(f"{what}: width {width} over heads {heads} must be an integer, and with rope a multiple of 4")


def check(width: int, depth: int, num_registers: int, head: str, at_cls_token: bool, s: Specs, modulated: bool) -> None:
    """Checks which options of a MaskTransformer go together. All such rules are here.

    Raises:
        ValueError: options exclude each other; the message names the option to change.
    """
    check_sides(width, s.block.heads, s.positions.rope, "block")
    check_sides(s.decoder.width or width, s.decoder.heads or s.block.heads, s.positions.rope, "decoder")
    grouped = s.tokens.codes_per_position > 1 or s.tokens.embedding == "bits"
    bottleneck, branch = s.branch.kind == "class_bottleneck", s.branch.kind != "none"
    rules: list[tuple[Any, str]] = [
        (
            (s.tokens.codebook_size > 0) == (s.tokens.dim > 0),
            f"tokens are codes or continuous: set one of tokens.codebook_size ({s.tokens.codebook_size}) and "
            f"tokens.dim ({s.tokens.dim})",
        ),
        (
            s.decoder.depth and modulated and s.decoder.width not in (0, width),
            "an adaLN condition needs decoder.width 0, the encoder's; or set conditioning.pooled: in_context",
        ),
        (
            s.decoder.depth and s.decoder.pad == "class_token" and not num_registers,
            "decoder.pad: class_token needs a register; set num_registers: 1",
        ),
        (
            (at_cls_token or bottleneck) and not num_registers,
            "cls_token_head and branch.kind: class_bottleneck need the class token; set num_registers: 1",
        ),
        (
            s.decoder.depth and (head == "layer_mix" or bottleneck),
            "head.type: layer_mix and branch.kind: class_bottleneck need decoder.depth: 0",
        ),
        (
            head == "layer_mix" and branch and not s.branch.out_dim,
            "head.type: layer_mix has no shared norm; set branch.out_dim",
        ),
        (
            s.branch.kind == "decoder" and not (s.decoder.depth and s.branch.out_dim),
            "branch.kind: decoder needs a decoder; set decoder.depth and branch.out_dim",
        ),
        (
            bottleneck and not 1 <= s.branch.layer <= depth,
            f"branch.layer {s.branch.layer} must lie between 1 and the depth {depth}",
        ),
        (
            modulated and (head in ("projector", "layer_mix") or branch),
            "this head or branch does not go with an adaLN condition; set conditioning.pooled: in_context",
        ),
        (
            s.tokens.code_dim and (grouped or s.tokens.dim or head != "linear"),
            "tokens.code_dim needs one code per position and a linear head: set tokens.codes_per_position: 1 and "
            "head.type: linear",
        ),
        (
            grouped and s.tokens.dim,
            "tokens.codes_per_position and tokens.embedding are options of codes; continuous tokens have none",
        ),
        (
            s.block.norm_position == "post" and (modulated or s.block.sub_norm),
            "block.norm_position: post does not go with adaLN or sub_norm; set conditioning.pooled: in_context and "
            "block.sub_norm: false",
        ),
        (
            head == "mlm" and (grouped or s.tokens.dim),
            "head.type: mlm is tied to a table of codes: set tokens.codes_per_position: 1, tokens.embedding: table",
        ),
    ]
    for wrong, remedy in rules:
        if wrong:
            raise ValueError(remedy)


def upgraded(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the flat arguments of version 0.1 into those of MaskTransformer."""
    given = dict(flat)
    made: dict[str, Any] = {name: given.pop(name) for name in ("grid", "width", "depth") if name in given}
    names = {
        "tokens": {
            "codebook_size": "codebook_size",
            "token_dim": "dim",
            "groups": "codes_per_position",
            "embedding": "embedding",
            "code_dim": "code_dim",
            "embedding_norm": "norm",
        },
        "positions": {"positions": "embedding", "rope": "rope", "relative_bias": "relative_bias"},
        "block": {
            **{name: name for name in ("heads", "mlp_ratio", "mlp", "norm", "dropout", "windows", "backend")},
            "qk_norm": "qk_norm",
        },
        "decoder": {"decoder_depth": "depth", "decoder_width": "width", "decoder_heads": "heads", "pad": "pad"},
        "branch": {
            "branch_type": "kind",
            "branch_depth": "depth",
            "branch_layer": "layer",
            "branch_predictions": "out_dim",
        },
        "conditioning": {"condition": "pooled"},
    }
    for part, table in names.items():
        flat_here = [old for old in table if old in given and not isinstance(given[old], Mapping)]  # not a present spec
        nested = {table[old]: given.pop(old) for old in flat_here}
        if part == "block" and isinstance(nested.get("qk_norm"), bool):
            nested["qk_norm"] = "head" if nested["qk_norm"] else "none"
        if nested:
            made[part] = nested
    for old, new in (("registers", "num_registers"), ("predictions", "out_dim")):
        if old in given:
            made[new] = given.pop(old)
    kind = given.pop("head_type", "linear")
    head = {old: given.pop(f"head_{old}") for old in ("hidden", "bottleneck", "mixtures") if f"head_{old}" in given}
    own = {"projector": ("hidden", "bottleneck"), "layer_mix": ("mixtures",)}.get(kind, ())
    made["head"] = {"type": kind, **{name: head[name] for name in own if name in head}}
    if given.pop("class_predictions", False):
        made["cls_token_head"] = True
    inputs: dict[str, Any] = {}
    action_dim, dropout = given.pop("action_dim", 0), given.pop("class_dropout", 0.1)
    if action_dim:
        inputs["actions"] = {"type": "actions", "dim": action_dim}
    classes = given.pop("num_classes", None)
    if classes is not None:
        inputs["label"] = {"type": "class", "count": classes, "dropout": dropout}
    if inputs:
        made.setdefault("conditioning", {})["inputs"] = inputs
    return {**made, **given}


OLD = frozenset({"heads", "codebook_size", "token_dim", "registers", "condition"})


def is_flat(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` was saved by version 0.1."""
    return bool(OLD & set(config))
