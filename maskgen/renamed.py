"""The options that have a new name, in one table. An old name is an error that names the new one.

The table covers the arguments of constructors (in configurations), the options of commands, and the parameters that
images keep. Folders and images saved under the old names still load, because :func:`moved` translates them. The table
is kept for one release after a renaming.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What was renamed in -> old option -> new option. The outer key is the name of a constructor, `maskgen COMMAND`, or
# `image parameters`. The new option of a constructor is a dotted path if it is now part of a nested spec.
RENAMED: dict[str, dict[str, str]] = {
    "maskgen evaluate": {"--temperature": "--choice-temperature"},
    "image parameters": {"temperature": "choice_temperature"},
}


def new_name(constructor: Any, option: str) -> str | None:
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
