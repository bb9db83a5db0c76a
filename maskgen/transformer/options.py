"""Which options of a MaskTransformer go together."""

from __future__ import annotations

from typing import Any


def check(c: Any) -> None:
    """`c`: a :class:`maskgen.transformer.model.MaskTransformer`'s configuration.

    Raises:
        ValueError: options that exclude each other, with what to set instead.
    """
    modulated = c.num_classes is not None and c.condition != "in_context"
    grouped = c.groups > 1 or c.embedding == "bits"
    bottleneck = c.branch_type == "class_bottleneck"
    problem = _sides(c.width, c.heads, c.rope) or _sides(
        c.decoder_width or c.width, c.decoder_heads or c.heads, c.rope, "decoder_"
    )
    problem = problem or (
        f"tokens are codes or continuous: codebook_size {c.codebook_size}, token_dim {c.token_dim}"
        if (c.codebook_size > 0) == (c.token_dim > 0)
        else "an adaLN condition needs decoder_width 0, the encoder's; or set condition: in_context"
        if c.decoder_depth and modulated and c.decoder_width not in (0, c.width)
        else "pad: class_token needs a register; set registers: 1"
        if c.decoder_depth and c.pad == "class_token" and not c.registers
        else "class_predictions and branch_type: class_bottleneck need the class token; set registers: 1"
        if (c.class_predictions or bottleneck) and not c.registers
        else "head_type: layer_mix and branch_type: class_bottleneck go with decoder_depth: 0"
        if c.decoder_depth and (c.head_type == "layer_mix" or bottleneck)
        else "head_type: layer_mix has no shared norm; give branch_predictions"
        if c.head_type == "layer_mix" and c.branch_type != "none" and not c.branch_predictions
        else "branch_type: decoder needs a decoder; set decoder_depth, and branch_predictions"
        if c.branch_type == "decoder" and not (c.decoder_depth and c.branch_predictions)
        else f"branch_layer {c.branch_layer} must lie between 1 and the depth {c.depth}"
        if bottleneck and not 1 <= c.branch_layer <= c.depth
        else "head and branch other than the default go without an adaLN condition; set condition: in_context"
        if modulated and (c.head_type != "linear" or c.branch_type != "none")
        else "code_dim is of one code a place, predicted by a linear head: set groups: 1, head_type: linear"
        if c.code_dim and (grouped or c.token_dim or c.head_type != "linear")
        else "groups and embedding are of codes; continuous tokens have none"
        if grouped and c.token_dim
        else None
    )
    if problem:
        raise ValueError(problem)


def _sides(width: int, heads: int, rope: bool, what: str = "") -> str | None:
    if width % heads or (rope and (width // heads) % 4):
        return f"{what}width {width} over heads {heads} must be whole, with rope also a multiple of 4"
    return None
