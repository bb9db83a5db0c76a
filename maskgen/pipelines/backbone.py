"""A tokenizer and a transformer as a network of features: pixels -> what each block makes of them."""

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
    """Features of unmasked images, by layer; of generators too.

    Args:
        tokenizer: makes the transformer's tokens.
        transformer: whose (encoder) blocks are the layers.
        layer: which of them :meth:`forward` gives; negative counts from the last.

    Raises:
        ValueError: no such layer.
    """

    def __init__(self, tokenizer: Tokenizer, transformer: MaskTransformer | Hiera, layer: int = -1):
        super().__init__()
        depth = len(transformer.blocks)
        if not -depth <= layer < depth:
            raise ValueError(f"layer {layer}: this transformer has layers 0 to {depth - 1}, or -1 to -{depth}")
        self.tokenizer, self.transformer, self.layer = tokenizer, transformer, layer % depth

    @property
    def prefix(self) -> int:
        """Tokens before the patches': a class in context, registers."""
        return self.transformer.prefix

    @property
    def width(self) -> int:
        """Of the layer's features."""
        block: Any = self.transformer.blocks[self.layer]
        return block.norm2.normalized_shape[0]

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "b c H W"]) -> Float[Tensor, "b n w"]:
        """Features of the layer, the prefix first."""
        return self.layers(pixels)[self.layer]

    def layers(self, pixels: Float[Tensor, "b c H W"]) -> list[Float[Tensor, "b n w"]]:
        """Every layer's; gradients go to the transformer."""
        with torch.no_grad():
            tokens = self.tokenizer.encode(pixels)
        return self.transformer.layers(tokens)


def save_backbone(tokenizer: Tokenizer, transformer: nn.Module, folder: Path) -> None:
    """``folder/tokenizer/`` and ``folder/transformer/``, where pipelines have them too."""

    def write(part: Path) -> None:
        tokenizer.save_pretrained(part / "tokenizer")
        transformer.save_pretrained(part / "transformer")  # type: ignore[operator]

    replace_folder(folder, write)


def load_backbone(path: str | Path, layer: int = -1) -> Backbone:
    """The backbone of a run, or of a pipeline's folder, in evaluation mode.

    Raises:
        FileNotFoundError: there is none.
        ValueError: no such layer, or a network of another kind.
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
