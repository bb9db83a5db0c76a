"""Parts by name: the tables that configuration files may name, and nothing else.

A *table* maps a name to a constructor (a class or a function). A *spec* is what a YAML file says of a part:
a name (``cosine``) or a mapping with the name under ``type`` and the constructor's own arguments as further keys
(``{type: uniform, low: 0.5}``). A constructor that takes a part annotates the parameter
``Annotated[Any, Part(TABLE)]`` and calls :func:`build`, which also passes ready-made objects through, so Python users
may give either. Hyper-parameters are therefore written once: in the constructor's signature.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from typing import Any

from maskgen.renamed import new_name

Table = Mapping[str, Any]


@dataclass(frozen=True, eq=False)  # compared as itself, or `Part | None` could not hash the table
class Part:
    """Annotation of a parameter that takes a part from `table`.

    `given` names the constructor arguments that the code supplies (a codebook size known from the tokenizer, say):
    they may not stand in a spec. `default` is the type of a mapping that names none.
    """

    table: Table
    given: tuple[str, ...] = ()
    default: str | None = None


@dataclass(frozen=True, eq=False)
class Nested:
    """Annotation of a parameter that takes a nested spec: a mapping of the fields of the dataclass `kind`.

    `given` names the fields that the code supplies: they may not stand in a configuration.
    """

    kind: Any
    given: tuple[str, ...] = ()


def build_spec(kind: Any, value: Any, name: str) -> Any:
    """The dataclass `kind` of a mapping of its fields; None is all defaults, and an instance passes through.

    Raises:
        ValueError: a key that is no field, with the nearest one.
    """
    if isinstance(value, kind):
        return value
    allowed = [field.name for field in fields(kind)]
    for key in value or {}:
        if key not in allowed:
            raise ValueError(f"{name}.{key}: unknown key; {nearest(key, allowed)}allowed: {', '.join(allowed)}")
    return kind(**(value or {}))


def split(value: Any, default: str | None = None) -> tuple[Any, dict[str, Any]]:
    """A spec's name, as given, and arguments; the name is `default` where the mapping has no ``type``."""
    if isinstance(value, str):
        return value, {}
    return value.get("type", default), {k: v for k, v in value.items() if k != "type"}


def nearest(word: Any, allowed: Iterable[str]) -> str:
    """``did you mean 'cosine'? `` or nothing, for the front of an error's list of allowed names."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5) if isinstance(word, str) else []
    return f"did you mean {close[0]!r}? " if close else ""


def choose(table: Table, name: Any, what: str = "name") -> Any:
    """``table[name]``, or a ValueError with the nearest and all the allowed names."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}: {nearest(name, table)}choose one of {', '.join(table)}")
    return table[name]


def build(part: Part, value: Any, **given: Any) -> Any:
    """Construct the part that `value` names; `given` is added to its arguments.

    A `value` that is neither a name nor a mapping is taken to be the part itself.

    Raises:
        ValueError: the name is not in the table, or an option has a new name.
    """
    if not isinstance(value, (str, Mapping)):
        return value
    name, arguments = split(value, part.default)
    constructor = choose(part.table, name, "part")
    for option in arguments:
        if (renamed := new_name(constructor, option)) is not None:
            raise ValueError(f"{name}.{option} is now called {name}.{renamed}; rename it")
    return constructor(**_nested(constructor, arguments), **given)


def _nested(constructor: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` with each mapping for a parameter that is a dataclass turned into that dataclass."""
    if not any(isinstance(value, Mapping) for value in arguments.values()):
        return arguments
    function = constructor.func if isinstance(constructor, partial) else constructor
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    specs: dict[str, Any] = {key: hint for key, hint in hints.items() if is_dataclass(hint)}
    return {
        key: specs[key](**value) if key in specs and isinstance(value, Mapping) else value
        for key, value in arguments.items()
    }


def plain(value: Any) -> Any:
    """A spec with every dataclass in it as a mapping, as ``config.json`` can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return {key: plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
