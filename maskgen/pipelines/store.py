"""Where saved things lie: runs, pipelines, tokenizers on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from maskgen.tokenizer.model import Tokenizer


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder, then put it in the place of the old one."""
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    write(part)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def save_tokenizer(tokenizer: nn.Module, folder: Path) -> None:
    """``folder/tokenizer/``, where pipelines have it too."""
    replace_folder(folder, lambda part: tokenizer.save_pretrained(part / "tokenizer"))  # type: ignore[operator]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a run (of either stage), of a pipeline, or of its own folder, in evaluation mode.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in (Path(path) / "pipeline" / "tokenizer", Path(path) / "tokenizer", Path(path)):
        if (folder / "config.json").is_file():
            return Tokenizer.from_pretrained(folder).eval()
    raise FileNotFoundError(
        f"no tokenizer at {path}: give a run (with pipeline/tokenizer/), a pipeline (with tokenizer/) or a tokenizer's "
        "own folder (with config.json); `maskgen train tokenizer/...` makes one"
    )


def pipeline_folder(name: str | Path) -> Path | str:
    """The folder of a pipeline, that in a run, or a Hub name (owner/name) as it is.

    Raises:
        FileNotFoundError: no such folder, or no pipeline in it.
    """
    local = str(name).count("/") != 1 or Path(name).parent.is_dir()
    if local and not Path(name).exists():
        raise FileNotFoundError(f"no run or pipeline at {name}; `maskgen train` makes one (Hub names: owner/name)")
    folder = Path(name) / "pipeline" if (Path(name) / "pipeline").is_dir() else name
    if local and not (Path(folder) / "model_index.json").is_file():
        raise FileNotFoundError(
            f"no pipeline at {name}, for it has no model_index.json: give the run of a generator or critic, which has "
            "one when its training is done; a tokenizer's run is for `maskgen reconstruct` and `encode`"
        )
    return folder


def fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits of the weights, so that token caches and transformers know their tokenizer."""
    digest = hashlib.sha256()
    state = getattr(module, "fingerprint_state", module.state_dict)()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
