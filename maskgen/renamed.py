"""The options that have a new name, in one table. An old name is an error that names the new one.

The table covers the arguments of constructors (in configurations), the options of commands, and the parameters that
images keep. Folders and images saved under the old names still load, because :func:`moved` translates them. The table
is kept for one release after a renaming.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NETWORK = {
    **{
        name: f"block.{name}"
        for name in ("heads", "mlp_ratio", "mlp", "norm", "qk_norm", "dropout", "windows", "backend")
    },
    "codebook_size": "tokens.codebook_size",
    "token_dim": "tokens.dim",
    "groups": "tokens.codes_per_position",
    "embedding": "tokens.embedding",
    "code_dim": "tokens.code_dim",
    "embedding_norm": "tokens.norm",
    "rope": "positions.rope",
    "relative_bias": "positions.relative_bias",
    "condition": "conditioning.pooled",
    "class_dropout": "stage.conditioning: [{type: class, dropout: ...}]",
    "registers": "num_registers",
    "predictions": "out_dim",
    "decoder_depth": "decoder.depth",
    "decoder_width": "decoder.width",
    "decoder_heads": "decoder.heads",
    "pad": "decoder.pad",
    "head_type": "head.type",
    "head_hidden": "head.hidden",
    "head_bottleneck": "head.bottleneck",
    "head_mixtures": "head.mixtures",
    "class_predictions": "cls_token_head",
    "branch_type": "branch.kind",
    "branch_depth": "branch.depth",
    "branch_layer": "branch.layer",
    "branch_predictions": "branch.out_dim",
}
_STAGE = {
    "conditional": "conditioning (a list of conditioners: [class], or [] for none)",
    "actions": "conditioning (a list of conditioners: [actions])",
}

_CONV = {"middle_blocks": "middle.blocks", "middle_attention": "middle.attention", "groups": "norm_groups"}
_VIT = {
    "registers": "transformer.num_registers",
    **{
        key: f"transformer.{key}"
        for key in ("width", "depth", "heads", "mlp_ratio", "positions", "pre_norm", "norm_eps")
    },
}

# What was renamed in -> old option -> new option. The outer key is the name of a constructor, `maskgen COMMAND`, or
# `image parameters`. The new option of a constructor is a dotted path if it is now part of a nested spec.
RENAMED: dict[str, dict[str, str]] = {
    "MaskTransformer": _NETWORK,
    "CausalTransformer": _NETWORK,
    "Hiera": {
        "token_dim": "tokens.dim",
        "predictions": "out_dim",
        "patch": "stem.stride",
        "kernel": "stem.kernel",
        "pool": "pooling.pool",
        "pools": "pooling.pools",
        "unit": "pooling.unit",
        "unit_stages": "pooling.unit_stages",
        "decoder_depth": "decoder.depth",
        "decoder_width": "decoder.width",
        "decoder_heads": "decoder.heads",
    },
    "GeneratorStage": _STAGE,
    "AutoregressiveStage": _STAGE,
    "ConvEncoder": _CONV,
    "ConvDecoder": _CONV,
    "CausalEncoder": {"groups": "norm_groups"},
    "CausalDecoder": {"groups": "norm_groups"},
    "ViTEncoder": _VIT,
    "ViTDecoder": _VIT,
    "FiniteScalarQuantizer": {"steps": "levels"},
    "ResidualQuantizer": {"levels": "num_quantizers"},
    "maskgen evaluate": {"--temperature": "--choice-temperature"},
    "image parameters": {"temperature": "choice_temperature"},
    "MaskScheduler": {
        "draw_temperature": "temperature",
        "draw_anneal": "temperature_anneal",
        "anneal": "choice_anneal",
    },
}


def new_name(constructor: Any, option: Any) -> str | None:
    """The new name of `option` of `constructor` (a class or function), or None where the option was not renamed."""
    return RENAMED.get(getattr(constructor, "__name__", ""), {}).get(option)


def moved(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` of the constructor called `name`, with each renamed option at its new (nested) place."""
    made: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, last = RENAMED.get(name, {}).get(key, key).split(".")
        target = made
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return made
