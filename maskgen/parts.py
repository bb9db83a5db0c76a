"""Parts by name: the tables that configuration files may name, and nothing else.

A *table* maps a name to a constructor (a class or a function). A *spec* is what a YAML file says of a part:
a name (``"cosine"``) or a mapping with the name under ``type`` and the constructor's own arguments beside it
(``{"type": "uniform", "low": 0.5}``). A constructor that takes a part annotates the parameter
``Annotated[Any, Part(TABLE)]`` and calls :func:`build`, which also passes ready-made objects through, so Python users
may give either. Hyper-parameters are therefore written once: in the constructor's signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Annotation metadata: this parameter is a part chosen from `table`."""

    table: Table


def split(value: Any) -> tuple[str | None, dict[str, Any]]:
    """A spec's name and arguments; the name is None where the mapping has no ``type``."""
    if isinstance(value, str):
        return value, {}
    return value.get("type"), {k: v for k, v in value.items() if k != "type"}


def build(table: Table, value: Any, **context: Any) -> Any:
    """Construct the part that `value` names; `context` is added to its arguments.

    A `value` that is neither a name nor a mapping is taken to be the part itself.

    Raises:
        ValueError: the name is not in the table.
    """
    if not isinstance(value, (str, Mapping)):
        return value
    name, arguments = split(value)
    if name not in table:
        raise ValueError(f"unknown part {name!r}; choose one of {', '.join(table)}")
    return table[name](**arguments, **context)
