"""The class of each image file: from its folder, or from a labels file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MAX_LABEL = 100_000  # an integer label beyond this is a mistake, not a class
FORMATS = 'CSV with the header "filename,label", JSON {filename: label}, or JSON {"labels": [[filename, label], ...]}'

Classes = tuple[list[int], list[str]]  # the class number of each image; the names of the classes


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder that it lies in, is hidden (``.name``) or is macOS's ``__MACOSX``."""
    parts = path.split("/")
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)


def classes_of_folders(root: Path, names: Sequence[str]) -> Classes:
    """The first folder of each name ("class/name.png") is its class; without folders all have one class, "all".

    Raises:
        ValueError: some images lie in no class folder, or a class folder has no images.
    """
    loose = [name for name in names if "/" not in name]
    if len(loose) == len(names):
        return [0] * len(names), ["all"]
    if loose:
        raise ValueError(
            f"{root} holds both images ({_some(loose)}) and folders of images; "
            "move every image into a class folder, or give a labels file"
        )
    classes = sorted({name.split("/")[0] for name in names})
    children = root.iterdir() if root.is_dir() else ()  # an archive has no folders without files
    folders = sorted(child.name for child in children if child.is_dir() and not is_hidden(child.name))
    if empty := [name for name in folders if name not in classes]:
        raise ValueError(f"class folder without images in {root}: {_some(empty)}; fill or remove it")
    number = {name: i for i, name in enumerate(classes)}
    return [number[name.split("/")[0]] for name in names], classes


def classes_of_file(file: Path, names: Sequence[str]) -> Classes:
    """The class of each image in a labels file; integers are kept, texts are numbered in sorted order.

    Raises:
        ValueError: there is no such file, it has none of the three formats, a name occurs twice, a label has no image,
            an image has no label, or labels mix integers with text or are out of range.
    """
    labels = read_labels(file)
    if missing := sorted(set(labels) - set(names)):
        raise ValueError(f"{file} labels {len(missing)} images that do not exist (or are not images): {_some(missing)}")
    if unlabelled := [name for name in names if name not in labels]:
        raise ValueError(f"{len(unlabelled)} images have no label in {file}: {_some(unlabelled)}; add or move them")
    values = [labels[name] for name in names]
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) == len(values):
        if min(numbers) < 0 or max(numbers) > MAX_LABEL:
            raise ValueError(
                f"integer labels in {file} run from {min(numbers)} to {max(numbers)}; they are class numbers, "
                f"from 0 to at most {MAX_LABEL}"
            )
        return numbers, [str(number) for number in range(max(numbers) + 1)]
    if numbers:
        text = next(value for value in values if isinstance(value, str))
        raise ValueError(f"{file} mixes integer labels ({numbers[0]}) with text ({text!r}); use one kind")
    classes = sorted({str(value) for value in values})
    number = {name: i for i, name in enumerate(classes)}
    return [number[str(value)] for value in values], classes


def read_labels(file: Path) -> dict[str, int | str]:
    """The content of a labels file as {relative file name: label}."""
    if not file.is_file():
        raise ValueError(f"labels file {file} does not exist; give a {FORMATS}")
    if file.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"labels file {file} is neither .csv nor .json; give a {FORMATS}")
    try:
        pairs = _read_csv(file) if file.suffix.lower() == ".csv" else _read_json(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    labels: dict[str, int | str] = {}
    for pair in pairs:
        if not _is_pair(pair):
            raise ValueError(f"{file}: {pair!r} is not a file name and a label (integer or text); give a {FORMATS}")
        name = pair[0].replace("\\", "/").removeprefix("./")
        if name in labels:
            raise ValueError(f"{file} labels {name} twice; keep one")
        labels[name] = pair[1]
    return labels


def _read_csv(file: Path) -> Iterable[Any]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        if not {"filename", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{file} begins with {reader.fieldnames}; its header must have filename,label")
        rows = [(row["filename"], row["label"]) for row in reader]
    integers = all(label and label.lstrip("-").isdecimal() for _, label in rows)
    return [(name, int(label)) for name, label in rows] if integers else rows


def _read_json(file: Path) -> Iterable[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if isinstance(content, dict) and set(content) == {"labels"}:
        content = content["labels"]
    pairs = content.items() if isinstance(content, dict) else content
    if not isinstance(content, (dict, list)) or not pairs:
        raise ValueError(f"{file} holds no labels; give a {FORMATS}")
    return list(pairs)


def _is_pair(pair: Any) -> bool:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
        return False
    return isinstance(pair[1], (int, str)) and not isinstance(pair[1], bool) and pair[1] != ""


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
