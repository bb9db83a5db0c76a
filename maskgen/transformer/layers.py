"""The transformer block: self-attention and a gated MLP, modulated by a condition where there is one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskgen.transformer.attention import Backend, Ragged, attend
from maskgen.transformer.kept import take
from maskgen.transformer.positions import rotate
from maskgen.transformer.relative import of_queries
from maskgen.transformer.windows import Windows

Norm = Literal["layer", "rms"]


def make_norm(kind: Norm, width: int, affine: bool = True, eps: float = 1e-6) -> nn.Module:
    if kind == "rms":
        return nn.RMSNorm(width, eps=eps, elementwise_affine=affine)
    return nn.LayerNorm(width, eps=eps, elementwise_affine=affine)


def initialise(network: nn.Module, zeros: Iterable[Any]) -> None:
    """Xavier's uniform weights (MAE, DiT), whose scale goes with the width: a narrow network learns slowly at a fixed
    0.02. Zero biases; embeddings, positions and own tokens truncated normal 0.02; `zeros` start at zero (modulations of
    adaLN-zero, heads)."""
    own = ("mask_token", "register_tokens", "position_embedding", "first_embedding", "start")
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
    for name, parameter in network.named_parameters():
        if name.split(".")[-1] in own:
            nn.init.trunc_normal_(parameter, std=0.02)
    for linear in zeros:
        nn.init.zeros_(linear.weight)


def class_vectors(network: Any, labels: Int[Tensor, "b"] | None, batch: int) -> Float[Tensor, "b w"] | None:
    """Of the classes, None where the network has none; no labels are no class. In training each is dropped with the
    probability `class_dropout`.

    Raises:
        ValueError: labels given to an unconditional network.
    """
    if network.num_classes is None:
        if labels is not None:
            raise ValueError("class labels given to an unconditional transformer")
        return None
    if labels is None:
        labels = torch.full((batch,), network.num_classes, device=network.class_embedding.weight.device)
    if network.training and network.class_dropout > 0:
        dropped = torch.rand(batch, device=labels.device) < network.class_dropout
        labels = labels.masked_fill(dropped, network.num_classes)
    return network.class_embedding(labels)


@dataclass
class Past:
    """One layer's keys and values of the tokens before: room (2, b, heads, n, d), the first `length` tokens filled."""

    room: Float[Tensor, "2 b h n d"]
    length: int = 0

    def extend(
        self, k: Float[Tensor, "b h k d"], v: Float[Tensor, "b h k d"]
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        """All keys and values with the new ones behind, which are kept."""
        start, self.length = self.length, self.length + k.shape[2]
        self.room[0, :, :, start : self.length], self.room[1, :, :, start : self.length] = k, v
        return self.room[0, :, :, : self.length], self.room[1, :, :, : self.length]


class SelfAttention(nn.Module):
    """Multi-head self-attention with optional query-key normalisation and rotary positions."""

    def __init__(self, width: int, heads: int, norm: Norm, qk_norm: bool, backend: Backend):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = make_norm(norm, width // heads) if qk_norm else nn.Identity()
        self.k_norm = make_norm(norm, width // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        table: Tensor | None,
        queries: Int[Tensor, "b k"] | None = None,
        keys: Ragged | None = None,
        past: Past | None = None,
        causal: bool = False,
        bias: Float[Tensor, "#b h n n"] | None = None,
        windows: Windows | None = None,
    ) -> Float[Tensor, "b k w"]:
        """All tokens attend, or only those at `queries`, to all tokens of their row and of its `past`, or (`causal`) to
        themselves and those before them, or to those of their window (of rows of one length, without a bias)."""
        if windows is not None:  # of the queries asked for each window has another number
            made = windows.attend(*self.projected(x, table), self.backend).flatten(2)
            return self.out(made if queries is None else take(made, queries))
        q, k, v = self.projected(x, table, queries, past)
        if bias is not None and queries is not None:
            bias = of_queries(bias, queries)
        return self.out(attend(q, k, v, self.backend, keys, causal, bias).flatten(2))

    def projected(
        self,
        x: Float[Tensor, "b n w"],
        table: Tensor | None,
        queries: Int[Tensor, "b k"] | None = None,
        past: Past | None = None,
    ) -> tuple[Float[Tensor, "b k h d"], Float[Tensor, "b m h d"], Float[Tensor, "b m h d"]]:
        """Queries, keys and values, normed and rotated; keys and values of the `past` too."""
        if queries is None:
            q, k, v = self._heads(self.qkv(x), 3)
        else:
            w = x.shape[-1]
            (q,) = self._heads(F.linear(take(x, queries), self.qkv.weight[:w], self.qkv.bias[:w]), 1)
            k, v = self._heads(F.linear(x, self.qkv.weight[w:], self.qkv.bias[w:]), 2)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if table is not None:
            k = rotate(k, table)
            q = rotate(q, table if queries is None else take(table.expand(len(q), -1, -1), queries))
        if past is not None:
            k, v = past.extend(k, v)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _heads(self, x: Float[Tensor, "b n c"], parts: int) -> Float[Tensor, "p b h n d"]:
        """Heads before tokens, so that norms and rotations run over long contiguous pieces."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202), or GELU without a gate.

    `ratio` is the hidden width over `width` of a plain MLP; the gated one has two thirds of it, for as many weights.
    """

    def __init__(self, width: int, ratio: float, kind: Literal["swiglu", "gelu"]):
        super().__init__()
        self.gated = kind == "swiglu"
        hidden = round(width * ratio * 2 / 3 / 16) * 16 if self.gated else round(width * ratio)
        self.up = nn.Linear(width, 2 * hidden if self.gated else hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "... w"]) -> Float[Tensor, "... w"]:
        if self.gated:  # two products, not one cut in halves: contiguous, which a processor likes
            gate, h = (F.linear(x, w, b) for w, b in zip(self.up.weight.chunk(2), self.up.bias.chunk(2)))
            return self.down(F.silu(gate) * h)
        return self.down(F.gelu(self.up(x)))


def modulate(x: Float[Tensor, "b n w"], scale: Tensor, shift: Tensor) -> Float[Tensor, "b n w"]:
    return torch.addcmul(shift, x, 1 + scale)


class Block(nn.Module):
    """Pre-norm block; with `modulated`, adaLN-zero (DiT, Peebles and Xie 2023, arXiv:2212.09748, section 3.2)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        norm: Norm,
        mlp: Literal["swiglu", "gelu"],
        qk_norm: bool,
        dropout: float,
        modulated: bool,
        backend: Backend,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = make_norm(norm, width, not modulated, eps)
        self.attention = SelfAttention(width, heads, norm, qk_norm, backend)
        self.norm2 = make_norm(norm, width, not modulated, eps)
        self.mlp = GatedMLP(width, mlp_ratio, mlp)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        modulation: Float[Tensor, "b 6 w"] | None,
        table: Tensor | None,
        queries: Int[Tensor, "b k"] | None = None,
        keys: Ragged | None = None,
        past: Past | None = None,
        causal: bool = False,
        bias: Float[Tensor, "#b h n n"] | None = None,
        windows: Windows | None = None,
    ) -> Float[Tensor, "b k w"]:
        """The block at all tokens, or only at `queries` (every token still is a key)."""
        parts = None if modulation is None else modulation[:, :, None].unbind(1)
        h = self.norm1(x) if parts is None else modulate(self.norm1(x), parts[0], parts[1])
        h = self.dropout(self.attention(h, table, queries, keys, past, causal, bias, windows))
        x = x if queries is None else take(x, queries)
        x = x + h if parts is None else torch.addcmul(x, h, parts[2])
        h = self.norm2(x) if parts is None else modulate(self.norm2(x), parts[3], parts[4])
        h = self.dropout(self.mlp(h))
        return x + h if parts is None else torch.addcmul(x, h, parts[5])
