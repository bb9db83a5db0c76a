"""Heads: linear, the MLM head of BERT, the projector of iBOT, and the layer mixture of MaskAlign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.registry import Part


class Projector(nn.Module):
    """A three-layer MLP, normalised to unit length, followed by products with `out` prototypes of norm 1 (DINO,
    arXiv:2104.14294, section 3.1; iBOT, arXiv:2111.07832, appendix B).

    Args:
        width: width of the features.
        hidden, bottleneck: widths of the MLP (2048 and 256 in iBOT).
        out: number of prototypes (8192 in iBOT).
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, out: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Linear(bottleneck, out, bias=False)

    def forward(self, x: Float[Tensor, "*b w"]) -> Float[Tensor, "*b k"]:
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(self.prototypes.weight, dim=-1))


class LayerMix(nn.Module):
    """Several predictions, each from a learned mixture of the outputs of all blocks through its own linear layer
    (MaskAlign, arXiv:2211.15492, section 3.2, "dynamic alignment").

    Args:
        width, depth: of the transformer.
        mixtures: number of predictions; mixture i is initialised to block depth - mixtures + i.
        out: values of all predictions together, a multiple of `mixtures`.

    Raises:
        ValueError: `mixtures` is out of range or does not divide `out`.
    """

    def __init__(self, width: int, depth: int, mixtures: int, out: int):
        super().__init__()
        if not 1 <= mixtures <= depth or out % mixtures:
            raise ValueError(
                f"{mixtures} mixtures of {depth} layers cannot predict {out} values; set head.mixtures to a divisor"
            )
        self.weights = nn.Parameter(torch.eye(depth)[-mixtures:] + 0.01)
        self.heads = nn.ModuleList(nn.Linear(width, out // mixtures) for _ in range(mixtures))

    def forward(self, layers: Sequence[Float[Tensor, "b n w"]]) -> Float[Tensor, "b n k"]:
        mixed = torch.einsum("ml,lbnw->mbnw", self.weights.to(layers[0].dtype), torch.stack(list(layers)))
        return torch.cat([head(x) for head, x in zip(self.heads, mixed)], dim=-1)


class MLMHead(nn.Module):
    """The MLM head of BERT (arXiv:1810.04805): a linear layer, GELU, LayerNorm, products with the code embeddings, and
    a bias.

    Args:
        width: width of the features and of the code embeddings.
        out: number of codes.
        eps: of the LayerNorm.
    """

    def __init__(self, width: int, out: int, eps: float = 1e-12):
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Float[Tensor, "*b w"], table: Float[Tensor, "k w"]) -> Float[Tensor, "*b k"]:
        return F.linear(self.norm(F.gelu(self.dense(x))), table, self.bias)


def linear(last_width: int, out: int, **_: Any) -> nn.Module:
    """A linear layer."""
    return nn.Linear(last_width, out)


def projector(last_width: int, out: int, hidden: int = 2048, bottleneck: int = 256, **_: Any) -> nn.Module:
    """A :class:`Projector` to prototypes (iBOT)."""
    return Projector(last_width, hidden, bottleneck, out)


def layer_mix(width: int, depth: int, out: int, mixtures: int = 5, **_: Any) -> nn.Module:
    """A :class:`LayerMix` over all blocks (MaskAlign)."""
    return LayerMix(width, depth, mixtures, out)


def mlm(last_width: int, out: int, **_: Any) -> nn.Module:
    """An :class:`MLMHead`, tied to the code embeddings."""
    return MLMHead(last_width, out)


HEADS = {"linear": linear, "projector": projector, "layer_mix": layer_mix, "mlm": mlm}
HEAD = Part(HEADS, given=("width", "last_width", "depth", "out"), default="linear")
