"""Conditioners, which turn classes, actions and tasks into a `Conditioning`."""

from maskgen.conditioning.conditioners import (
    CONDITIONERS,
    ActionConditioner,
    ClassConditioner,
    Conditioner,
    Conditioners,
    LabelConditioner,
    TaskConditioner,
)
from maskgen.conditioning.conditioning import Conditioning, merge, stack, take_rows

__all__ = [
    "CONDITIONERS",
    "ActionConditioner",
    "ClassConditioner",
    "Conditioner",
    "Conditioners",
    "Conditioning",
    "LabelConditioner",
    "TaskConditioner",
    "merge",
    "stack",
    "take_rows",
]
