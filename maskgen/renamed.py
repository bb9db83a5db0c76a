"""Options that have a new name: the one table. A configuration that uses an old name gets an error with the new one.

Folders saved under the old names still load: :func:`moved` translates their settings. The table is kept for one
release after a renaming.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# constructor name -> old option -> new option, as a dotted path where the option is now part of a nested spec
RENAMED: dict[str, dict[str, str]] = {
    "MaskScheduler": {
        "draw_temperature": "temperature",
        "draw_anneal": "temperature_anneal",
        "anneal": "choice_anneal",
    },
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
