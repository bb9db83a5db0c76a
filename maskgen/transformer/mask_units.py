"""Token grids arranged by mask unit, (b, units, *cell, width), and the block with which Hiera pools the cells."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from maskgen.transformer.attention import Backend, attend
from maskgen.transformer.layers import MLP, Block, make_norm
from maskgen.transformer.layers import renamed as block_names
from maskgen.transformer.specs import BlockSpec
from maskgen.upgrade import rename_on_load


class PoolingBlock(nn.Module):
    """The first block of a stage, which widens the tokens and max-pools the queries and the skip connection.

    Args:
        width, wider: width before and after the block.
        heads: number of heads after the block.
        mlp_ratio: ratio of the hidden width of the MLP to `wider`.
        stride: number of neighbours along each axis that are pooled into one.
        backend: of the attention.
    """

    def __init__(self, width: int, wider: int, heads: int, mlp_ratio: float, stride: Sequence[int], backend: Backend):
        super().__init__()
        self.heads, self.stride, self.backend = heads, tuple(stride), backend
        self.norm1 = make_norm("layer", width)
        self.skip = nn.Linear(width, wider)
        self.qkv = nn.Linear(width, 3 * wider)
        self.proj = nn.Linear(wider, wider)
        self.norm2 = make_norm("layer", wider)
        self.mlp = MLP(wider, plain_spec(heads, mlp_ratio, backend))
        rename_on_load(self, renamed)

    def forward(self, x: Float[Tensor, "b u ..."], within: bool) -> Float[Tensor, "b u ..."]:
        """The pooled tokens. With `within` tokens attend only within their mask unit."""
        h = self.norm1(x)
        x = pooled(self.skip(h), self.stride)
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        heads = [rows(part, within).unflatten(-1, (self.heads, -1)) for part in (pooled(q, self.stride), k, v)]
        x = x + self.proj(attend(heads[0], heads[1], heads[2], self.backend).flatten(2)).view(x.shape)
        return x + self.mlp(self.norm2(x))


def plain_block(width: int, heads: int, mlp_ratio: float, backend: Backend) -> Block:
    """The block of a plain vision transformer."""
    return Block(width, plain_spec(heads, mlp_ratio, backend))


def plain_spec(heads: int, mlp_ratio: float, backend: Backend) -> BlockSpec:
    """The options of the block of a plain vision transformer."""
    return BlockSpec(heads=heads, mlp_ratio=mlp_ratio, mlp="gelu", qk_norm="none", backend=backend)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of a pooling block of version 0.1."""
    return {("proj." + key[4:] if key.startswith("out.") else key): value for key, value in block_names(state).items()}


def rows(x: Float[Tensor, "b u ..."], within: bool) -> Float[Tensor, "r n w"]:
    """Rows of tokens that attend to each other: one row per mask unit, or one per image."""
    return (x.flatten(0, 1) if within else x).flatten(1, -2)


def pooled(x: Float[Tensor, "b u ..."], stride: Sequence[int]) -> Float[Tensor, "b u ..."]:
    """Max-pooling of neighbours, with one stride per axis."""
    for axis, step in enumerate(stride, start=2):
        x = x.unflatten(axis, (-1, step)).amax(axis + 1) if step > 1 else x
    return x


def cut(x: Shaped[Tensor, "b ..."], sides: Sequence[int]) -> Shaped[Tensor, "b u ..."]:
    """Cuts a grid (b, \\*grid, ...) into blocks (b, blocks, \\*sides, ...), both in row-major order."""
    axes = len(sides)
    for i, side in enumerate(sides):
        x = x.unflatten(1 + 2 * i, (-1, side))
    blocks, inside = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    return x.permute(0, *blocks, *inside, *range(2 * axes + 1, x.ndim)).flatten(1, axes)


def joined(x: Shaped[Tensor, "b u ..."], counts: Sequence[int]) -> Shaped[Tensor, "b ..."]:
    """The inverse of :func:`cut`; `counts` is the number of blocks along each axis."""
    axes = len(counts)
    x = x.unflatten(1, tuple(counts))
    pairs = [axis for i in range(1, axes + 1) for axis in (i, i + axes)]
    x = x.permute(0, *pairs, *range(2 * axes + 1, x.ndim))
    for i in range(1, axes + 1):
        x = x.flatten(i, i + 1)
    return x
