"""A results file of named entries, each written when it is done, so that a killed command is simply given again."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, dict[str, Any]]:
    return json.loads(file.read_text()) if file.is_file() else {}


def add_entry(file: Path, key: str, entry: dict[str, Any]) -> None:
    """Into the JSON as it is now, which another command may have written to since; in the order of the keys."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(dict(sorted({**read(file), key: entry}.items())), indent=1) + "\n")
    os.replace(part, file)


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
