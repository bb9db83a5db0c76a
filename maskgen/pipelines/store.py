"""The folders of runs, pipelines and tokenizers on disk."""

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
    """Let `write` fill a new folder, and then replace `folder` by it."""
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    write(part)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def save_tokenizer(tokenizer: nn.Module, folder: Path) -> None:
    """Save a tokenizer as ``folder/vqvae/``, as pipelines do."""
    replace_folder(folder, lambda part: tokenizer.save_pretrained(part / "vqvae"))  # type: ignore[operator]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a run (of either stage), of a pipeline, or of its own folder, in evaluation mode.

    Folders of earlier versions call it ``tokenizer/`` instead of ``vqvae/``; they load too.

    Raises:
        FileNotFoundError: there is no tokenizer.
    """
    for parent in (Path(path) / "pipeline", Path(path)):
        for folder in (parent / "vqvae", parent / "tokenizer", parent):
            if (folder / "config.json").is_file():
                return Tokenizer.from_pretrained(folder).eval()
    raise FileNotFoundError(
        f"no tokenizer at {path}: give a run (with pipeline/vqvae/), a pipeline (with vqvae/) or a tokenizer's own "
        "folder (with config.json); `maskgen train tokenizer/...` makes one"
    )


def pipeline_folder(name: str | Path) -> Path | str:
    """The folder of a pipeline, given that folder or its run; a Hub name (owner/name) stays as it is.

    Raises:
        FileNotFoundError: there is no such folder, or no pipeline in it.
    """
    parent = Path(name).parent
    local = str(name).count("/") != 1 or parent.is_dir() or str(parent) == "runs"
    if local and not Path(name).exists():
        raise FileNotFoundError(f"no run or pipeline at {name}; `maskgen train` makes one (Hub names: owner/name)")
    folder = Path(name) / "pipeline" if (Path(name) / "pipeline").is_dir() else name
    if local and not (Path(folder) / "model_index.json").is_file():
        raise FileNotFoundError(
            f"no pipeline at {name}, for it has no model_index.json: give the run of a generator or critic whose "
            "training is done; the run of a tokenizer is for `maskgen reconstruct` and `encode`"
        )
    return folder


def fingerprint(module: nn.Module) -> str:
    """A digest of the weights, 16 hexadecimal digits, by which token caches and transformers know their tokenizer."""
    digest = hashlib.sha256()
    state = getattr(module, "fingerprint_state", module.state_dict)()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
