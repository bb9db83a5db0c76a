"""Teachers made of our own networks: a run's, frozen, and the student's own average."""

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
    """The (encoder of the) transformer of a run of ours, a generator's or a representation's.

    Beside its features it gives its class token, and that one's attention in the last block, where it has a register;
    a network that classes modulate (adaLN) gives its features alone.

    Args:
        path: of the run, or its pipeline's folder.
        layers: how many of the last blocks' features are given (5 for MaskAlign).

    Raises:
        ValueError: fewer blocks, or a network whose blocks differ in size.
    """

    def __init__(self, path: str, layers: int = 1):
        super().__init__()
        self.backbone = load_backbone(path)
        if not isinstance(self.backbone.transformer, MaskTransformer):
            raise ValueError(f"teacher.path {path}: a Hiera's blocks differ in size; give a run of a mask_transformer")
        depth = len(self.backbone.transformer.blocks)
        if not 1 <= layers <= depth:
            raise ValueError(f"teacher.layers {layers}: this run's network has 1 to {depth}")
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
    """The exponential moving average of the student, which sees everything (iBOT, HPM, AttMask).

    Args:
        momentum: of the average at the start; it rises to `final` by a cosine (0.996 to 1 in iBOT).
        final: at the end.
        of: what the target is made of: the head's ``predictions`` (iBOT) or the ``features`` before it (data2vec).
    """

    def __init__(
        self, momentum: float = 0.996, final: float = 1.0, of: Literal["predictions", "features"] = "predictions"
    ):
        super().__init__()
        if not 0 <= momentum <= final <= 1:
            raise ValueError(f"0 <= momentum <= final <= 1 is needed, got {momentum} and {final}")
        self.momentum, self.final, self.of = momentum, final, of

    def follow(self, student: nn.Module) -> None:
        """Start as a copy."""
        self.network = copy.deepcopy(student)
        self.freeze()

    @torch.no_grad()
    def update(self, student: nn.Module, progress: float) -> None:
        """One step towards the student; `progress` of the training in [0, 1]."""
        momentum = self.final - (self.final - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        for mine, theirs in zip(self.network.parameters(), student.parameters()):
            mine.lerp_(theirs.to(mine), 1 - momentum)
        for kept, now in zip(self.network.buffers(), student.buffers()):
            kept.copy_(now)

    @torch.no_grad()
    def sources(self, tokens: Tensor) -> dict[str, Any]:
        """``features`` (b, d, *grid), and as the network has them ``class_features`` (b, d), its class token's
        ``attention`` (b, n), and the ``losses`` (b, n) that it expects."""
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
