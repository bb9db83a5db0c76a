"""Teachers made from our own networks: the frozen network of a run, and the average of the student."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.frozen import Frozen
from maskgen.mim.core import grid_of
from maskgen.mim.teachers import Teacher
from maskgen.pipelines.backbone import load_backbone
from maskgen.registry import Part
from maskgen.training.offline import TEACHER as OTHERS
from maskgen.transformer.model import MaskTransformer


class RunTeacher(Teacher):
    """The transformer (or its encoder) of a run of the generator or representation stage, frozen.

    A network with a class token also provides this token and its attention in the last block, unless the network is
    modulated by classes (adaLN).

    Args:
        path: the folder of the run or of its pipeline.
        layers: number of last blocks whose features are provided (5 for MaskAlign).

    Raises:
        ValueError: the network has fewer blocks, or its blocks differ in size.
    """

    def __init__(self, path: str, layers: int = 1):
        super().__init__()
        self.backbone = load_backbone(path)
        if not isinstance(self.backbone.transformer, MaskTransformer):
            raise ValueError(f"teacher.path={path}: the blocks of Hiera differ in size; give a run of mask_transformer")
        depth = len(self.backbone.transformer.blocks)
        if not 1 <= layers <= depth:
            raise ValueError(f"teacher.layers is {layers}; for this network it must be from 1 to {depth}")
        self.count = layers
        self.freeze()

    def features(self, pixels: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d p q"]:
        return self._map(self.backbone.layers(pixels)[-1], pixels)

    @torch.no_grad()
    def sources(self, pixels: Float[Tensor, "b c H W"], grid: tuple[int, int]) -> dict[str, Any]:
        transformer: Any = self.backbone.transformer
        tokens = self.backbone.tokenizer.encode(pixels)
        if not transformer.prefix or transformer.modulated:
            last = [layer.float() for layer in transformer.layers(tokens)[-self.count :]]
            return {"features": [self.resized(self._map(x, pixels), grid) for x in last]}
        made, attention = transformer.layers_and_attention(tokens)
        last = [layer.float() for layer in made[-self.count :]]
        maps = attention.unflatten(1, self._grid(pixels))[:, None]
        return {
            "features": [self.resized(self._map(x, pixels), grid) for x in last],
            "class_features": [x[:, 0, :, None, None] for x in last],
            "attention": self.resized(maps, grid).flatten(1),
        }

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        h, w = self.backbone.tokenizer.grid((pixels.shape[2], pixels.shape[3]))
        return h, w

    def _map(self, layer: Float[Tensor, "b n w"], pixels: Tensor) -> Float[Tensor, "b w p q"]:
        return layer[:, self.backbone.prefix :].transpose(1, 2).unflatten(2, self._grid(pixels))


class EMATeacher(Frozen):
    """The exponential moving average of the student, which sees all tokens (iBOT, HPM, AttMask).

    Args:
        momentum: momentum of the average at the start; it follows a cosine to `final` (0.996 to 1 in iBOT).
        final: momentum at the end.
        of: what the target is made from: the ``predictions`` of the head (iBOT) or the ``features`` before it
            (data2vec).
    """

    def __init__(
        self, momentum: float = 0.996, final: float = 1.0, of: Literal["predictions", "features"] = "predictions"
    ):
        super().__init__()
        if not 0 <= momentum <= final <= 1:
            raise ValueError(f"momentum and final must satisfy 0 <= momentum <= final <= 1, got {momentum} and {final}")
        self.momentum, self.final, self.of = momentum, final, of

    def follow(self, student: nn.Module) -> None:
        """Become a copy of the student."""
        self.network = copy.deepcopy(student)
        self.freeze()

    @torch.no_grad()
    def update(self, student: nn.Module, progress: float) -> None:
        """Move one step towards the student; `progress` is the share of the training that is done, in [0, 1]."""
        momentum = self.final - (self.final - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        for mine, theirs in zip(self.network.parameters(), student.parameters()):
            mine.lerp_(theirs.to(mine), 1 - momentum)
        for kept, now in zip(self.network.buffers(), student.buffers()):
            kept.copy_(now)

    @torch.no_grad()
    def sources(self, tokens: Tensor) -> dict[str, Any]:
        """``features`` (b, d, *grid) and, where the network has them, ``class_features`` (b, d), the ``attention``
        (b, n) of its class token and the ``losses`` (b, n) that it predicts."""
        grid = grid_of(tokens)
        network: Any = self.network
        nothing = torch.zeros(len(tokens), *grid, dtype=torch.bool, device=tokens.device)
        output = network(tokens, nothing, **({"attention": True} if network.prefix else {}))
        values = (output.predictions if self.of == "predictions" else output.features).float()
        found: dict[str, Any] = {"features": values.transpose(1, 2).unflatten(2, grid)}
        if self.of == "features" and network.prefix:
            found["class_features"] = output.prefix[:, 0].float()
        elif self.of == "predictions" and output.class_predictions is not None:
            found["class_features"] = output.class_predictions.float()
        if output.attention is not None:
            found["attention"] = output.attention.float()
        if output.branch is not None:
            found["losses"] = output.branch.float().mean(-1)
        return found


TEACHER = Part({**OTHERS.table, "run": RunTeacher, "ema": EMATeacher})
