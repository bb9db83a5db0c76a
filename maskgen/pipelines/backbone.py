"""A tokenizer and a transformer as a network of features: pixels -> the features of each block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.pipelines.store import load_tokenizer, replace_folder
from maskgen.registry import choose
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.hiera import NETWORKS, Hiera
from maskgen.transformer.model import MaskTransformer


class Backbone(nn.Module):
    """The features of unmasked images by layer, of representations and of generators.

    Args:
        tokenizer: makes the tokens of the transformer.
        transformer: its (encoder) blocks are the layers.
        layer: the layer that :meth:`forward` gives; negative numbers count from the last.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, tokenizer: Tokenizer, transformer: MaskTransformer | Hiera, layer: int = -1):
        super().__init__()
        depth = len(transformer.blocks)
        if not -depth <= layer < depth:
            raise ValueError(f"layer {layer}: this transformer has layers 0 to {depth - 1}, or -1 to -{depth}")
        self.tokenizer, self.transformer, self.layer = tokenizer, transformer, layer % depth

    @property
    def prefix(self) -> int:
        """The number of tokens before those of the image: a class in context, registers."""
        return self.transformer.prefix

    @property
    def width(self) -> int:
        """The width of the features of the layer."""
        block: Any = self.transformer.blocks[self.layer]
        return block.norm2.normalized_shape[0]

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n w"]:
        """The features of the layer; the prefix comes first."""
        return self.layers(pixels)[self.layer]

    def layers(self, pixels: Float[Tensor, "b c H W"]) -> list[Float[Tensor, "b n w"]]:
        """The features of every layer, with gradients to the transformer."""
        with torch.no_grad():
            tokens = self.tokenizer.encode(pixels)
        return self.transformer.layers(tokens)


def save_backbone(tokenizer: Tokenizer, transformer: nn.Module, folder: Path) -> None:
    """Save ``folder/vqvae/`` and ``folder/transformer/``, as pipelines do."""

    def write(part: Path) -> None:
        tokenizer.save_pretrained(part / "vqvae")
        transformer.save_pretrained(part / "transformer")  # type: ignore[operator]

    replace_folder(folder, write)


def load_backbone(path: str | Path, layer: int = -1) -> Backbone:
    """Load the backbone of a run or of a pipeline's folder, in evaluation mode.

    Raises:
        FileNotFoundError: there is no transformer.
        ValueError: there is no such layer, or the network is of another kind.
    """
    classes = {kind.__name__: kind for kind in NETWORKS.values()}
    for folder in (Path(path) / "pipeline", Path(path)):
        config = folder / "transformer" / "config.json"
        if config.is_file():
            name = json.loads(config.read_text()).get("_class_name", MaskTransformer.__name__)
            kind = choose(classes, name, "network")
            transformer = kind.from_pretrained(folder / "transformer")
            return Backbone(load_tokenizer(folder), transformer, layer).eval()
    raise FileNotFoundError(
        f"no transformer at {path}: give a run of a generator or of a representation, or its pipeline folder"
    )
