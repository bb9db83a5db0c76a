"""Tokenizers saved by earlier versions, whose weights were numbered (``encoder.layers.3.0.conv1``) instead of named.

:func:`numbered` has the earlier name of every present weight. From this one mapping follow the translation of saved
weights, the order of an optimizer's states, and the fingerprint by which token caches know their tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.registry import Part, split
from maskgen.renamed import moved, new_name
from maskgen.tokenizer.causal import CausalDecoder, CausalEncoder
from maskgen.tokenizer.coders import ConvDecoder, ConvEncoder
from maskgen.tokenizer.vit import Transformer

Pairs = Generator[tuple[str, str], None, int]  # present and earlier names; the number of layers so far is returned

# Within a residual block, an attention block, a spatial norm, a transformer block, a head, a codebook.
INSIDE = (
    (r"\bnin_shortcut\b", "shortcut"),
    (r"\bproj_out\b", "out"),
    (r"\.[qkv](?=\.(weight|bias)$)", ".qkv"),
    (r"\bnorm_layer\b", "norm"),
    (r"\bconv_y\b", "scale"),
    (r"\bconv_b\b", "shift"),
    (r"\battn\.proj\b", "attention.out"),
    (r"\battn\.qkv\b", "attention.qkv"),
    (r"\bfc1\b", "up"),
    (r"\bfc2\b", "down"),
    (r"\bembedding\.weight$", "codebook"),
)


def numbered(tokenizer: nn.Module) -> dict[str, list[str]]:
    """The earlier name of each parameter and buffer, in the earlier order, and its present names.

    There is more than one present name where a tensor was split along its first axis (query, key and value).
    """
    modules = [("quantizer", "quantizer")]
    for coder in ("encoder", "decoder"):
        pairs = list(_coder(getattr(tokenizer, coder)))
        modules += [(f"{coder}.{new}", f"{coder}.{old}") for new, old in pairs]
    names: dict[str, list[str]] = {}
    present = list(tokenizer.state_dict())
    for new, old in modules:
        for key in (key for key in present if key == new or key.startswith(f"{new}.")):
            earlier = old + key[len(new) :]
            for pattern, replacement in INSIDE:
                earlier = re.sub(pattern, replacement, earlier)
            names.setdefault(earlier, []).append(key)
    return names


def _coder(coder: Any) -> Generator[tuple[str, str], None, None]:
    """The children of a coder, in the earlier order; numbered layers were those of one ``nn.Sequential``."""
    if isinstance(coder, Transformer):
        yield from _vit(coder)
    elif isinstance(coder, (ConvEncoder, CausalEncoder)):
        flat = isinstance(coder, CausalEncoder)
        yield "conv_in", "layers.0"
        at = 1
        for index, level in enumerate(coder.down):
            at = yield from _level(level, f"down.{index}", at, flat)
        at = yield from _middle(coder.mid, at)
        yield "norm_out", f"layers.{at}"  # a SiLU follows
        yield "conv_out", f"layers.{at + 2}"
        yield "quant_conv", f"layers.{at + 3}"
    elif isinstance(coder, (ConvDecoder, CausalDecoder)):
        flat = isinstance(coder, CausalDecoder)
        at = int(isinstance(coder, ConvDecoder) and isinstance(coder.post_quant_conv, nn.Conv2d))
        yield "post_quant_conv", "layers.0"
        yield "conv_in", f"layers.{at}"
        at = yield from _middle(coder.mid, at + 1)
        for i, level in coder.up.items():
            at = yield from _level(level, f"up.{i}", at, flat)
        yield "norm_out", f"layers.{at}"
        yield ("conv_out.conv" if flat else "conv_out"), "output"


def _level(level: Any, name: str, at: int, flat: bool) -> Pairs:
    """A level was layer `at`, with its own numbers, or (`flat`) its blocks were layers; resampling was the next."""
    step = 2 if level.attn else 1
    for j in range(len(level.block)):
        yield f"{name}.block.{j}", f"layers.{at + j}" if flat else f"layers.{at}.{j * step}"
        if level.attn:
            yield f"{name}.attn.{j}", f"layers.{at}.{j * step + 1}"
    at += len(level.block) if flat else 1
    for kind in ("downsample", "upsample"):
        if getattr(level, kind) is not None:
            yield f"{name}.{kind}", f"layers.{at}"
            at += 1
    return at


def _middle(middle: nn.Module, at: int) -> Pairs:
    for name, _ in middle.named_children():
        yield f"mid.{name}", f"layers.{at}"
        at += 1
    return at


def _vit(coder: Any) -> Generator[tuple[str, str], None, None]:
    for name in ("latent_tokens", "mask_token", "latent_embedding", "text_embedding"):
        yield name, name
    yield "position_embedding", "trunk.position_embedding"
    yield "register_tokens", "trunk.register_tokens"
    yield "norm_pre", "trunk.pre_norm"
    yield "blocks", "trunk.blocks"
    yield "norm", "trunk.post_norm"
    for name in ("patch_embed", "decoder_embed"):
        yield name, "embed"
    yield "text", "text"
    yield "head.hidden", "head.0"
    yield "head.out", f"head.{0 if coder.head.hidden is None else 2}"
    yield "conv_out", "refine"


def named(tokenizer: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the present names; present names pass through."""
    made = dict(state)
    for old, new in numbered(tokenizer).items():
        if old in state and new != [old]:
            made.update(zip(new, made.pop(old).chunk(len(new))))
    return made


def numbered_state(tokenizer: nn.Module) -> dict[str, Tensor]:
    """The tokenizer's state with the earlier names."""
    state = tokenizer.state_dict()
    names = numbered(tokenizer).items()
    return {old: torch.cat([state[key] for key in new]) if len(new) > 1 else state[new[0]] for old, new in names}


def is_numbered(keys: Iterable[str]) -> bool:
    """Whether a state with these keys was saved by an earlier version."""
    return any(re.match(r"((en|de)coder\.(layers\.\d|trunk\.)|quantizer\.(.*\.)?codebook$)", key) for key in keys)


def has_old_options(config: Mapping[str, Any], parts: Mapping[str, Part]) -> bool:
    """Whether a ``config.json`` has an option that was renamed; `parts` are the parts of the tokenizer, by argument."""
    chosen = (_chosen(parts[key], config[key]) for key in parts.keys() & config.keys())
    return any(new_name(constructor, option) for _, constructor, options in chosen for option in options)


def upgraded(config: Mapping[str, Any], parts: Mapping[str, Part]) -> dict[str, Any]:
    """A ``config.json`` with the present options."""
    made = dict(config)
    for key in parts.keys() & config.keys():
        name, constructor, options = _chosen(parts[key], config[key])
        made[key] = {"type": name, **moved(constructor.__name__, options)}
    return made


def _chosen(part: Part, value: Any) -> tuple[str, Any, dict[str, Any]]:
    """The name, the constructor and the options of a spec."""
    name, options = split(value, part.default)
    return name, part.table[name], options
