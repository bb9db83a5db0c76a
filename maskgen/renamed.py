"""Options that have a new name: the one table. A configuration that uses an old name gets an error with the new one.

Folders saved under the old names still load: :func:`moved` translates their settings. The table is kept for one
release after a renaming.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# constructor name -> old option -> new option, as a dotted path where the option is now part of a nested spec
_CONV = {"middle_blocks": "middle.blocks", "middle_attention": "middle.attention", "groups": "norm_groups"}
_VIT = {
    "registers": "transformer.num_registers",
    **{
        key: f"transformer.{key}"
        for key in ("width", "depth", "heads", "mlp_ratio", "positions", "pre_norm", "norm_eps")
    },
}
RENAMED: dict[str, dict[str, str]] = {
    "ConvEncoder": _CONV,
    "ConvDecoder": _CONV,
    "CausalEncoder": {"groups": "norm_groups"},
    "CausalDecoder": {"groups": "norm_groups"},
    "ViTEncoder": _VIT,
    "ViTDecoder": _VIT,
    "FiniteScalarQuantizer": {"steps": "levels"},
    "ResidualQuantizer": {"levels": "num_quantizers"},
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
