"""Hiera: a hierarchical transformer whose mask units can be left out (arXiv:2306.00989)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from maskgen.conditioning import Conditioners
from maskgen.registry import Nested, build_spec
from maskgen.transformer.attention import Backend
from maskgen.transformer.decoder import Decoder
from maskgen.transformer.kept import take
from maskgen.transformer.layers import initialise, make_norm
from maskgen.transformer.mask_units import PoolingBlock, cut, joined, plain_block, rows
from maskgen.transformer.model import TRANSFORMERS, TransformerOutput
from maskgen.transformer.positions import add_positions, with_positions
from maskgen.transformer.specs import DecoderSpec, TokenSpec
from maskgen.upgrade import load_saved

CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class StemSpec:
    """The first convolution: its `stride` and (odd) `kernel`, one number per axis (video: [2, 4, 4] and [3, 7, 7])."""

    stride: list[int] = field(default_factory=lambda: [4, 4])
    kernel: list[int] = field(default_factory=lambda: [7, 7])


@dataclass(frozen=True)
class PoolingSpec:
    """Pooling and mask units.

    Args:
        pool: number of neighbours along each axis that are pooled into one (video: [1, 2, 2]).
        pools: number of poolings, less than the number of stages (MAE: 2, so that a token is 16 x 16 pixels).
        unit: tokens of a mask unit along each axis (2 x 2 is 32 x 32 pixels; video: [1, 2, 2]).
        unit_stages: number of first stages that attend within mask units; the other stages attend to all tokens. The
            first block of a stage, which pools, attends as the previous stage does.
    """

    pool: list[int] = field(default_factory=lambda: [2, 2])
    pools: int = 2
    unit: list[int] = field(default_factory=lambda: [2, 2])
    unit_stages: int = 2


def from_flat(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the flat arguments of version 0.1 into those of Hiera."""
    given = dict(flat)
    given.pop("codebook_size", None), given.pop("num_classes", None)
    nested = {
        "tokens": {"token_dim": "dim"},
        "stem": {"patch": "stride", "kernel": "kernel"},
        "pooling": {name: name for name in ("pool", "pools", "unit", "unit_stages")},
        "decoder": {f"decoder_{name}": name for name in ("depth", "width", "heads")},
    }
    made = {part: {new: given.pop(old) for old, new in table.items() if old in given} for part, table in nested.items()}
    made = {part: values for part, values in made.items() if values}
    if "predictions" in given:
        made["out_dim"] = given.pop("predictions")
    return {**given, **made}


def is_flat(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` was saved by version 0.1."""
    return "decoder_depth" in config or "token_dim" in config


class Hiera(ModelMixin, ConfigMixin):
    """Predicts values from patches of pixels, of which whole mask units are left out (Ryali et al. 2023, section 3).

    The tokens are joined to an image or video, with zeros at the tokens that are left out. A convolution with
    overlapping kernels cuts it into small patches, and the patches of missing units are dropped. Width and heads double
    from stage to stage. The first block of each of the stages 2 to `pools` + 1 max-pools its queries, so that finally
    there is one position per token. Neither pooling nor the attention of the first stages crosses a mask unit, so any
    units may be missing. The outputs of the stages before the last pooling are brought to its resolution and added
    (multi-scale fusion), and a decoder as in MAE predicts.

    Args:
        grid: of the tokens, (h, w) or (t, h, w); positions are resized for other grids.
        tokens: ``dim`` values per token, (channels, \\*pixels) flattened, of ``stride * pool**pools`` pixels along each
            axis, as from the tokenizer ``patches``.
        out_dim: values predicted per token; 0 is the `dim` of a token.
        width, heads: of the last stage (Hiera-B: 768 and 8); each previous stage has half of both.
        stages: number of blocks of each stage.
        mlp_ratio: ratio of the hidden width of the MLPs to the width.
        stem, pooling: nested specs.
        positions: added to the small patches: ``learned``, or ``learned_sum`` of time and space (video).
        decoder: its ``depth``, ``width`` and ``heads``.
        backend: of the attention, see :mod:`maskgen.transformer.attention`.

    Raises:
        ValueError: options exclude each other; the message names the option to change.
    """

    config_name = "config.json"
    prefix = 0  # no token without a position
    codes_per_position = 1

    @register_to_config
    def __init__(
        self,
        grid: tuple[int, ...] | list[int],
        out_dim: int = 0,
        tokens: Annotated[Any, Nested(TokenSpec, ("codebook_size", "dim", "code_dim"))] = {},  # noqa: B006
        width: int = 768,
        heads: int = 8,
        stages: list[int] = [2, 3, 16, 3],  # noqa: B006
        mlp_ratio: float = 4.0,
        stem: Annotated[Any, Nested(StemSpec)] = {},  # noqa: B006
        pooling: Annotated[Any, Nested(PoolingSpec)] = {},  # noqa: B006
        positions: Literal["learned", "learned_sum"] = "learned",
        decoder: Annotated[Any, Nested(DecoderSpec)] = {},  # noqa: B006
        backend: Backend = "auto",
    ):
        super().__init__()
        self.conditioner = Conditioners()  # Hiera takes no conditions
        token_dim = build_spec(TokenSpec, tokens, "tokens").dim
        stem_spec, pooling_spec = build_spec(StemSpec, stem, "stem"), build_spec(PoolingSpec, pooling, "pooling")
        given = {"depth": 8, "width": 512, "heads": 16, **(decoder if isinstance(decoder, Mapping) else vars(decoder))}
        decoder_spec = build_spec(DecoderSpec, given, "decoder")
        patch, kernel = stem_spec.stride, stem_spec.kernel
        pool, pools, unit, unit_stages = (
            pooling_spec.pool,
            pooling_spec.pools,
            pooling_spec.unit,
            pooling_spec.unit_stages,
        )
        decoder_depth, decoder_width, decoder_heads = decoder_spec.depth, decoder_spec.width, decoder_spec.heads
        self.token = tuple(p * s**pools for p, s in zip(patch, pool))
        self.unit, self.positions = tuple(unit), positions
        self.codebook_size, self.token_dim = build_spec(TokenSpec, tokens, "tokens").codebook_size, token_dim
        self._check(tuple(grid), stem_spec, pooling_spec, decoder_spec)
        halves = [2**i for i in reversed(range(len(stages)))]
        widths, each_heads = [width // half for half in halves], [heads // half for half in halves]

        kind = CONVOLUTIONS[len(grid)]
        padding = [k // 2 for k in kernel]
        self.patch_embedding = kind(token_dim // math.prod(self.token), widths[0], kernel, patch, padding)
        add_positions(self, widths[0], tuple(n * s**pools for n, s in zip(grid, pool)))
        self.blocks, self.within = nn.ModuleList(), []
        for stage, depth in enumerate(stages):
            if stage:
                stride = pool if stage <= pools else [1] * len(pool)
                first = PoolingBlock(widths[stage - 1], widths[stage], each_heads[stage], mlp_ratio, stride, backend)
                self.blocks.append(first)
                self.within.append(stage - 1 < unit_stages)
            for _ in range(depth - bool(stage)):
                self.blocks.append(plain_block(widths[stage], each_heads[stage], mlp_ratio, backend))
                self.within.append(stage < unit_stages)
        self.ends = [end - 1 for end in accumulate(stages)]
        self.fusions = nn.ModuleList()
        for stage in range(pools):
            sides = [s ** (pools - stage) for s in pool]
            self.fusions.append(kind(widths[stage], width, sides, sides))
        self.encoder_norm = make_norm("layer", width)
        blocks = [plain_block(decoder_width, decoder_heads, mlp_ratio, backend) for _ in range(decoder_depth)]
        self.decoder = Decoder(
            width, decoder_width, decoder_heads, blocks, tuple(grid), "learned", rope=False, pad="mask_token"
        )
        self.final_norm = make_norm("layer", decoder_width)
        self.head = nn.Linear(decoder_width, out_dim or token_dim)
        initialise(self, [])
        nn.init.xavier_uniform_(
            self.patch_embedding.weight.data.flatten(1)
        )  # through a view, as for a linear layer (MAE)

    def __getattr__(self, name: str) -> Any:
        """Returns parts of the network; diffusers would return the options of the same names."""
        return nn.Module.__getattr__(self, name)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """See diffusers' ``ModelMixin.from_pretrained``. Folders of version 0.1 are translated."""
        path: str | Path = pretrained_model_name_or_path
        return load_saved(cls, super().from_pretrained, path, is_flat, from_flat, **options)

    def _check(self, grid: tuple[int, ...], stem: StemSpec, pooling: PoolingSpec, decoder: DecoderSpec) -> None:
        c, pixels = self.config, " x ".join(map(str, self.token))
        sides = {"stem.stride": stem.stride, "stem.kernel": stem.kernel, "pooling.pool": pooling.pool}
        axes = {name: len(side) for name, side in {**sides, "pooling.unit": pooling.unit}.items()}
        half = 2 ** (len(c.stages) - 1)
        problem = (
            f"Hiera's {', '.join(axes)} need one number per axis of the grid, 2 or 3; got {axes} for {grid}"
            if set(axes.values()) != {len(grid)} or len(grid) not in CONVOLUTIONS
            else f"stem.kernel is {stem.kernel}; give an odd size along each axis"
            if any(side % 2 == 0 for side in stem.kernel)
            else f"Hiera reads pixels: give it tokens {{type: patches}} of {pixels}, not of {self.token_dim} values"
            if self.codebook_size or not self.token_dim or self.token_dim % math.prod(self.token)
            else f"pooling.pools {pooling.pools} must be less than the {len(c.stages)} stages, each of a block or more"
            if pooling.pools >= len(c.stages) or min(c.stages) < 1
            else f"width {c.width} and heads {c.heads} are halved from stage to stage: give multiples of {half}, and "
            "heads that divide the width"
            if c.width % half or c.heads % half or c.width % c.heads
            else "Hiera needs a decoder: set decoder.depth to 1 or more, and decoder.heads that divide decoder.width"
            if decoder.depth < 1 or decoder.width % decoder.heads
            else None
        )
        if problem:
            raise ValueError(problem)
        self._units(grid)

    def forward(
        self,
        tokens: Float[Tensor, "b *grid d"],
        masked: Bool[Tensor, "b *grid"],
        conditioning: None = None,
        keep: Int[Tensor, "b m"] | None = None,
        kept: Sequence[int] | None = None,
    ) -> TransformerOutput:
        """Predicts all tokens. The features (b, m, width) are the normalised features of the encoder at `keep`.

        Args:
            tokens: float (b, \\*grid, d); the values at dropped positions are ignored.
            masked: bool (b, \\*grid), True at the dropped positions only.
            conditioning: None.
            keep: flat positions of the tokens that are not dropped, int64 (b, m); None is all.
            kept: None, as all rows keep equally many tokens.

        Raises:
            ValueError: the dropped tokens are not whole mask units, or rows drop different numbers.
        """
        grid, n = tuple(masked.shape[1:]), masked[0].numel()
        units = self._kept_units(masked, keep, kept)
        seen = self._embedded(tokens.masked_fill(masked[..., None], 0))
        positions = cut(torch.arange(n, device=tokens.device).view(1, *grid), self.unit).flatten(2)
        if units is not None:
            seen, positions = take(seen, units), positions[0, units]
        x = self.encoder_norm(self._fused(self._walk(seen))).flatten(1, -2)
        index = positions.flatten(1)[..., None].expand_as(x)  # tokens are in the order of the units
        everywhere = x.new_zeros(len(x), n, x.shape[-1]).scatter(1, index, x)
        features = everywhere if keep is None else take(everywhere, keep)
        prefix = features[:, :0]
        h = self.decoder(prefix, features, masked, keep, None, [None] * len(self.decoder.blocks), None)
        return TransformerOutput(self.head(self.final_norm(h)), features, prefix)

    def layers(self, tokens: Float[Tensor, "b *grid d"]) -> list[Float[Tensor, "b n w"]]:
        """The output of each block in row-major order, at its own resolution and width, for probes.

        It excludes the fusion and its norm, which are inputs of the decoder and are not fine-tuned.
        """
        counts = self._units(tuple(tokens.shape[1:-1]))
        return [joined(x, counts).flatten(1, -2) for x in self._walk(self._embedded(tokens))]

    def _units(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The number of mask units along each axis.

        Raises:
            ValueError: mask units do not tile the grid.
        """
        if any(n % side for n, side in zip(grid, self.unit)):
            raise ValueError(
                f"mask units of {self.unit} tokens do not tile a grid of {grid}; resize or crop the pixels"
            )
        return tuple(n // side for n, side in zip(grid, self.unit))

    def _kept_units(self, masked: Tensor, keep: Tensor | None, kept: Sequence[int] | None) -> Int[Tensor, "b k"] | None:
        """The indices of the kept mask units; None is all. The check waits for the device once per step."""
        self._units(tuple(masked.shape[1:]))
        seen = torch.ones_like(masked)
        if keep is not None:
            seen = torch.zeros_like(masked).flatten(1).scatter(1, keep, True).view_as(masked)
        inside = cut(seen, self.unit).flatten(2)
        whole = inside.all(-1)
        if kept is not None or bool((inside.any(-1) != whole).any() | (seen == masked).any()):
            raise ValueError(
                f"Hiera drops whole mask units of {self.unit} tokens, equally many in every row, and its encoder "
                f"has no mask token: set masking.ratio: {{type: fixed}}, masking.sampler: {{type: units, unit: "
                f"{list(self.unit)}}} and masking.dropping: all"
            )
        if keep is None:
            return None
        return (~whole).long().argsort(dim=1, stable=True)[:, : keep.shape[1] // math.prod(self.unit)]

    def _embedded(self, tokens: Float[Tensor, "b *grid d"]) -> Float[Tensor, "b u ..."]:
        """The small patches with their positions, by mask unit."""
        grid = tuple(tokens.shape[1:-1])
        cells = tokens.flatten(1, -2).unflatten(-1, (-1, *self.token)).movedim(2, -1)
        pixels = joined(cells, grid).movedim(-1, 1).to(self.patch_embedding.weight.dtype)
        x = self.patch_embedding(pixels).movedim(1, -1)
        small = tuple(x.shape[1:-1])
        x = with_positions(self, x.flatten(1, -2), small).unflatten(1, small)
        return cut(x, [n // count for n, count in zip(small, self._units(grid))])

    def _walk(self, x: Float[Tensor, "b u ..."]) -> list[Float[Tensor, "b u ..."]]:
        """The output of each block."""
        made = []
        for block, within in zip(self.blocks, self.within):
            if isinstance(block, PoolingBlock):
                x = block(x, within)
            else:
                x = block(rows(x, within), None, None).view(x.shape)
            made.append(x)
        return made

    def _fused(self, made: list[Float[Tensor, "b u ..."]]) -> Float[Tensor, "b u ..."]:
        """The output of the last block plus those of the stages before the last pooling, at its resolution."""
        x = made[-1]
        for convolution, end in zip(self.fusions, self.ends):
            earlier = convolution(made[end].flatten(0, 1).movedim(-1, 1)).movedim(1, -1)
            x = x + earlier.unflatten(0, x.shape[:2])
        return x


NETWORKS = {**TRANSFORMERS, "hiera": Hiera}
