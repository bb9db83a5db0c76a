"""The group of commands, which names the new option when a renamed one is given."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from maskgen.renamed import RENAMED


class Group(TyperGroup):
    """Reject options that :data:`maskgen.renamed.RENAMED` lists under ``maskgen COMMAND``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, as the base class does.

        Raises:
            typer.BadParameter: an option of the command has a new name.
        """
        name, command, rest = super().resolve_command(ctx, args)
        renamed = RENAMED.get(f"maskgen {name}", {})
        for argument in rest:
            if new := renamed.get(argument.partition("=")[0]):
                raise typer.BadParameter(f"{argument.partition('=')[0]} is now called {new}; give {new}", ctx=ctx)
        return name, command, rest
