"""A results file of named entries. Each is written when it is done, so a command that was killed can be run again."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, dict[str, Any]]:
    return json.loads(file.read_text()) if file.is_file() else {}


def add_entry(file: Path, key: str, entry: dict[str, Any]) -> None:
    """Add an entry to the JSON, sorted by key; another command may have written to the file meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(dict(sorted({**read(file), key: entry}.items())), indent=1) + "\n")
    os.replace(part, file)


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
