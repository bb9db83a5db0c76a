"""What the user gives -> `Conditioning`: classes, actions, tasks."""

from maskgen.conditioning.conditioners import (
    CONDITIONERS,
    ActionConditioner,
    ClassConditioner,
    Conditioner,
    Conditioners,
    LabelConditioner,
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
    "merge",
    "stack",
    "take_rows",
]
