"""The transformer block: self-attention and an MLP, optionally modulated by a condition (adaLN)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from maskgen.transformer.attention import Ragged, attend, attention_probabilities
from maskgen.transformer.kept import take
from maskgen.transformer.positions import rotate
from maskgen.transformer.relative import of_queries
from maskgen.transformer.specs import BlockSpec, Norm
from maskgen.transformer.windows import Windows
from maskgen.upgrade import rename_on_load


def make_norm(kind: Norm, width: int, affine: bool = True, eps: float = 1e-6) -> nn.Module:
    if kind == "rms":
        return nn.RMSNorm(width, eps=eps, elementwise_affine=affine)
    return nn.LayerNorm(width, eps=eps, elementwise_affine=affine)


def initialise(network: nn.Module, zeros: Iterable[Any]) -> None:
    """Initialises a network.

    Linear layers get Xavier's uniform weights (MAE, DiT), whose scale follows the width; with a fixed 0.02 narrow
    networks learn slowly. Biases are zero. Embeddings, positions and learned tokens are truncated normal with standard
    deviation 0.02.

    Args:
        network: the network.
        zeros: linear layers whose weights become zero (modulations of adaLN-zero, heads).
    """
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


@dataclass
class Past:
    """The keys and values of the previous tokens in one block.

    Args:
        room: float (2, b, heads, n, d), keys and values.
        length: number of tokens that are filled in.
    """

    room: Float[Tensor, "2 b h n d"]
    length: int = 0

    def extend(
        self, k: Float[Tensor, "b h k d"], v: Float[Tensor, "b h k d"]
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        """Appends keys and values, and returns all of them."""
        start, self.length = self.length, self.length + k.shape[2]
        self.room[0, :, :, start : self.length], self.room[1, :, :, start : self.length] = k, v
        return self.room[0, :, :, : self.length], self.room[1, :, :, : self.length]


class SelfAttention(nn.Module):
    """Multi-head self-attention with optional query-key normalisation and rotary positions.

    Args:
        width: width of the tokens.
        spec: of the block.
    """

    def __init__(self, width: int, spec: BlockSpec):
        super().__init__()
        self.heads, self.backend, self.dropout = spec.heads, spec.backend, spec.attention_dropout
        self.full_norm = spec.qk_norm == "full"
        normed = width if self.full_norm else width // spec.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = make_norm(spec.norm, normed) if spec.qk_norm != "none" else nn.Identity()
        self.k_norm = make_norm(spec.norm, normed) if spec.qk_norm != "none" else nn.Identity()
        self.norm = make_norm(spec.norm, width) if spec.sub_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

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
        """The attention output of all tokens, or of those at `queries`.

        Args:
            x: tokens.
            table: rotary table, or None.
            queries: indices of the tokens that attend; None is all.
            keys: needed if rows have different lengths.
            past: keys and values of previous tokens, to which tokens also attend.
            causal: tokens attend to themselves and to earlier tokens only.
            bias: added to the scores.
            windows: tokens attend within their window. It needs rows of one length and no bias.
        """
        dropped = self.dropout if self.training else 0.0
        if windows is not None and dropped:  # dropout needs probabilities, which windows do not give
            bias, windows = _barred(bias, windows.barred(x.device), self.heads, x), None
        if windows is not None:  # all queries, as windows hold different numbers of them
            made = windows.attend(*self.projected(x, table), self.backend).flatten(2)
            return self.proj(self.norm(made if queries is None else take(made, queries)))
        q, k, v = self.projected(x, table, queries, past)
        if causal and dropped:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            bias = _barred(bias, later, self.heads, x)
        if bias is not None and queries is not None:
            bias = of_queries(bias, queries)
        if dropped:
            weights = F.dropout(attention_probabilities(q, k, keys, bias), dropped)
            made = (weights.to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
        else:
            made = attend(q, k, v, self.backend, keys, causal, bias)
        return self.proj(self.norm(made.flatten(2)))

    def projected(
        self,
        x: Float[Tensor, "b n w"],
        table: Tensor | None,
        queries: Int[Tensor, "b k"] | None = None,
        past: Past | None = None,
    ) -> tuple[Float[Tensor, "b k h d"], Float[Tensor, "b m h d"], Float[Tensor, "b m h d"]]:
        """Normalised and rotated queries, keys and values; keys and values include those of the `past`."""
        if queries is None:
            q, k, v = self._heads(self.qkv(x), 3)
        else:
            w = x.shape[-1]
            (q,) = self._heads(F.linear(take(x, queries), self.qkv.weight[:w], self.qkv.bias[:w]), 1)
            k, v = self._heads(F.linear(x, self.qkv.weight[w:], self.qkv.bias[w:]), 2)
        if self.full_norm:  # over all heads together
            q, k = (norm(x.transpose(1, 2).flatten(2)) for norm, x in ((self.q_norm, q), (self.k_norm, k)))
            q, k = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2).to(v.dtype) for x in (q, k))
        else:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if table is not None:
            k = rotate(k, table)
            q = rotate(q, table if queries is None else take(table.expand(len(q), -1, -1), queries))
        if past is not None:
            k, v = past.extend(k, v)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _heads(self, x: Float[Tensor, "b n c"], parts: int) -> Float[Tensor, "p b h n d"]:
        """Splits heads, with heads before tokens, so that norms and rotations read contiguous memory."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


def _barred(bias: Tensor | None, barred: Bool[Tensor, "n n"], heads: int, like: Tensor) -> Float[Tensor, "#b h n n"]:
    """`bias` with -inf where attention is `barred`."""
    bar = torch.zeros_like(barred, dtype=like.dtype).masked_fill(barred, -torch.inf).expand(1, heads, -1, -1)
    return bar if bias is None else bias + bar


class CrossAttention(nn.Module):
    """Attention of tokens to a sequence of condition tokens (arXiv:1706.03762, section 3.2.3)."""

    def __init__(self, width: int, spec: BlockSpec):
        super().__init__()
        self.heads, self.backend = spec.heads, spec.backend
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        context: Float[Tensor, "b m w"],
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n w"]:
        """The attention output. The `mask` is True at condition tokens that exist, None means that all exist."""
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = self.kv(context.to(x.dtype)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        bias = None
        if mask is not None:
            bias = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)[:, None, None]
            bias = bias.expand(-1, self.heads, x.shape[1], -1)
        return self.proj(attend(q, k, v, self.backend, bias=bias).flatten(2))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202), or GELU without a gate.

    `mlp_ratio` is the ratio of hidden width to width of a plain MLP. The gated MLP has two thirds of this hidden width,
    and so as many weights.
    """

    def __init__(self, width: int, spec: BlockSpec):
        super().__init__()
        self.gated = spec.mlp == "swiglu"
        hidden = round(width * spec.mlp_ratio * 2 / 3 / 16) * 16 if self.gated else round(width * spec.mlp_ratio)
        self.fc1 = nn.Linear(width, 2 * hidden if self.gated else hidden)
        self.norm = make_norm(spec.norm, hidden) if spec.sub_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "... w"]) -> Float[Tensor, "... w"]:
        if self.gated:  # two products are faster than halves of one, as the results are contiguous
            gate, h = (F.linear(x, w, b) for w, b in zip(self.fc1.weight.chunk(2), self.fc1.bias.chunk(2)))
            return self.fc2(self.norm(F.silu(gate) * h))
        return self.fc2(self.norm(F.gelu(self.fc1(x))))


def modulate(x: Float[Tensor, "b n w"], scale: Tensor, shift: Tensor) -> Float[Tensor, "b n w"]:
    return torch.addcmul(shift, x, 1 + scale)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of a block of version 0.1."""
    names = {"attention.out.": "attn.proj.", "attention.": "attn.", "mlp.up.": "mlp.fc1.", "mlp.down.": "mlp.fc2."}
    made = {}
    for key, value in state.items():
        old = next((old for old in names if key.startswith(old)), None)
        made[key if old is None else names[old] + key[len(old) :]] = value
    return made


class LayerScale(nn.Module):
    """A learned factor per channel (CaiT, arXiv:2103.17239)."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Float[Tensor, "... w"]) -> Float[Tensor, "... w"]:
        return x * self.gamma


class Block(nn.Module):
    """A transformer block, optionally with adaLN-zero (DiT, Peebles and Xie 2023, arXiv:2212.09748, section 3.2).

    Args:
        width: width of the tokens.
        spec: options of the block.
        modulated: use adaLN: the norms have no weights, and :meth:`forward` needs a modulation.
        cross: add cross-attention to condition tokens.
        left_out: probability of leaving out a residual branch in training (stochastic depth).
        eps: of the norms.
    """

    def __init__(
        self,
        width: int,
        spec: BlockSpec,
        modulated: bool = False,
        cross: bool = False,
        left_out: float = 0.0,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.post = spec.norm_position == "post"
        self.norm1 = make_norm(spec.norm, width, not modulated, eps)
        self.attn = SelfAttention(width, spec)
        if cross:
            self.norm_cross, self.cross = make_norm(spec.norm, width, eps=eps), CrossAttention(width, spec)
        self.norm2 = make_norm(spec.norm, width, not modulated, eps)
        self.mlp = MLP(width, spec)
        self.dropout = nn.Dropout(spec.dropout)
        scaled = spec.layer_scale > 0
        self.scale1 = LayerScale(width, spec.layer_scale) if scaled else nn.Identity()
        self.scale2 = LayerScale(width, spec.layer_scale) if scaled else nn.Identity()
        self.left_out = StochasticDepth(left_out, "row") if left_out else nn.Identity()
        rename_on_load(self, renamed)

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        modulation: Float[Tensor, "b 6 w"] | None = None,
        table: Tensor | None = None,
        queries: Int[Tensor, "b k"] | None = None,
        keys: Ragged | None = None,
        past: Past | None = None,
        causal: bool = False,
        bias: Float[Tensor, "#b h n n"] | None = None,
        windows: Windows | None = None,
        context: tuple[Float[Tensor, "b m w"], Bool[Tensor, "b m"] | None] | None = None,
    ) -> Float[Tensor, "b k w"]:
        """The output at all tokens, or only at `queries` (all tokens remain keys).

        Args:
            modulation: (scale, shift, gate) of the attention and of the MLP.
            context: condition tokens and their mask, for cross-attention.

        The other arguments are those of :class:`SelfAttention`.
        """
        parts = None if modulation is None else modulation[:, :, None].unbind(1)
        h = x if self.post else self.norm1(x) if parts is None else modulate(self.norm1(x), parts[0], parts[1])
        h = self._branch(self.attn(h, table, queries, keys, past, causal, bias, windows), self.scale1)
        x = x if queries is None else take(x, queries)
        x = x + h if parts is None else torch.addcmul(x, h, parts[2])
        x = self.norm1(x) if self.post else x
        if context is not None:
            x = x + self.left_out(self.dropout(self.cross(self.norm_cross(x), *context)))
        h = x if self.post else self.norm2(x) if parts is None else modulate(self.norm2(x), parts[3], parts[4])
        h = self._branch(self.mlp(h), self.scale2)
        x = x + h if parts is None else torch.addcmul(x, h, parts[5])
        return self.norm2(x) if self.post else x

    def _branch(self, h: Float[Tensor, "b n w"], scale: nn.Module) -> Float[Tensor, "b n w"]:
        return self.left_out(scale(self.dropout(h)))
